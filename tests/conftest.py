"""Fixtures that every test may use, one thread per process, and data set catalogs that no test changes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gmm_anomaly.compat import keep_freed_memory

# Set before torch, numpy and OpenCV are imported: several threads on a busy machine slow small tensors down.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

# As the programs do it.
keep_freed_memory()


@contextmanager
def catalogs_kept() -> Iterator[None]:
    """Data sets that are registered inside end there, and those that are replaced come back.

    Nothing is imported: many tests do without Detectron2. Where the package is imported inside, the data sets
    that it registers by itself are what stays.
    """
    loaded = sys.modules.get("gmm_anomaly.data.registration")
    specs = dict(loaded._SPECS) if loaded else None
    names = set(loaded.DatasetCatalog) if loaded else None
    yield
    registration = sys.modules.get("gmm_anomaly.data.registration")
    if registration is None:
        return
    catalogs = (registration.DatasetCatalog, registration.MetadataCatalog)
    wanted = specs or {}
    strangers = set(catalogs[0]) - names if names is not None else set()
    changed = {name for name, spec in registration._SPECS.items() if wanted.get(name) != spec}
    for name in strangers | changed:
        for catalog in catalogs:
            catalog.pop(name, None)
    registration._SPECS.clear()
    if specs is None:
        sys.modules["gmm_anomaly.data"].register_all()
        return
    registration._SPECS.update(specs)
    for spec in specs.values():
        registration.register(spec)


@pytest.fixture(scope="module", autouse=True)
def _catalogs_of_a_module() -> Iterator[None]:
    with catalogs_kept():
        yield


@pytest.fixture(autouse=True)
def _catalogs_of_a_test(_catalogs_of_a_module: None) -> Iterator[None]:
    with catalogs_kept():
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the small files that tests read."""
    return Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def camvid_root() -> Path:
    """Root of CamVid (``train``, ``trainannot``, … inside); skips the test where there is none."""
    named = os.environ.get("GMM_ANOMALY_CAMVID")
    root = Path(named) if named else Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "camvid"
    if not (root / "train").is_dir():
        pytest.skip(f"CamVid is not at {root}: set GMM_ANOMALY_CAMVID, or DETECTRON2_DATASETS to its parent")
    return root.resolve()


@pytest.fixture(scope="session")
def tiny_streets() -> list[str]:
    """Overrides that make a run of any config of configs/synthetic a matter of seconds: two iterations."""
    return [
        "DATASETS.SYNTHETIC.HEIGHT", "64", "DATASETS.SYNTHETIC.WIDTH", "128",
        "DATASETS.SYNTHETIC.NUM_TRAIN", "4", "DATASETS.SYNTHETIC.NUM_VAL", "2",
        "DATASETS.SYNTHETIC.NUM_ANOMALY", "2", "DATASETS.SYNTHETIC.CACHE_DIR", "",
        "INPUT.CROP.SIZE", "[64, 64]", "INPUT.MIN_SIZE_TEST", "0", "MODEL.BACKBONE.WEIGHTS", "",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "0",
        "MODEL.GMM.WARM_START_FEATURES", "20",
        "TEST.NUM_VISUALIZATIONS", "0",
    ]  # fmt: skip

"""Fixtures that every test may use, and one thread per process for all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before torch, numpy and OpenCV are imported: several threads on a busy machine slow small tensors down.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")


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

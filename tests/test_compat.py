"""Which Detectron2 is installed, told from its metadata; distributed wrapping on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gmm_anomaly import compat

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def write_package(folder: Path) -> Path:
    package = folder / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "9.9"\n')
    return package


def write_metadata(site_packages: Path, name: str, version: str, direct_url: dict | None = None) -> None:
    folder = site_packages / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if direct_url is not None:
        (folder / "direct_url.json").write_text(json.dumps(direct_url))


@pytest.fixture
def site_packages(tmp_path, monkeypatch) -> Path:
    """An empty folder, first on the path: metadata in it hide those of the real installation."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def test_package_and_compat_import_nothing_heavy():
    done = run_python(
        "import sys, gmm_anomaly, gmm_anomaly.compat, gmm_anomaly.doctor\n"
        "print(sorted({'torch', 'torchvision', 'detectron2', 'fvcore', 'numpy'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_registry_wheel(site_packages):
    location = write_package(site_packages)
    write_metadata(site_packages, "sal-detectron2", "0.7.2")
    assert compat._origin(location) == ("registry wheel", "sal-detectron2 0.7.2")


def test_upstream_git(site_packages):
    location = write_package(site_packages)
    commit = "a59f05630a8f205756064244bf5beb8661f96180"
    url = "https://example.org/detectron2"
    write_metadata(
        site_packages, "detectron2", "0.6", {"url": url, "vcs_info": {"vcs": "git", "commit_id": commit}}
    )
    assert compat._origin(location) == ("upstream git", f"{url}@{commit}")


@pytest.mark.parametrize("in_place", [True, False])
def test_checkout(site_packages, tmp_path, in_place):
    checkout = tmp_path / "check out"
    location = write_package(checkout)
    if not in_place:
        location = write_package(site_packages)
    write_metadata(
        site_packages, "detectron2", "0.6", {"url": checkout.as_uri(), "dir_info": {"editable": in_place}}
    )
    assert compat._origin(location) == ("checkout", str(checkout))


def test_checkout_on_the_path_hides_the_installed_wheel(site_packages, tmp_path):
    write_package(site_packages)
    write_metadata(site_packages, "sal-detectron2", "0.7.2")
    location = write_package(tmp_path / "checkout")
    (tmp_path / "checkout" / "setup.py").write_text("")
    assert compat._origin(location) == ("checkout", str(tmp_path / "checkout"))


def test_unknown_origin(site_packages):
    assert compat._origin(write_package(site_packages)) == ("other", "")


def test_info_describes_the_imported_package(tmp_path):
    location = write_package(tmp_path)
    (tmp_path / "setup.py").write_text("")
    code = (
        "from gmm_anomaly import compat; i = compat.detectron2_info()\n"
        "print(i.version, i.location, i.kind, i.compiled)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    assert run_python(code, PYTHONPATH=path).stdout.strip() == f"9.9 {location} checkout False"
    (location / "_C.py").write_text("")
    assert run_python(code, PYTHONPATH=path).stdout.strip() == f"9.9 {location} checkout True"


def test_missing_detectron2_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ImportError, match=r"Detectron2.*make setup"):
        compat.require_detectron2()
    with pytest.raises(ImportError, match=r"make setup DETECTRON2=/path/to/checkout"):
        compat.detectron2_info()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import a_package_that_is_not_there", "package a_package_that_is_not_there that it imports is not"),
        ("raise OSError('undefined symbol')", r"importing it fails \(OSError: undefined symbol\)"),
    ],
)
def test_detectron2_that_fails_to_import(tmp_path, monkeypatch, body, message):
    (write_package(tmp_path) / "__init__.py").write_text(body + "\n")
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=message):
        compat.require_detectron2()


def test_installed_detectron2_has_what_the_project_builds_on():
    """The one test that reads the real installation: wheel, git and checkout all have to pass it."""
    pytest.importorskip("detectron2")
    import detectron2

    info = compat.detectron2_info()
    assert info.location == Path(detectron2.__file__).resolve().parent
    assert info.kind in {"registry wheel", "upstream git", "checkout", "other"}
    from detectron2.config import configurable, get_cfg  # noqa: F401
    from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: F401
    from detectron2.engine import HookBase, SimpleTrainer, launch  # noqa: F401
    from detectron2.evaluation import DatasetEvaluator, inference_on_dataset  # noqa: F401
    from detectron2.projects.deeplab import add_deeplab_config

    cfg = get_cfg()
    add_deeplab_config(cfg)
    assert cfg.SOLVER.POLY_LR_POWER == 0.9


def test_upstream_keys_let_a_newer_config_be_read():
    config = pytest.importorskip("detectron2.config")
    cfg = config.get_cfg()
    compat.add_upstream_keys(cfg)
    cfg.merge_from_list(["FLOAT32_PRECISION", "high"])
    compat.add_upstream_keys(cfg)
    assert cfg.FLOAT32_PRECISION == "high"


def test_single_process_model_is_not_wrapped():
    from torch import nn

    model = nn.Linear(2, 1)
    assert compat.wrap_distributed(model) is model


TWO_PROCESSES = """
import multiprocessing
import sys
import torch
import torch._dynamo  # DDP imports it when it is built: seconds, saved here for one of the two processes
import torch.distributed as dist
from torch import nn
from gmm_anomaly import compat


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)  # different weights on each rank
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2)).eval()
    wrapped = compat.wrap_distributed(model)
    assert isinstance(wrapped, nn.parallel.DistributedDataParallel) and wrapped.device_ids is None
    assert wrapped.broadcast_buffers is False
    weight = model[0].weight.detach().clone()
    wrapped(torch.arange(12.0).reshape(4, 3) * (rank + 1)).sum().backward()
    torch.save({"weight": weight, "gradient": model[0].weight.grad}, f"{folder}/{rank}")
    dist.barrier()
    dist.destroy_process_group()


context = multiprocessing.get_context("fork")
workers = [context.Process(target=work, args=(rank, sys.argv[1])) for rank in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
sys.exit(max(abs(worker.exitcode) for worker in workers))
"""


def test_two_processes_on_the_cpu_average_their_gradients(tmp_path):
    import torch

    done = run_python(TWO_PROCESSES, str(tmp_path), OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / str(rank)) for rank in range(2))
    assert torch.equal(first["weight"], second["weight"])  # rank 0's weights were sent to rank 1
    # The output is W x / sqrt(1 + eps), so the gradient of its sum is the column sum of x, which is 1 and 2
    # times this one.
    column_sum = torch.arange(12.0).reshape(4, 3).sum(dim=0) / (1 + 1e-5) ** 0.5
    expected = (1.5 * column_sum).expand(2, 3)
    torch.testing.assert_close(first["gradient"], expected)
    torch.testing.assert_close(second["gradient"], expected)

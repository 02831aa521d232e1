"""SOLVER.LOGGER: what a service is sent of a training, and of one that is resumed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine.loggers import RUN_FILE, RunWriter, require_logger

# Stand-ins that note what they are called with, as the packages' documentation has it.
FAKES = {
    "wandb": """
class Run:
    def log(self, values, step): calls.append(("log", values, step))
    def finish(self): calls.append(("end",))
calls = []
def init(*, project, name, dir, id, resume, config):
    calls.append(("begin", id, resume, project, name, config["SOLVER"]["LOGGER"]))
    run = Run()
    run.id = id
    return run
""",
    "mlflow": """
from types import SimpleNamespace
calls = []
def start_run(run_id=None, run_name=None):
    calls.append(("begin", run_id, run_name))
    return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))
def log_text(text, file): assert "LOGGER: mlflow" in text and file == "config.yaml"
def log_metrics(values, step): calls.append(("log", values, step))
def end_run(): calls.append(("end",))
""",
}


@pytest.fixture(params=FAKES)
def service(request, tmp_path, monkeypatch):
    """A config that asks for the service, and the calls of its stand-in."""
    (tmp_path / "packages" / request.param).mkdir(parents=True)
    (tmp_path / "packages" / request.param / "__init__.py").write_text(FAKES[request.param])
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.SOLVER.LOGGER, cfg.OUTPUT_DIR = request.param, str(tmp_path / "my run")
    require_logger(cfg)
    assert request.param not in sys.modules
    yield cfg, importlib.import_module(request.param).calls
    sys.modules.pop(request.param, None)


def test_a_run_is_sent_once_and_resumed_as_the_same(service):
    cfg, calls = service
    for start in (0, 2):
        writer = RunWriter(cfg)
        with EventStorage(start) as storage:
            for iteration in range(start, start + 2):
                storage.iter = iteration
                storage.put_scalar("loss", 8.0 / (1 + iteration), smoothing_hint=False)
                if iteration == start:
                    storage.put_scalar("gmm/car <big>", iteration, smoothing_hint=False)
                writer.write()
                writer.write()
        writer.close()
    (first, *sent), (again, *rest) = calls[:4], calls[4:]
    name = "gmm/car <big>" if cfg.SOLVER.LOGGER == "wandb" else "gmm/car _big_"
    assert [*sent[:-1], *rest[:-1]] == [
        ("log", {"loss": 8.0, name: 0.0}, 0),
        ("log", {"loss": 4.0}, 1),
        ("log", {"loss": 8 / 3, name: 2.0}, 2),
        ("log", {"loss": 2.0}, 3),
    ]
    assert sent[-1] == rest[-1] == ("end",)
    known = json.loads(Path(cfg.OUTPUT_DIR, RUN_FILE).read_text())
    if cfg.SOLVER.LOGGER == "wandb":
        assert first == again and first[2:] == ("allow", "gmm_anomaly", "my run", "wandb")
        assert known == {"wandb": first[1]}
    else:
        assert (first, again) == (("begin", None, "my run"), ("begin", "new", None))
        assert known == {"mlflow": "new"}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    require_logger(cfg)
    # What wandb leaves in the folder where it ran is no package.
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    cfg.SOLVER.LOGGER = "wandb"
    with pytest.raises(ImportError, match="SOLVER.LOGGER: 'wandb' needs the package .*pip install wandb"):
        require_logger(cfg)

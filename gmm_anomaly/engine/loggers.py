"""Scalars of a training for Weights & Biases or MLflow, beside TensorBoard's files (``SOLVER.LOGGER``)."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from gmm_anomaly.data.atomic import replacing

# In OUTPUT_DIR: which run there is this one, so that a resumed training goes on with it.
RUN_FILE = "logger.json"
Log = Callable[[dict[str, float], int], None]


def require_logger(cfg: CfgNode) -> None:
    """Raise ImportError, with what to install, where the package of ``SOLVER.LOGGER`` is missing. Imports
    nothing."""
    name = cfg.SOLVER.LOGGER
    spec = None if name == "tensorboard" else find_spec(name)
    # A folder of that name, such as wandb leaves behind, looks like a package without an origin.
    if name != "tensorboard" and (spec is None or spec.origin is None):
        raise ImportError(
            f"SOLVER.LOGGER: {name!r} needs the package {name}, which is not installed: pip install {name}, "
            'or leave the key at "tensorboard"'
        )


class RunWriter(EventWriter):
    """Sends each scalar of Detectron2's storage, smoothed as for TensorBoard, once an iteration.

    Where it goes is said by the services' own variables (``WANDB_PROJECT``, ``WANDB_MODE``, ``WANDB_ENTITY``;
    ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``); the run is called like the output folder.

    Args:
        cfg: of the run. ``SOLVER.LOGGER`` is "wandb" or "mlflow". A run that ``OUTPUT_DIR`` knows goes on.

    Raises:
        Whatever the package raises where it cannot begin a run.
    """

    def __init__(self, cfg: CfgNode) -> None:
        service = cfg.SOLVER.LOGGER
        file = Path(cfg.OUTPUT_DIR) / RUN_FILE
        known = json.loads(file.read_text()).get(service) if file.is_file() else None
        begin = {"wandb": _begin_wandb, "mlflow": _begin_mlflow}[service]
        run, self._log, self._end = begin(cfg, known)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({service: run}) + "\n")
        self._last = -1

    def write(self) -> None:
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(20).items():
            if iteration > self._last:
                by_iteration.setdefault(iteration, {})[name] = float(value)
        for iteration, values in sorted(by_iteration.items()):
            self._log(values, iteration)
            self._last = iteration

    def close(self) -> None:
        self._end()


def _begin_wandb(cfg: CfgNode, known: str | None) -> tuple[str, Log, Callable[[], None]]:
    run = import_module("wandb").init(
        project=os.environ.get("WANDB_PROJECT") or "gmm_anomaly",
        name=Path(cfg.OUTPUT_DIR).resolve().name,
        dir=cfg.OUTPUT_DIR,
        id=known or uuid.uuid4().hex,
        # What is logged again after an interruption is the same: wandb keeps the first.
        resume="allow",
        config=json.loads(json.dumps(cfg, default=str)),
    )
    return run.id, lambda values, iteration: run.log(values, step=iteration), run.finish


def _begin_mlflow(cfg: CfgNode, known: str | None) -> tuple[str, Log, Callable[[], None]]:
    mlflow = import_module("mlflow")
    run = mlflow.start_run(run_id=known, run_name=None if known else Path(cfg.OUTPUT_DIR).resolve().name)
    mlflow.log_text(cfg.dump(), "config.yaml")

    def log(values: dict[str, float], iteration: int) -> None:
        # Its names have fewer characters than those of classes.
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in values.items()}
        mlflow.log_metrics(named, step=iteration)

    return run.info.run_id, log, mlflow.end_run

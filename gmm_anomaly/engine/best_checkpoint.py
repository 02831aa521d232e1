"""The weights of the best evaluation so far."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict

from gmm_anomaly.data.atomic import replacing

from .checkpoint import Checkpointer

logger = logging.getLogger(__name__)

NAME = "model_best"
MODES = ("max", "min")


class BestCheckpoint:
    """Keeps the weights of the best evaluation in ``model_best.pth``, and what it was in ``model_best.json``.

    Those files outlive the process: a resumed run goes on from the best so far.

    Args:
        metric: data set, task and metric, as in results.json: "camvid_test/sem_seg/mIoU".
        mode: "max", or "min" where lower is better.

    Raises:
        ValueError: another mode.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str, mode: str = "max") -> None:
        if mode not in MODES:
            raise ValueError(f"TEST.BEST_MODE: expected one of {', '.join(MODES)}, found {mode!r}")
        self.checkpointer = checkpointer
        self.metric = metric
        self.mode = mode
        self.value: float | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode, checkpointer: Checkpointer) -> BestCheckpoint | None:
        """None without ``TEST.BEST_METRIC``. Raises ValueError unless it can be computed during training."""
        metric = cfg.TEST.BEST_METRIC
        if not metric:
            return None
        if cfg.TEST.EVAL_PERIOD <= 0:
            raise ValueError(
                f"TEST.BEST_METRIC: {metric} needs evaluations during training; set TEST.EVAL_PERIOD to the "
                "iterations from one to the next"
            )
        if metric.split("/")[0] not in cfg.DATASETS.TEST:
            raise ValueError(
                "TEST.BEST_METRIC: expected DATA_SET/TASK/METRIC with a data set of DATASETS.TEST "
                f"({', '.join(cfg.DATASETS.TEST) or 'which is empty'}), found {metric!r}"
            )
        return cls(checkpointer, metric, cfg.TEST.BEST_MODE)

    @property
    def _note(self) -> Path:
        return Path(self.checkpointer.save_dir) / f"{NAME}.json"

    def resume(self) -> None:
        """Take over the best evaluation of the run so far, if it was by the same metric."""
        if self._note.is_file():
            noted = json.loads(self._note.read_text())
            if (noted["metric"], noted["mode"]) == (self.metric, self.mode):
                self.value = noted["value"]

    def offer(self, results: Mapping[str, Any], iteration: int) -> None:
        """Save the weights if ``results``, of the evaluation after ``iteration``, are the best. NaN is not.

        Raises:
            ValueError: the results lack the metric; lists those that there are.
        """
        found = flatten_results_dict(results)
        if self.metric not in found:
            raise ValueError(
                f"TEST.BEST_METRIC: the evaluation gave no {self.metric!r}; it gave "
                f"{', '.join(sorted(found))}"
            )
        value = float(found[self.metric])
        if math.isnan(value) or (self.value is not None and not self._is_better(value, self.value)):
            logger.info("%s is %g, the best is %s", self.metric, value, self.value)
            return
        logger.info("%s is %g, the best so far: %s.pth", self.metric, value, NAME)
        self.checkpointer.save_weights(NAME)
        self.value = value
        noted = {"metric": self.metric, "mode": self.mode, "value": value, "iteration": iteration}
        with replacing(self._note) as temporary:
            temporary.write_text(json.dumps(noted, indent=2) + "\n")

    def _is_better(self, value: float, than: float) -> bool:
        return value > than if self.mode == "max" else value < than

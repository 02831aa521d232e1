"""Training and evaluation by config, on Detectron2's engine."""

from .calibration import calibrate
from .checkpoint import Checkpointer
from .em_hook import EMHook
from .setup import build_config
from .testing import build_evaluator, evaluate
from .trainer import Trainer

__all__ = ["Checkpointer", "EMHook", "Trainer", "build_config", "build_evaluator", "calibrate", "evaluate"]

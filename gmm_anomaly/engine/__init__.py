"""Training and evaluation by config, on Detectron2's engine."""

from .calibration import calibrate
from .checkpoint import Checkpointer
from .em_hook import EMHook
from .fit_mixture import check_output_dir, fit_mixture
from .frozen_network import fitting_config
from .inference_config import inference_config
from .setup import build_config
from .testing import build_evaluator, evaluate
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "EMHook",
    "Trainer",
    "build_config",
    "build_evaluator",
    "calibrate",
    "check_output_dir",
    "evaluate",
    "fit_mixture",
    "fitting_config",
    "inference_config",
]

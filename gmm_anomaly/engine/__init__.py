"""Training and evaluation by config, on Detectron2's engine."""

from .belonging import inference_config, with_weights
from .checkpoint import Checkpointer
from .config import build_config
from .evaluation import build_evaluator, evaluate
from .feature_distance import fit_feature_distance
from .fit_mixture import check_output_dir, fit_mixture
from .hooks import EMHook
from .outliers import fit_outliers
from .trained_model import fitting_config
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "EMHook",
    "Trainer",
    "build_config",
    "build_evaluator",
    "check_output_dir",
    "evaluate",
    "fit_feature_distance",
    "fit_mixture",
    "fit_outliers",
    "fitting_config",
    "inference_config",
    "with_weights",
]

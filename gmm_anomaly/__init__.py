"""Anomaly segmentation of road scenes on Detectron2, with class-conditional Gaussian mixtures.

Importing this package loads neither Detectron2 nor torch: each module imports what it needs, and the names
below are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predict.detector import AnomalyDetector as AnomalyDetector
    from .predict.predictor import AnomalyPredictor as AnomalyPredictor
    from .predict.result import AnomalyComponent as AnomalyComponent
    from .predict.result import Prediction as Prediction

__version__ = "0.2.0"
__all__ = ["AnomalyComponent", "AnomalyDetector", "AnomalyPredictor", "Prediction", "__version__"]

_LAZY = {
    "AnomalyComponent": "predict.result",
    "AnomalyDetector": "predict.detector",
    "AnomalyPredictor": "predict.predictor",
    "Prediction": "predict.result",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

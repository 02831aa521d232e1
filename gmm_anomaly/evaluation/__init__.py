"""Evaluation of a model on registered data sets, as Detectron2's evaluators, and of score maps on disk."""

from __future__ import annotations

from .anomaly import AnomalyEvaluator
from .closed_set import ClosedSetEvaluator
from .results import TaskResult, format_results, write_results

__all__ = ["AnomalyEvaluator", "ClosedSetEvaluator", "TaskResult", "format_results", "write_results"]

"""Metrics of anomaly segmentation and of closed-set segmentation, by the rules of the benchmarks.

Each class takes one image at a time (``update``), adds up over shards and processes (``merge``; objects can
be pickled) and gives its numbers as fractions (``compute``). Only numpy and OpenCV are needed.
"""

from __future__ import annotations

from gmm_anomaly.metrics.closed_set import CalibrationMetrics, ConfusionMetrics
from gmm_anomaly.metrics.component import ComponentMetrics
from gmm_anomaly.metrics.pixel import FPR_RULES, PROTOCOLS, PixelMetrics

__all__ = [
    "FPR_RULES",
    "PROTOCOLS",
    "CalibrationMetrics",
    "ComponentMetrics",
    "ConfusionMetrics",
    "PixelMetrics",
]

"""Metrics of anomaly segmentation and of closed-set segmentation, by the rules of the benchmarks.

Each class takes one image at a time (``update``), adds up over shards and processes (``merge``, ``state``,
``from_state``) and gives its numbers as fractions (``compute``). Only numpy and OpenCV are needed.
"""

from __future__ import annotations

from gmm_anomaly.metrics.calibration import CalibrationMetrics
from gmm_anomaly.metrics.component import ComponentMetrics, FrameComponents, frame_components
from gmm_anomaly.metrics.confusion import ConfusionMetrics
from gmm_anomaly.metrics.pixel import PixelMetrics
from gmm_anomaly.metrics.protocols import FPR_RULES, PROTOCOLS, FprRule

__all__ = [
    "FPR_RULES",
    "PROTOCOLS",
    "CalibrationMetrics",
    "ComponentMetrics",
    "ConfusionMetrics",
    "FprRule",
    "FrameComponents",
    "PixelMetrics",
    "frame_components",
]

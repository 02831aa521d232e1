"""Synthetic streets: a seeded, deterministic renderer of labelled road scenes, with and without anomalies.

Needs NumPy and OpenCV only.
"""

from __future__ import annotations

from .labels import ANOMALY_LABEL, CLASSES, IGNORE_LABEL, PALETTE
from .render import render_street
from .splits import RENDERER_VERSION, StreetSplit, cache_split, image_file, label_file

__all__ = [
    "ANOMALY_LABEL",
    "CLASSES",
    "IGNORE_LABEL",
    "PALETTE",
    "RENDERER_VERSION",
    "StreetSplit",
    "cache_split",
    "image_file",
    "label_file",
    "render_street",
]

"""Synthetic streets: a seeded, deterministic renderer of labelled road scenes, with and without anomalies.

``datasets`` holds their splits, a copy of a split on disk, and their registration."""

from __future__ import annotations

from .canvas import ANOMALY_LABEL, CLASSES, IGNORE_LABEL, PALETTE
from .scene import RENDERER_VERSION, render_street

__all__ = ["ANOMALY_LABEL", "CLASSES", "IGNORE_LABEL", "PALETTE", "RENDERER_VERSION", "render_street"]

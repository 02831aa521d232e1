"""Anomaly segmentation of road scenes on Detectron2, with class-conditional Gaussian mixtures.

Importing this package loads neither Detectron2 nor torch: each module imports what it needs.
"""

from __future__ import annotations

__version__ = "0.1.0"

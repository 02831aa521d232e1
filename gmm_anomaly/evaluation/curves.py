"""What a report draws of a data set's scores: ``OUTPUT_DIR/curves/<data set>.json``, small and strict JSON.

{"dataset", "protocol", "precision", "track", "scores": {score: {"AP", "AUROC", "curve": {"recall",
"precision", "fpr"}, "histogram": {"edges", "known", "anomalous", "known_outside", "anomalous_outside"},
"components_by_size": [...]}}, "frames": {"score", "AP": {image id: AP or null}, "drawn": [image id, ...]}}

The rows of ``curve`` are points of the protocol's own pooled curve; the true positive rate is the recall.
Numbers have seven significant digits, NaN is null. ``AP`` and ``AUROC`` tell whether the file belongs to the
``results.json`` beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.metrics import PixelMetrics

CURVES_FOLDER = "curves"
POINTS = 400
BINS = 80


def curves_path(output_dir: Path, dataset_name: str) -> Path:
    return output_dir / CURVES_FOLDER / f"{dataset_name}.json"


def pixel_curves(metrics: PixelMetrics, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Curves and histogram of one score.

    Args:
        metrics: what all ranks counted. numbers: its ``compute()``.
    """
    curve = metrics.curve(POINTS)
    return {
        "AP": numbers["AP"],
        "AUROC": numbers["AUROC"],
        "curve": {key: curve[key] for key in ("recall", "precision", "fpr")},
        "histogram": metrics.histogram(BINS),
    }


def write_curves(output_dir: Path, document: Mapping[str, Any]) -> Path:
    """Write a document that names its ``dataset``, complete or not at all; returns the file's path."""
    target = curves_path(output_dir, document["dataset"])
    text = json.dumps(_compact(document), separators=(",", ":"), allow_nan=False)
    with replacing(target) as temporary:
        temporary.write_text(text + "\n")
    return target


def _compact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _compact(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _compact(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_compact(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value

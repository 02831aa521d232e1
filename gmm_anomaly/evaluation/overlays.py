"""Overlays of evaluated images: the image, its ground truth and what the model says, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gmm_anomaly.visualization import colorize_labels, heat_map, overlay, robust_range, side_by_side

from .files import save_picture
from .records import EvaluatedRecords

KNOWN_COLOR = (70, 80, 100)
ANOMALY_COLOR = (255, 150, 0)
_SAMPLED = 20_000  # pixels of a frame from which the colour range is found


def range_sample(score: np.ndarray) -> np.ndarray:
    """Evenly strided pixels of a score map, float32."""
    flat = score.ravel()
    return flat[:: max(1, flat.size // _SAMPLED)].astype(np.float32)


def shared_range(samples: Sequence[np.ndarray]) -> tuple[float, float]:
    """One colour range for several frames, which are then comparable; their order does not matter."""
    return robust_range(np.concatenate(samples)) if samples else (0.0, 0.0)


def anomaly_overlay(
    records: EvaluatedRecords,
    index: int,
    score: np.ndarray,
    score_name: str,
    score_range: tuple[float, float],
    output_dir: Path,
) -> None:
    """Draw image, ground truth and heat map of a record into ``output_dir/visualizations``."""
    image, label = records.image(index), records.label(index)
    truth = overlay(
        image, colorize_labels(label, [KNOWN_COLOR, ANOMALY_COLOR]), np.where(label == 1, 0.75, 0.6)
    )
    low, high = score_range
    captions = [
        records.image_id(index),
        "ground truth: anomaly orange, void dark",
        f"{score_name}: {low:.3g} (dark) to {high:.3g} (bright)",
    ]
    _save(records, index, [image, truth, heat_map(score, low, high)], captions, output_dir)


def closed_set_overlay(
    records: EvaluatedRecords, index: int, prediction: np.ndarray, output_dir: Path
) -> None:
    """Draw image, ground truth and predicted classes of a record into ``output_dir/visualizations``."""
    image, label = records.image(index), records.label(index)
    colors = records.metadata.get("stuff_colors") or distinct_colors(len(records.metadata.stuff_classes))
    truth, predicted = (overlay(image, colorize_labels(part, colors), 0.75) for part in (label, prediction))
    captions = [records.image_id(index), "ground truth (void dark)", "prediction"]
    _save(records, index, [image, truth, predicted], captions, output_dir)


def _save(
    records: EvaluatedRecords, index: int, panels: list[np.ndarray], captions: list[str], output_dir: Path
) -> None:
    target = output_dir / "visualizations" / records.name / f"{records.image_id(index)}.png"
    save_picture(target, side_by_side(panels, captions))


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """A palette for data sets without one: the bit-interleaved colours of Pascal VOC, black left out."""
    # Bit k of a class belongs to channel k mod 3, the lowest bits count most.
    bits = np.arange(1, count + 1)[:, None] >> np.arange(24) & 1
    channels = [(bits[:, channel::3] << np.arange(7, -1, -1)).sum(axis=1).tolist() for channel in range(3)]
    return list(zip(*channels, strict=True))

"""What evaluation writes, each file complete or not at all: arrays, JSON, overlays of images (the image, its
ground truth and what the model says, side by side); and score maps kept until what needs them is known."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.visualization import (
    colorize_labels,
    heat_map,
    overlay,
    robust_range,
    side_by_side,
)

from .records import EvaluatedRecords

KNOWN_COLOR = (70, 80, 100)
ANOMALY_COLOR = (255, 150, 0)
LEVELS_WIDTH = 512
_SAMPLED = 20_000  # pixels of a frame from which the colour range is found


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, by which weights are told apart."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def save_array(target: Path, array: np.ndarray) -> None:
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def save_picture(target: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture as PNG."""
    with replacing(target) as temporary:
        temporary.write_bytes(cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes())


def json_text(value: Any, *, digits: int | None = None) -> str:
    """Strict JSON: NaN becomes null, infinities the strings "inf" and "-inf".

    Args:
        digits: round to so many significant digits, and put everything on one line.
    """
    if digits is None:
        return json.dumps(_jsonable(value, digits), indent=2, allow_nan=False)
    return json.dumps(_jsonable(value, digits), separators=(",", ":"), allow_nan=False)


def save_json(target: Path, value: Any, *, digits: int | None = None) -> None:
    """Write :func:`json_text`."""
    text = json_text(value, digits=digits)
    with replacing(target) as temporary:
        temporary.write_text(text + "\n")


def _jsonable(value: Any, digits: int | None) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_jsonable(item, digits) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return None if math.isnan(value) else str(value)
        return value if digits is None else float(f"{value:.{digits}g}")
    return str(value) if isinstance(value, Path) else value


class KeptScores:
    """Arrays by key in a temporary folder, which goes with :meth:`clear`, the object or the interpreter.

    In memory, between a network's temporaries that come and go, each would leave holes too small for the
    next frame's: the maps of 500 frames of 64 x 128 pixels, 33 MB, cost 0.5 to 2 GB.

    Args:
        folder: where the temporary folder is made, by default where the system has its own; a full data set
            of large frames can take many gigabytes.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._parent = folder
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files: dict[Hashable, Path] = {}

    def keys(self) -> list[Any]:
        return list(self._files)

    def put(self, key: Hashable, array: np.ndarray) -> None:
        """Keep a copy of ``array``."""
        if self._folder is None:
            if self._parent is not None:
                Path(self._parent).mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="kept_scores_", dir=self._parent)
        self._files[key] = Path(self._folder.name) / f"{uuid4().hex}.npy"
        np.save(self._files[key], array, allow_pickle=False)

    def get(self, key: Hashable) -> np.ndarray:
        """The array under ``key``; raises KeyError if there is none."""
        return np.load(self._files[key], allow_pickle=False)

    def drop(self, key: Hashable) -> None:
        """Forget the array under ``key``; raises KeyError if there is none."""
        self._files.pop(key).unlink()

    def clear(self) -> None:
        """Forget everything and remove the temporary folder."""
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


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
        "ground truth: anomaly orange, void dark",
        f"{score_name}: {low:.3g} (dark) to {high:.3g} (bright)",
    ]
    _save(records, index, [image, truth, heat_map(score, low, high)], captions, output_dir)


def save_levels(
    records: EvaluatedRecords, index: int, score: np.ndarray, thresholds: np.ndarray, output_dir: Path
) -> None:
    """Write for the report's slider ``output_dir/curves/<data set>/<image id>.png``, at most 512 pixels wide:
    in red how many of the thresholds (ascending, at most 255) a pixel's score reaches, in green its label."""
    label = records.label(index)
    levels = np.searchsorted(thresholds, score, side="right").astype(np.uint8)
    picture = np.dstack([levels, label, np.zeros_like(label)])
    if label.shape[1] > LEVELS_WIDTH:
        height = max(1, round(label.shape[0] * LEVELS_WIDTH / label.shape[1]))
        picture = cv2.resize(picture, (LEVELS_WIDTH, height), interpolation=cv2.INTER_NEAREST)
    save_picture(output_dir / "curves" / records.name / f"{records.image_id(index)}.png", picture)


def closed_set_overlay(
    records: EvaluatedRecords, index: int, prediction: np.ndarray, output_dir: Path
) -> None:
    """Draw image, ground truth and predicted classes of a record into ``output_dir/visualizations``."""
    image, label = records.image(index), records.label(index)
    colors = records.metadata.get("stuff_colors") or distinct_colors(len(records.metadata.stuff_classes))
    truth = overlay(image, colorize_labels(label, colors), 0.75)
    predicted = overlay(image, colorize_labels(prediction, colors), 0.75)
    _save(records, index, [image, truth, predicted], ["ground truth (void dark)", "prediction"], output_dir)


def _save(
    records: EvaluatedRecords, index: int, panels: list[np.ndarray], captions: list[str], output_dir: Path
) -> None:
    image_id = records.image_id(index)
    picture = side_by_side(panels, [image_id, *captions])
    save_picture(output_dir / "visualizations" / records.name / f"{image_id}.png", picture)


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """A palette for data sets without one: the bit-interleaved colours of Pascal VOC, black left out."""
    # Bit k of a class belongs to channel k mod 3, the lowest bits count most.
    bits = np.arange(1, count + 1)[:, None] >> np.arange(24) & 1
    channels = [(bits[:, channel::3] << np.arange(7, -1, -1)).sum(axis=1).tolist() for channel in range(3)]
    return list(zip(*channels, strict=True))

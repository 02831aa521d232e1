"""The files of a prediction: each appears whole, under its final name, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.evaluation.files import save_array, save_json, save_picture

from .results import Prediction

_LEVELS = 65535


class PredictionWriter:
    """Writes predictions into a folder::

        overlays/NAME.png       heat map, contours and boxes over the image
        segmentation/NAME.png   class ids, 8 bits, with the data set's palette
        scores/NAME.npy|.png    the raw score, if asked for; tools/evaluate.py reads the folder
        components/NAME.json    the anomalies, if there is a threshold

    Args:
        folder: made if it is not there.
        score_format: "npy" (float32), "png16" (see :func:`save_score_png`), or None: no scores.
    """

    def __init__(self, folder: Path, score_format: str | None = None) -> None:
        self.folder = folder
        self.score_format = score_format

    def write(self, name: str, prediction: Prediction) -> dict[str, Any]:
        """Write all files of one image.

        Returns:
            What was found, and where it was written, as plain values.
        """
        overlay = self.folder / "overlays" / f"{name}.png"
        segmentation = self.folder / "segmentation" / f"{name}.png"
        save_picture(overlay, prediction.overlay())
        save_segmentation(segmentation, prediction.segmentation, prediction.class_colors)
        height, width = prediction.score.shape
        found: dict[str, Any] = {
            "height": height,
            "width": width,
            "mean_score": float(prediction.score.mean(dtype=np.float64)),
            "max_score": float(prediction.score.max()),
            "anomalies": None,
            "overlay": str(overlay),
            "segmentation": str(segmentation),
            "score": None,
            "components": None,
        }
        if self.score_format:
            found["score"] = str(self.write_score(name, prediction.score))
        if prediction.threshold is not None:
            target = self.folder / "components" / f"{name}.json"
            save_json(target, components_document(prediction))
            found |= {"anomalies": len(prediction.components), "components": str(target)}
        return found

    def write_score(self, name: str, score: np.ndarray) -> Path:
        """Write a raw score, (H, W) float32, in the chosen format; returns its file."""
        if self.score_format == "png16":
            target = self.folder / "scores" / f"{name}.png"
            save_score_png(target, score)
        else:
            target = self.folder / "scores" / f"{name}.npy"
            save_array(target, score)
        return target


def components_document(prediction: Prediction) -> dict[str, Any]:
    """The anomalies of an image as plain values."""
    return {
        "image": prediction.source,
        "size": list(prediction.score.shape),
        "score": prediction.score_name,
        "threshold": prediction.threshold,
        "components": [component.to_json() for component in prediction.components],
    }


def save_score_png(target: Path, score: np.ndarray) -> None:
    """Write a score map as 16-bit PNG whose text chunks say score = pixel · scale + offset.

    The map's own range is spread over the 65536 levels, so the error is at most half of ``scale``.

    Args:
        score: (H, W) float32.

    Raises:
        ValueError: a score is infinite or NaN.
    """
    if not np.isfinite(score).all():
        raise ValueError(f"{target}: a 16-bit PNG holds finite scores only; save them as npy")
    values = score.astype(np.float64)
    offset = values.min()
    scale = (values.max() - offset) / _LEVELS or 1.0
    text = PngInfo()
    text.add_text("scale", repr(float(scale)))
    text.add_text("offset", repr(float(offset)))
    pixels = np.rint((values - offset) / scale).astype(np.uint16)
    with replacing(target) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=text)


def save_segmentation(target: Path, segmentation: np.ndarray, colors: Sequence[Sequence[int]]) -> None:
    """Write class ids, (H, W) uint8, as a PNG that looks up its colours in a palette (RGB by class id)."""
    image = Image.fromarray(segmentation)
    image.putpalette([channel for color in colors for channel in color])
    with replacing(target) as temporary:
        image.save(temporary, format="PNG")

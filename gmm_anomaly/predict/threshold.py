"""A threshold for a chosen rate of false alarms: found on a data set, kept in a file, and used again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from gmm_anomaly.engine.belonging import require_same
from gmm_anomaly.evaluation.files import range_sample, save_json, shared_range
from gmm_anomaly.metrics import PixelMetrics
from gmm_anomaly.metrics.score_counts import row_at


@dataclass(frozen=True)
class Threshold:
    """Above ``value`` a pixel is anomalous.

    Attributes:
        value: in units of the score.
        score: the score it holds for, as ``TEST.SCORES`` and the post-processes name it.
        color_range: scores of the darkest and the brightest colour of overlays.
        target_fpr: the share of known pixels that may lie above.
        measured_fpr: the share of the data set's known pixels that do.
        dataset: the data set it was found on. images, known_pixels: how many there were.
        weights_sha256: of the checkpoint it was found with; None for a model without one.
        belongs_to: what it was found under (:func:`gmm_anomaly.engine.belonging.belongings`); empty: not
            known.
    """

    value: float
    score: str
    color_range: tuple[float, float]
    target_fpr: float
    measured_fpr: float
    dataset: str
    images: int
    known_pixels: int
    weights_sha256: str | None = None
    belongs_to: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write it as JSON; the file appears whole or not at all."""
        save_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Threshold:
        """Read what :meth:`save` wrote. Raises FileNotFoundError, ValueError for something else."""
        try:
            found = json.loads(Path(path).expanduser().read_text(encoding="utf-8-sig"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no threshold file {path}; `gmm-anomaly predict --threshold-on DATASET` writes one"
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: not a threshold file ({error})") from error
        expected = [entry.name for entry in fields(cls) if entry.default_factory is MISSING]
        if not isinstance(found, dict) or set(found) - {"belongs_to"} != set(expected):
            raise ValueError(f"{path}: not a threshold file: expected the entries {', '.join(expected)}")
        # Infinities are strings.
        return cls(**found | {"value": float(found["value"]), "color_range": tuple(found["color_range"])})

    def require(
        self, score: str, weights_sha256: str | None, belongs_to: Mapping[str, Any] | None = None
    ) -> None:
        """Raise ValueError unless it was found for this score of this checkpoint, and these classes; another
        test size, normalisation, ... is a warning."""
        if score != self.score:
            raise ValueError(
                f"the threshold was found for the score {self.score!r}, the predictor gives {score!r}; "
                "choose that score, or find a threshold anew"
            )
        if weights_sha256 != self.weights_sha256:
            raise ValueError(
                "the threshold was found with other weights (their SHA-256 differs); find one anew, or give "
                f"the bare number {self.value:.6g}"
            )
        require_same(self.belongs_to, belongs_to, f"the threshold found on {self.dataset}")


def find_threshold(
    frames: Iterable[tuple[np.ndarray, np.ndarray]],
    target_fpr: float,
    *,
    score: str,
    dataset: str,
    weights_sha256: str | None = None,
    belongs_to: Mapping[str, Any] | None = None,
) -> Threshold:
    """The lowest threshold above which at most ``target_fpr`` of all known pixels lie.

    The pixels of all images count alike. The threshold is a score that occurs, and ties are never split.
    Beyond 2²⁴ different scores it has a relative resolution of 2⁻¹³.

    Args:
        frames: scores (H, W) float32 of each image, and where its pixels are known, (H, W) bool.
        target_fpr: in (0, 1).
        score, dataset, weights_sha256, belongs_to: see :class:`Threshold`.

    Raises:
        ValueError: ``target_fpr`` outside of (0, 1), or no known pixel.
    """
    if not 0 < target_fpr < 1:
        raise ValueError(
            f"target_fpr: expected a share of pixels between 0 and 1, such as 0.05, found {target_fpr}"
        )
    metrics = PixelMetrics(precision=None)
    samples = []
    for scores, known in frames:
        metrics.update(scores, np.where(known, 0, 255))
        samples.append(range_sample(scores))
    counts = metrics.counts()
    pixels = counts.pixels
    if not pixels:
        raise ValueError(f"{dataset}: no known pixel to find a threshold on")
    row = int(row_at(counts.known, np.array(pixels - 1 - math.floor(target_fpr * pixels))))
    return Threshold(
        value=float(counts.low[row]),
        score=score,
        color_range=shared_range(samples),
        target_fpr=target_fpr,
        measured_fpr=int(counts.known[row + 1 :].sum()) / pixels,
        dataset=dataset,
        images=len(samples),
        known_pixels=pixels,
        weights_sha256=weights_sha256,
        belongs_to=belongs_to or {},
    )

"""A threshold for a chosen rate of false alarms: found on a data set, kept in a file, and used again."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from gmm_anomaly.evaluation.files import range_sample, save_json, shared_range
from gmm_anomaly.metrics.score_counts import FloatCounts

# Different scores that are kept exactly, at 12 bytes each; with more the threshold has a relative resolution
# of 2⁻¹³.
MAX_DISTINCT = 2**25


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
        expected = [entry.name for entry in fields(cls)]
        if not isinstance(found, dict) or set(found) != set(expected):
            raise ValueError(f"{path}: not a threshold file: expected the entries {', '.join(expected)}")
        # Infinities are strings.
        return cls(**found | {"value": float(found["value"]), "color_range": tuple(found["color_range"])})

    def require(self, score: str, weights_sha256: str | None) -> None:
        """Raise ValueError unless it was found for this score of this checkpoint."""
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


def find_threshold(
    frames: Iterable[tuple[np.ndarray, np.ndarray]],
    target_fpr: float,
    *,
    score: str,
    dataset: str,
    weights_sha256: str | None = None,
) -> Threshold:
    """The lowest threshold above which at most ``target_fpr`` of all known pixels lie.

    The pixels of all images count alike. The threshold is a score that occurs, and ties are never split.

    Args:
        frames: scores (H, W) float32 of each image, and where its pixels are known, (H, W) bool.
        target_fpr: in (0, 1).
        score, dataset, weights_sha256: see :class:`Threshold`.

    Raises:
        ValueError: ``target_fpr`` outside of (0, 1), or no known pixel.
    """
    if not 0 < target_fpr < 1:
        raise ValueError(
            f"target_fpr: expected a share of pixels between 0 and 1, such as 0.05, found {target_fpr}"
        )
    counts = FloatCounts(MAX_DISTINCT)
    samples = []
    for scores, known in frames:
        values = scores[known]
        counts.add(values, values[:0])
        samples.append(range_sample(scores))
    ranked, _ = counts.totals()
    if not ranked.total:
        raise ValueError(f"{dataset}: no known pixel to find a threshold on")
    value = ranked.at_rank(np.array([ranked.total - 1 - math.floor(target_fpr * ranked.total)]))
    _, up_to = ranked.ranks(value)
    return Threshold(
        value=float(value[0]),
        score=score,
        color_range=shared_range(samples),
        target_fpr=target_fpr,
        measured_fpr=1 - int(up_to[0]) / ranked.total,
        dataset=dataset,
        images=len(samples),
        known_pixels=int(ranked.total),
        weights_sha256=weights_sha256,
    )

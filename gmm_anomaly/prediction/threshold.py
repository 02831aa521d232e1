"""A threshold for a chosen rate of false alarms: found on a data set, kept in a file, and used again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog

from gmm_anomaly.data.label_rule import ANOMALY, CLOSED_SET, IGNORE_LABEL
from gmm_anomaly.data.registration import require_known
from gmm_anomaly.evaluation.files import save_json
from gmm_anomaly.evaluation.overlays import range_sample, shared_range
from gmm_anomaly.evaluation.records import EvaluatedRecords
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
        measured_fpr: the share of the calibration set's known pixels that do.
        dataset: the calibration set. images, known_pixels: how many there were.
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
    weights_sha256: str | None = field(default=None)

    def save(self, path: str | Path) -> None:
        """Write it as JSON; the file appears whole or not at all."""
        save_json(Path(path), asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Threshold:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file. ValueError: it holds something else.
        """
        try:
            found = json.loads(Path(path).read_text())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"no threshold file {path}; `gmm-anomaly predict --calibrate-on DATASET` writes one"
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}: not a threshold file ({error})") from error
        expected = [entry.name for entry in fields(cls)]
        if not isinstance(found, dict) or set(found) != set(expected):
            raise ValueError(
                f"{path}: not a threshold file: expected the entries {', '.join(expected)}, found "
                f"{', '.join(found) if isinstance(found, dict) else type(found).__name__}"
            )
        found["value"] = float(found["value"])  # infinities are strings
        found["color_range"] = tuple(found["color_range"])
        return cls(**found)

    def require(self, score: str, weights_sha256: str | None) -> None:
        """Raise ValueError unless it was found for this score of this checkpoint."""
        if score != self.score:
            raise ValueError(
                f"the threshold was found for the score {self.score!r}, the predictor gives {score!r}; "
                "choose that score, or calibrate anew"
            )
        if weights_sha256 != self.weights_sha256:
            raise ValueError(
                "the threshold was found with other weights (their SHA-256 differs); calibrate anew, or give "
                f"the bare number {self.value:.6g}"
            )


def calibration_records(dataset_name: str) -> EvaluatedRecords:
    """Images with labels of a registered data set, closed or with anomalies.

    Raises:
        ValueError: an unknown name, withheld labels. FileNotFoundError: it is not on disk.
    """
    require_known(dataset_name)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    return EvaluatedRecords(dataset_name, kind if kind == CLOSED_SET else ANOMALY)


def find_threshold(
    records: EvaluatedRecords,
    scores: Iterable[np.ndarray],
    target_fpr: float,
    *,
    score_name: str,
    weights_sha256: str | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Threshold:
    """The lowest threshold above which at most ``target_fpr`` of all known pixels lie.

    Known are the pixels labelled 0 of an anomaly set, and those of any class of a closed set. The pixels of
    all images count alike. The threshold is a score that occurs, and ties are never split.

    Args:
        records: the calibration set.
        scores: (H, W) float32 for each record, in their order.
        target_fpr: in (0, 1).
        progress: wraps the indices of the records, to show how far it is.

    Raises:
        ValueError: ``target_fpr`` outside of (0, 1), NaN among the scores, another size than the label, or no
            known pixel.
    """
    require_rate(target_fpr)
    closed = records.metadata.evaluator_type == CLOSED_SET
    counts = FloatCounts(MAX_DISTINCT)
    samples = []
    for index, score in zip(progress(range(len(records))), scores, strict=True):
        label = records.label(index)
        where = f"{records.name}, image {records.image_id(index)!r}"
        if score.shape != label.shape:
            raise ValueError(f"{where}: the score is {score.shape}, the label {label.shape}")
        known = score[label != IGNORE_LABEL if closed else label == 0]
        if np.isnan(known).any():
            raise ValueError(f"{where}: NaN among the scores")
        counts.add(known, known[:0])
        samples.append(range_sample(score))
    ranked, _ = counts.totals()
    if not ranked.total:
        raise ValueError(f"{records.name}: no known pixel to find a threshold on")
    rank = ranked.total - 1 - math.floor(target_fpr * ranked.total)
    value = ranked.at_rank(np.array([rank]))
    _, up_to = ranked.ranks(value)
    return Threshold(
        value=float(value[0]),
        score=score_name,
        color_range=shared_range(samples),
        target_fpr=target_fpr,
        measured_fpr=1 - int(up_to[0]) / ranked.total,
        dataset=records.name,
        images=len(records),
        known_pixels=int(ranked.total),
        weights_sha256=weights_sha256,
    )


def require_rate(target_fpr: float) -> None:
    """Raise ValueError unless a rate of false alarms lies in (0, 1)."""
    if not 0 < target_fpr < 1:
        raise ValueError(
            f"target_fpr: expected a share of pixels between 0 and 1, such as 0.05, found {target_fpr}"
        )

"""Names of the evaluation protocols and of the rules by which papers read a false positive rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ProtocolName = Literal["pooled", "fishyscapes", "smiyc", "smiyc_uniform", "per_image"]
Precision = Literal["float32", "float16"]

PROTOCOLS: dict[str, str] = {
    "pooled": "all valid pixels of the data set, one threshold per distinct score",
    "fishyscapes": "as pooled, by the rules of the Fishyscapes benchmark (bdl-benchmark)",
    "smiyc": "SegmentMeIfYouCan: 768 quantile bins per frame, pooled by threshold",
    "smiyc_uniform": "SegmentMeIfYouCan's variant with 4096 equal bins between -0.01 and 1.01",
    "per_image": "StreetHazards, PAnS: mean over the images that hold known and anomalous pixels",
}

PRECISIONS: tuple[str, ...] = ("float32", "float16")


@dataclass(frozen=True)
class FprRule:
    """At which threshold, walking down from the highest score, the false positive rate is read.

    Attributes:
        rate: the true positive rate aimed at.
        kind: ``reached`` (first TPR ≥ rate), ``exceeded`` (first TPR > rate) or ``nearest`` (|TPR − rate|
            smallest in float64, the first such threshold when walking up from TPR = 1; of a plateau of equal
            TPR below 1 that is the end with the larger FPR).
    """

    rate: float
    kind: Literal["reached", "exceeded", "nearest"]


FPR_RULES: dict[str, FprRule] = {
    "first": FprRule(0.95, "reached"),  # Fishyscapes, SegmentMeIfYouCan
    "nearest": FprRule(0.95, "nearest"),  # StreetHazards (Hendrycks et al.), PAnS
    "rba": FprRule(0.95, "exceeded"),  # RbA, DenseHybrid
    "maskomaly": FprRule(0.90, "exceeded"),  # Maskomaly, whose tables call it FPR
}

# The rule behind each protocol's FPR95.
PROTOCOL_FPR_RULE: dict[str, str] = {name: "first" for name in PROTOCOLS} | {"per_image": "nearest"}

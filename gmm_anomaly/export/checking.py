"""An exported file beside PyTorch: how far results differ, and how long both take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gmm_anomaly.benchmark.timing import Timing, side_by_side, summary

# Largest error of a score relative to the spread of all scores, and largest share of pixels of another class.
MAX_ERROR = 1e-3

Network = Callable[[Tensor], tuple[Tensor, Tensor]]


class ExportMismatchError(RuntimeError):
    """An exported file that does not give what PyTorch gives."""


@dataclass(frozen=True)
class Comparison:
    """How two networks differ on one batch.

    Attributes:
        batch: (B, 3, H, W) of the images.
        absolute: largest difference of a score.
        relative: that, divided by the spread (largest minus smallest) of PyTorch's scores over all batches.
            Scores have no natural zero, so their size is no measure.
        classes: share of the pixels whose class differs.
    """

    batch: tuple[int, ...]
    absolute: float
    relative: float
    classes: float


def compare(reference: Network, exported: Network, batches: Sequence[Tensor]) -> list[Comparison]:
    """Both networks on each batch (B, 3, H, W).

    Raises:
        ExportMismatchError: another shape or type of an output, or the exported network fails on a batch.
    """
    found = []
    with torch.no_grad():
        expected = [reference(batch) for batch in batches]
    low = min(float(score.amin()) for _, score in expected)
    high = max(float(score.amax()) for _, score in expected)
    spread = high - low if high > low else max(abs(high), torch.finfo(torch.float32).tiny)
    for batch, (segmentation, score) in zip(batches, expected, strict=True):
        shape = tuple(batch.shape)
        try:
            with torch.no_grad():
                got_segmentation, got_score = exported(batch)
        except Exception as error:  # of a foreign engine
            raise ExportMismatchError(f"the exported network fails on a batch {shape}: {error}") from error
        for name, ours, theirs in (
            ("segmentation", segmentation, got_segmentation),
            ("score", score, got_score),
        ):
            if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
                raise ExportMismatchError(
                    f"{name} of a batch {shape}: expected {tuple(ours.shape)} {ours.dtype}, the exported "
                    f"network gives {tuple(theirs.shape)} {theirs.dtype}"
                )
        difference = (got_score.double() - score.double()).abs()
        # NaN is no small error.
        absolute = float("inf") if not bool(difference.isfinite().all()) else float(difference.amax())
        classes = float((got_segmentation != segmentation).double().mean())
        found.append(Comparison(shape, absolute, absolute / spread, classes))
    return found


def require_equal(found: Sequence[Comparison], limit: float = MAX_ERROR) -> None:
    """Raise ExportMismatchError for an error above ``limit``, of scores or of classes."""
    for comparison in found:
        for what, error in (("scores", comparison.relative), ("classes", comparison.classes)):
            if not error <= limit:
                raise ExportMismatchError(
                    f"the exported network's {what} differ from PyTorch's by {error:.3g} on a batch "
                    f"{comparison.batch}, the limit is {limit:g}; no file was written"
                )


def time_networks(networks: dict[str, Network], image: Tensor, repeats: int) -> dict[str, Timing]:
    """Seconds each network takes for one image (1, 3, H, W), measured in turns."""

    def runner(network: Network) -> Callable[[], object]:
        return lambda: network(image)

    with torch.no_grad():
        seconds = side_by_side({name: runner(network) for name, network in networks.items()}, repeats)
    return {name: summary(values) for name, values in seconds.items()}


def as_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [asdict(comparison) for comparison in found]

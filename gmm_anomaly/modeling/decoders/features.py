"""Which backbone features a decoder takes."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import ShapeSpec


def select_features(
    shapes: dict[str, ShapeSpec], names: Sequence[str], *, at_least: int
) -> dict[str, ShapeSpec]:
    """The named features; with no names the first and the last one.

    Raises:
        ValueError: a name the backbone does not give, or fewer features than the decoder needs.
    """
    known = list(shapes)
    chosen = list(names) or list(dict.fromkeys((known[0], known[-1])))
    unknown = [name for name in chosen if name not in shapes]
    if unknown or len(chosen) < at_least:
        raise ValueError(
            f"MODEL.DECODER.IN_FEATURES: expected at least {at_least} of the backbone's features "
            f"({', '.join(known)}), found {chosen}"
        )
    return {name: shapes[name] for name in chosen}

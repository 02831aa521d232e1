"""Which backbone features a decoder takes."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import ShapeSpec


def select_features(
    shapes: dict[str, ShapeSpec],
    names: Sequence[str],
    *,
    default: Sequence[str],
    at_least: int = 1,
    at_most: int | None = None,
) -> dict[str, ShapeSpec]:
    """The named features, from high to low resolution; with no names those of ``default``.

    Raises:
        ValueError: a name the backbone does not give, or fewer or more features than the decoder takes.
    """
    chosen = list(dict.fromkeys(names or default))
    unknown = [name for name in chosen if name not in shapes]
    if unknown or len(chosen) < at_least or (at_most is not None and len(chosen) > at_most):
        count = f"exactly {at_least}" if at_least == at_most else f"at least {at_least}"
        raise ValueError(
            f"MODEL.DECODER.IN_FEATURES: expected {count} of the backbone's features "
            f"({', '.join(shapes)}), found {chosen}"
        )
    return {name: shapes[name] for name in sorted(chosen, key=lambda name: shapes[name].stride)}


def first_and_last(shapes: dict[str, ShapeSpec]) -> list[str]:
    """Names of the backbone's first and last feature."""
    return [list(shapes)[0], list(shapes)[-1]]

"""What became of a checkpoint, in words and as a table."""

from __future__ import annotations

from tabulate import tabulate
from torch import nn

from .convert import BANK, Conversion

# Longest prefix first.
PARTS = {
    "mixtures": BANK,
    "classifier": "classifier.",
    "decoder": "decoder.",
    "backbone": "backbone.",
    "calibration": "",
}


def _part(name: str) -> str:
    return next(part for part, prefix in PARTS.items() if name.startswith(prefix))


def mapping_table(model: nn.Module, result: Conversion) -> str:
    """A line for each part of the model: tensors filled, of how many, their values, the largest shape."""
    rows = []
    for part in reversed(PARTS):
        wanted = [name for name in model.state_dict() if _part(name) == part]
        if not wanted:
            continue
        matched = {name: value for name, value in result.tensors.items() if _part(name) == part}
        largest = max(matched.values(), key=lambda value: value.numel(), default=None)
        shape = "" if largest is None else str(tuple(largest.shape))
        rows.append(
            [part, len(matched), len(wanted), sum(value.numel() for value in matched.values()), shape]
        )
    return tabulate(
        rows, ["part", "matched", "tensors", "values", "largest shape"], tablefmt="github", intfmt=","
    )


def report(model: nn.Module, result: Conversion) -> str:
    """The table, and every name that does not fit."""
    sections = [mapping_table(model, result)]
    for heading, names in (
        ("missing (in the model, not in the checkpoint)", result.missing),
        (
            "of another shape",
            [f"{name}: {found} in the checkpoint, {wanted} in the model"
             for name, (found, wanted) in result.misshapen.items()],
        ),
        ("unused (in the checkpoint, not in the model)", result.unused),
    ):  # fmt: skip
        if names:
            sections.append("\n  ".join([f"{heading}: {len(names)}", *names]))
    if result.spare:
        sections.append(f"not needed (computed by the model, or training leftovers): {len(result.spare)}")
    sections += [f"note: {note}" for note in result.notes]
    return "\n".join(sections)

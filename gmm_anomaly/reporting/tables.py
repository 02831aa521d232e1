"""Tables that scroll by themselves where they are too wide for the page."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Html, tag


def table(
    headers: Sequence[object], rows: Sequence[Sequence[object]], *, names: int = 1, caption: object = None
) -> Html:
    """A table.

    Args:
        headers, rows: text is escaped. The first ``names`` columns are names, the others numbers.
        caption: below the table.
    """
    head = tag(
        "tr", [tag("th", cell, class_=_class(at, names), scope="col") for at, cell in enumerate(headers)]
    )
    body = [
        tag("tr", [tag("td", cell, class_=_class(at, names)) for at, cell in enumerate(row)]) for row in rows
    ]
    whole = tag("table", tag("thead", head), tag("tbody", body))
    note = tag("p", caption, class_="note") if caption else None
    return tag("div", tag("div", whole, class_="wide"), note, class_="table")


def bar(share: float | None, text: Html) -> Html:
    """A number with a bar behind it. ``share``: from 0 to 1, as far as rounding goes; NaN draws none."""
    if share is None or not share >= 0:
        return text
    return tag("span", text, tag("i", style=f"width:{100 * min(share, 1.0):.1f}%"), class_="bar")


def _class(column: int, names: int) -> str:
    return "name" if column < names else "number"

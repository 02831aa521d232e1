"""HTML that is escaped by construction: text becomes markup only through :func:`tag`."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable

VOID_TAGS = {"br", "hr", "img", "wbr", "meta", "rect", "line", "path", "polyline"}


class Html(str):
    """Markup. Any other ``str`` is text, and is escaped where it enters markup."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        children: markup as it is, text escaped, None left out, lists and tuples one by one.
        attributes: None leaves one out. Underscores become hyphens, and one at the end goes: ``class_``.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID_TAGS:
        return Html(f"<{name}{pairs}/>")
    return Html(f"<{name}{pairs}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Markup and text one after the other."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, (list, tuple)):
            parts.append(str(join(child)))
        elif child is not None:
            parts.append(_escaped(child))
    return Html("".join(parts))


def breakable(text: str) -> Html:
    """A long name that may go on in the next line after an underscore or slash, and before a capital letter
    within it."""
    first, *rest = re.split(r"(?<=[_/])|(?<=[a-z0-9])(?=[A-Z])", text)
    return join([first, [[tag("wbr"), part] for part in rest]])


def number(value: float | None, digits: int = 4, prefix: str = "") -> Html:
    """A number as people read it, with all its digits for programs in a ``data`` element; a dash for NaN."""
    if value is None or not math.isfinite(value):
        return tag("span", "-" if value is None or math.isnan(value) else str(value), class_="none")
    return tag("data", f"{prefix}{value:.{digits}f}", value=repr(value))


def significant(value: float | None) -> Html:
    """As :func:`number`, with four significant digits."""
    if value is None or not math.isfinite(value):
        return number(value)
    return tag("data", f"{value:.4g}", value=repr(value))


def _escaped(value: object) -> str:
    # A file name may hold bytes that are no UTF-8.
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"), quote=True)

"""What a run does not have, and the command that makes it."""

from __future__ import annotations

from .markup import Html, tag


def missing(what: str, command: str | None = None) -> Html:
    """A note: what is missing and why. ``command`` makes it."""
    made = ["It is made by:", tag("pre", command)] if command else None
    return tag("div", tag("p", what), made, class_="missing")

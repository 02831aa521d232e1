"""A run of ``train_net.py`` as one self-contained HTML page; several runs side by side."""

from __future__ import annotations

from .page import render_page
from .run import Run, read_run

__all__ = ["Run", "read_run", "render_page"]

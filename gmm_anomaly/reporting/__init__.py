"""A run of ``train_net.py`` as one self-contained HTML page; several runs side by side.

Curves are drawn as SVG by hand: a chart is a few kilobytes of text that takes the page's colours, light and
dark, and stays sharp in print, which a picture rendered by a plotting library would not.
"""

from __future__ import annotations

from .page import render_page
from .run_data import Run, read_run

__all__ = ["Run", "read_run", "render_page"]

"""Checkpoints of other code bases, renamed to this project's segmentors: MMSegmentation's, the released
GMMSeg's among them, and files of a backbone alone."""

from __future__ import annotations

from .convert import Conversion, convert
from .report import mapping_table, report
from .source import read_source

__all__ = ["Conversion", "convert", "mapping_table", "read_source", "report"]

"""Registers every data set of the project with Detectron2's catalogs; touches no files."""

from __future__ import annotations

from .camvid import register_camvid
from .street_datasets import register_streets


def register_all() -> None:
    register_streets()
    register_camvid()

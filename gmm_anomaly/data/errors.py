"""What can be wrong with a data set on disk, as exceptions that ``tools/check_datasets.py`` can tell
apart."""

from __future__ import annotations


class MissingDataError(FileNotFoundError):
    """The folder of a data set is not there."""


class LayoutError(ValueError):
    """The folder is there, but not what has to be in it: a folder, an image, a label."""

"""What the public validation sets of Fishyscapes (Blum et al., IJCV 2021) have in common."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import LayoutError
from .label_rule import ANOMALY_LABEL_MAP
from .pairing import LABEL_EXTENSIONS, list_files

LABEL_MAP = tuple(ANOMALY_LABEL_MAP.items())
PROTOCOL = "fishyscapes"

# "0000_04_Maurener_Weg_8_000000_000030": the benchmark's number, then the id of the frame it is based on.
NUMBERED = re.compile(r"(\d+)_(.+)")


def list_labels(folder: Path) -> dict[str, Path]:
    """The benchmark's flat ``NUMBER_BASE_labels.png`` by "NUMBER_BASE". Raises LayoutError for another
    name."""
    labels = list_files(folder, suffix="_labels", extensions=LABEL_EXTENSIONS)
    for key, path in labels.items():
        if not NUMBERED.fullmatch(key):
            raise LayoutError(f"{path} is not named NUMBER_FRAME_labels.png, as the benchmark's labels are")
    return labels


def base_id(key: str) -> str:
    """Id of the LostAndFound or Cityscapes frame that a label "NUMBER_BASE" belongs to."""
    match = NUMBERED.fullmatch(key)
    assert match is not None
    return match.group(2)

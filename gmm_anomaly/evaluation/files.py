"""Results on disk: every file appears complete or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.visualization import encode_png


def remove_partial(folder: Path) -> int:
    """Remove what killed processes left of ``replacing`` in ``folder``; returns how many files that were."""
    left = list(folder.glob(".*.partial"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def save_array(target: Path, array: np.ndarray) -> None:
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def save_picture(target: Path, picture: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture as PNG."""
    with replacing(target) as temporary:
        temporary.write_bytes(encode_png(picture))


def json_text(value: Any) -> str:
    """Strict JSON: NaN becomes null, infinities the strings "inf" and "-inf"."""
    return json.dumps(_jsonable(value), indent=2, allow_nan=False)


def save_json(target: Path, value: Any) -> None:
    """Write :func:`json_text`."""
    text = json_text(value)
    with replacing(target) as temporary:
        temporary.write_text(text + "\n")


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        return _jsonable(value.tolist())
    if isinstance(value, np.generic):
        return _jsonable(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Path):
        return str(value)
    return value

"""Pictures inside the page: overlays cut into their panels, as small JPEGs in base64."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np

from gmm_anomaly.visualization import SEPARATOR

WIDTH = 512  # of a panel on the page
QUALITY = 82
PANELS = 3


def panel_uris(path: Path) -> list[str]:
    """The panels of an overlay as data URIs; a picture of another kind in one piece.

    Raises:
        ValueError: the file is no picture.
    """
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{path} is no picture")
    width, rest = divmod(picture.shape[1] - (PANELS - 1) * SEPARATOR, PANELS)
    if rest or width < 1:
        return [_uri(picture)]
    return [
        _uri(picture[:, start : start + width]) for start in range(0, picture.shape[1], width + SEPARATOR)
    ]


def _uri(picture: np.ndarray) -> str:
    height, width = picture.shape[:2]
    if width > WIDTH:
        picture = cv2.resize(
            picture, (WIDTH, max(1, round(height * WIDTH / width))), interpolation=cv2.INTER_AREA
        )
    encoded = cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")

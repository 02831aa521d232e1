"""The overlay: a heat map whose weight grows with the score, and the anomalies' contours and boxes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from gmm_anomaly.visualization import heat_map, overlay

from .components import AnomalyComponent

# Weight of the heat map where the score is at the low and at the high end of the colour range. Between them
# it grows with the square, so that low scores leave the image to be seen.
WEAKEST, STRONGEST = 0.1, 0.8
CONTOUR_COLOR = (0, 255, 255)
BOX_COLOR = (255, 255, 255)
_DARK = (0, 0, 0)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_overlay(
    image: np.ndarray,
    score: np.ndarray,
    color_range: tuple[float, float],
    components: Sequence[AnomalyComponent] = (),
) -> np.ndarray:
    """Paint scores and anomalies over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        score: (H, W) float.
        color_range: scores of the darkest and the brightest colour; the same one makes frames comparable.
        components: largest first. Their contours are drawn cyan, their boxes white with the mean score, but
            for small ones whose number would cover another.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    low, high = color_range
    span = high - low
    level = np.clip((np.nan_to_num(score, nan=low) - low) / span, 0, 1) if span > 0 else np.zeros(score.shape)
    weight = (WEAKEST + (STRONGEST - WEAKEST) * level**2).astype(np.float32)
    picture = np.ascontiguousarray(overlay(image, heat_map(score, low, high), weight))
    # Lines that are seen at the picture's size on a screen: 1 pixel for each 600 of the longer side.
    line = max(1, round(max(image.shape[:2]) / 600))
    labels: list[tuple[int, int, int, int]] = []
    for component in components:
        cv2.drawContours(picture, [component.contour], -1, CONTOUR_COLOR, line, cv2.LINE_8)
        x, y, width, height = component.box
        cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), BOX_COLOR, line, cv2.LINE_8)
    for component in components:
        _label(picture, f"{component.mean_score:.3g}", component.box[:2], line, labels)
    return picture


def _label(
    picture: np.ndarray,
    text: str,
    corner: tuple[int, int],
    line: int,
    others: list[tuple[int, int, int, int]],
) -> None:
    """White letters on black above the corner of a box, or inside where there is no room above.

    Left out where it would cover one of the ``others`` (left, top, right, bottom); else added to them.
    """
    size = 0.36 * line + 0.04
    (width, height), below = cv2.getTextSize(text, _FONT, size, line)
    left = min(corner[0], max(0, picture.shape[1] - width - 2))
    top = corner[1] - height - below
    top = top if top >= 0 else corner[1]
    place = left, top, left + width + 1, top + height + below - 1
    if any(
        place[0] <= other[2] and other[0] <= place[2] and place[1] <= other[3] and other[1] <= place[3]
        for other in others
    ):
        return
    others.append(place)
    cv2.rectangle(picture, place[:2], place[2:], _DARK, cv2.FILLED)
    cv2.putText(picture, text, (left + 1, top + height), _FONT, size, BOX_COLOR, line, cv2.LINE_AA)

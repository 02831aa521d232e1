"""Components against SciPy's labelling and pycocotools, and the pictures pixel by pixel."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from gmm_anomaly.predict.result import (
    BOX_COLOR,
    CONTOUR_COLOR,
    STRONGEST,
    Prediction,
    find_components,
)
from gmm_anomaly.visualization import colorize_labels, heat_map


@pytest.mark.parametrize("seed", range(2))
def test_they_are_the_regions_that_scipy_finds(seed):
    noise = np.random.default_rng(seed).normal(size=(60, 80))
    score = ndimage.gaussian_filter(noise, 2).astype(np.float32)
    threshold, min_area = float(np.quantile(score, 0.8)), 12
    labels, count = ndimage.label(score > threshold, np.ones((3, 3)))
    regions = [labels == number for number in range(1, count + 1)]
    expected = {mask.tobytes(): mask for mask in regions if mask.sum() >= min_area}
    found = find_components(score, threshold, min_area)
    assert len(found) == len(expected) > 3
    areas = [int(mask.sum()) for mask in expected.values()]
    assert [component.area for component in found] == sorted(areas, reverse=True)
    for component in found:
        mask = expected[component.mask.tobytes()]
        rows, columns = np.nonzero(mask)
        x, y, width, height = component.box
        corners = (columns.min(), rows.min(), columns.max(), rows.max())
        assert (x, y, x + width - 1, y + height - 1) == corners
        assert component.mean_score == pytest.approx(score[mask].astype(np.float64).mean(), rel=1e-12)
        assert component.max_score == score[mask].max()
        # The contour, filled, is the component without its holes.
        filled = np.zeros(score.shape, np.uint8)
        cv2.fillPoly(filled, [component.contour], 1)
        np.testing.assert_array_equal(filled.astype(bool), ndimage.binary_fill_holes(mask))
        stored = json.loads(json.dumps(component.to_json()))
        np.testing.assert_array_equal(coco.decode(stored["rle"]).astype(bool), mask)
        assert coco.area(stored["rle"]) == stored["area"] == component.area
        np.testing.assert_array_equal(coco.toBbox(stored["rle"]), stored["box"])
        assert stored["contour"] == component.contour.tolist()


def test_a_pixel_at_the_threshold_is_known():
    score = np.zeros((6, 6), np.float32)
    score[1:3, 1:3] = 0.1
    score[4, 4] = 1
    score[3, 3] = np.nextafter(np.float32(0.1), np.float32(1))
    (found,) = find_components(score, float(np.float32(0.1)), 1)
    # (3, 3) and (4, 4) touch at a corner.
    assert found.area == 2 and found.box == (3, 3, 2, 2)
    # 0.1 is below the float32 next to it, and compared as it is.
    assert find_components(score, 0.1, 1)[0].area == 6
    assert find_components(score, 2.0) == []


def prediction(score: np.ndarray, **changes) -> Prediction:
    values = {
        "image": np.full((*score.shape, 3), 200, np.uint8),
        "segmentation": (np.arange(score.size).reshape(score.shape) > score.size // 2).astype(np.uint8),
        "score_name": "energy",
        "class_names": ("road", "sky"),
        "class_colors": ((128, 64, 128), (70, 130, 180)),
        "min_area": 1,
    }
    return Prediction(score=score.astype(np.float32), **(values | changes))


def test_overlay_pixel_by_pixel():
    score = np.zeros((40, 60), np.float32)
    score[20:30, 10:40] = 3
    score[:5] = 1
    result = prediction(score, threshold=2.0)
    assert len(result.components) == 1
    picture = result.overlay((-1.0, 3.0))
    heat = heat_map(score, -1.0, 3.0).astype(np.float64)
    for (row, column), level in (((25, 25), 1.0), ((2, 50), 0.5), ((37, 5), 0.25)):
        weight = STRONGEST * level**2
        expected = 200 * (1 - weight) + heat[row, column] * weight
        np.testing.assert_allclose(picture[row, column], expected, atol=0.51)
    for corner in ((20, 10), (20, 39), (29, 10), (29, 39)):
        assert tuple(picture[corner]) == BOX_COLOR
    # The same scores have the same colours in another frame of this range, whatever else is in it.
    other = np.zeros_like(score)
    other[0, 0] = 1000
    np.testing.assert_array_equal(prediction(other).overlay((-1.0, 3.0))[37, 5], picture[37, 5])
    # A slanted region shows its contour inside of its box.
    drawn = prediction(np.triu(np.ones((40, 40))), threshold=0.5).overlay((0, 1))
    assert tuple(drawn[25, 25]) == CONTOUR_COLOR and tuple(drawn[39, 20]) == BOX_COLOR
    # Without a range the photo is left alone.
    np.testing.assert_array_equal(prediction(score).overlay((0.0, 0.0)), prediction(score).image)


def test_a_prediction_shows_itself(monkeypatch):
    from matplotlib import pyplot

    result = prediction(np.linspace(0, 1, 2400).reshape(40, 60), threshold=0.5)
    assert [component.area for component in result.components] == [1200]
    assert result.components_above(0.75)[0].area == 600
    classes = colorize_labels(result.segmentation, result.class_colors)
    picture = result.picture()
    np.testing.assert_array_equal(picture[-40:, :60], result.overlay())
    np.testing.assert_array_equal(result.captioned_overlay()[-40:], result.overlay())
    assert "outlined: above 0.5" in result.legend
    np.testing.assert_array_equal(picture[-40:, -60:], classes)
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().images[0].get_array()))
    try:
        result.show()
    finally:
        pyplot.close("all")
    np.testing.assert_array_equal(shown[0], picture)

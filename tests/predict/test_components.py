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
    WEAKEST,
    Prediction,
    draw_overlay,
    find_components,
)
from gmm_anomaly.visualization import heat_map


def blobs(seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(60, 80)), 2).astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_they_are_the_regions_that_scipy_finds(seed):
    score = blobs(seed)
    threshold, min_area = float(np.quantile(score, 0.8)), 12
    labels, count = ndimage.label(score > threshold, np.ones((3, 3)))
    expected = {}
    for number in range(1, count + 1):
        mask = labels == number
        if mask.sum() >= min_area:
            expected[mask.tobytes()] = mask
    found = find_components(score, threshold, min_area)
    assert len(found) == len(expected) > 3
    assert [component.area for component in found] == sorted(
        (int(mask.sum()) for mask in expected.values()), reverse=True
    )
    for component in found:
        mask = expected[component.mask.tobytes()]
        rows, columns = np.nonzero(mask)
        x, y, width, height = component.box
        assert (x, y, x + width - 1, y + height - 1) == (
            columns.min(), rows.min(), columns.max(), rows.max()
        )  # fmt: skip
        assert component.mean_score == pytest.approx(score[mask].astype(np.float64).mean(), rel=1e-12)
        assert component.max_score == score[mask].max()
        # The contour, filled, is the component without its holes.
        filled = np.zeros(score.shape, np.uint8)
        cv2.fillPoly(filled, [component.contour], 1)
        np.testing.assert_array_equal(filled.astype(bool), ndimage.binary_fill_holes(mask))


def test_json_goes_through_pycocotools():
    for component in find_components(blobs(4), 0.1, 5):
        stored = json.loads(json.dumps(component.to_json()))
        mask = coco.decode(stored["rle"])
        np.testing.assert_array_equal(mask.astype(bool), component.mask)
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
    for arguments in ((score[0], 0.1), (score, float("nan")), (score, 0.1, -1)):
        with pytest.raises(ValueError):
            find_components(*arguments)


def test_overlay_pixel_by_pixel():
    image = np.full((40, 60, 3), 200, np.uint8)
    score = np.zeros((40, 60), np.float32)
    score[20:30, 10:40] = 3
    score[:5] = 1
    components = find_components(score, 2.0, 1)
    assert len(components) == 1
    picture = draw_overlay(image, score, (-1.0, 3.0), components)
    heat = heat_map(score, -1.0, 3.0).astype(np.float64)
    for (row, column), level in (((25, 25), 1.0), ((2, 50), 0.5), ((37, 5), 0.25)):
        weight = WEAKEST + (STRONGEST - WEAKEST) * level**2
        expected = 200 * (1 - weight) + heat[row, column] * weight
        np.testing.assert_allclose(picture[row, column], expected, atol=0.51)
    for corner in ((20, 10), (20, 39), (29, 10), (29, 39)):
        assert tuple(picture[corner]) == BOX_COLOR
    # The same scores have the same colours in another frame of this range, whatever else is in it.
    other = np.zeros_like(score)
    other[0, 0] = 1000
    np.testing.assert_array_equal(draw_overlay(image, other, (-1.0, 3.0))[37, 5], picture[37, 5])
    # A slanted region shows its contour inside of its box.
    triangle = np.triu(np.ones((40, 40), np.float32))
    drawn = draw_overlay(image[:, :40].copy(), triangle, (0, 1), find_components(triangle, 0.5, 1))
    assert tuple(drawn[25, 25]) == CONTOUR_COLOR and tuple(drawn[39, 20]) == BOX_COLOR
    assert np.isfinite(draw_overlay(image, score, (0.0, 0.0))).all()


def prediction(**changes) -> Prediction:
    values = {
        "image": np.full((40, 60, 3), 90, np.uint8),
        "score": np.linspace(0, 1, 2400, dtype=np.float32).reshape(40, 60),
        "segmentation": (np.arange(2400).reshape(40, 60) // 1200).astype(np.uint8),
        "score_name": "energy",
        "class_names": ("road", "sky"),
        "class_colors": ((128, 64, 128), (70, 130, 180)),
    }
    return Prediction(**(values | changes))


def test_a_prediction_draws_itself():
    plain, marked = prediction(), prediction(threshold=0.5)
    assert [component.area for component in marked.components] == [1200]
    assert marked.components_above(0.75)[0].area == 600
    assert (marked.overlay() != plain.overlay()).any()
    assert tuple(plain.segmentation_picture()[39, 0]) == (70, 130, 180)
    shown = marked.picture()
    np.testing.assert_array_equal(shown[-40:, :60], marked.overlay())
    np.testing.assert_array_equal(shown[-40:, -60:], marked.segmentation_picture())


def test_show(monkeypatch):
    from matplotlib import pyplot

    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf().images[0].get_array()))
    try:
        prediction().show()
    finally:
        pyplot.close("all")
    np.testing.assert_array_equal(shown[0], prediction().picture())

"""Geometry and colours of the training augmentations."""

from __future__ import annotations

import numpy as np
import pytest
from detectron2.data import transforms as T

from gmm_anomaly.data.mapper import PadTo, RandomScaledCrop, WindowResize


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def positions(height: int, width: int) -> np.ndarray:
    """Image whose channels hold row, column and 0."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.zeros_like(rows)], axis=2).astype(np.uint8)


def test_crops_without_scaling_are_windows_of_the_source():
    image = positions(40, 50)
    label = (image[:, :, 0] ^ image[:, :, 1]).astype(np.uint8)
    corners = set()
    for _ in range(200):
        inputs = T.AugInput(image, sem_seg=label)
        RandomScaledCrop((1.0, 1.0), (30, 20))(inputs)
        top, left = inputs.image[0, 0, :2]
        np.testing.assert_array_equal(inputs.image, image[top : top + 30, left : left + 20])
        np.testing.assert_array_equal(inputs.sem_seg, label[top : top + 30, left : left + 20])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(11))
    assert {left for _, left in corners} == set(range(31))


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.3, 2.0, 3.0])
def test_scaled_crops_have_the_scale(scale):
    """Over a linear ramp the result is linear again, with slope 1 / scale (bilinear, pixel centres
    aligned)."""
    image = np.repeat(np.tile(np.arange(120, dtype=np.float32) * 2, (90, 1))[:, :, None], 3, axis=2)
    augmentation = RandomScaledCrop((scale, scale), (32, 32))
    for _ in range(5):
        inputs = T.AugInput(image, sem_seg=np.zeros((90, 120), np.uint8))
        augmentation(inputs)
        assert inputs.image.shape == (32, 32, 3)
        slope = np.polyfit(np.arange(32), inputs.image[16, :, 0], 1)[0]
        # The window's length is rounded to whole pixels.
        assert slope == pytest.approx(2 / scale, rel=0.5 * scale / 32 + 0.03)


@pytest.mark.parametrize(
    "size, expected", [((300, 400), (512, 683)), ((400, 300), (683, 512)), ((100, 1000), (205, 2048))]
)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_images_are_fitted_into_the_base_before_the_factor(size, expected, factor):
    """As MMCV's rescale_size does for (2048, 512), by hand; the longer side limits the last one."""
    inputs = T.AugInput(np.zeros((*size, 3), np.uint8), sem_seg=np.zeros(size, np.uint8))
    RandomScaledCrop((factor, factor), None, base_size=(512, 2048))(inputs)
    np.testing.assert_allclose(inputs.image.shape[:2], np.multiply(expected, factor), atol=1)
    assert inputs.sem_seg.shape == inputs.image.shape[:2]


@pytest.mark.parametrize("scale", [0.5, 1.75, 2.0])
def test_labels_stay_on_their_pixels(scale):
    """Two halves of different label and colour: their border lies at the same column in image and label."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 32:] = 200
    label = np.zeros((64, 64), np.uint8)
    label[:, 32:] = 1
    for _ in range(10):
        inputs = T.AugInput(image, sem_seg=label)
        RandomScaledCrop((scale, scale), None)(inputs)
        assert inputs.image.shape[:2] == inputs.sem_seg.shape == (round(64 * scale), round(64 * scale))
        np.testing.assert_array_equal(inputs.image[:, :, 0] > 100, inputs.sem_seg == 1)


def test_nearest_labels_take_the_value_under_the_pixels_centre():
    label = np.arange(12, dtype=np.uint8).reshape(3, 4)
    tripled = WindowResize((0, 0, 3, 4), (9, 12)).apply_segmentation(label)
    np.testing.assert_array_equal(tripled, label.repeat(3, axis=0).repeat(3, axis=1))
    thirds = WindowResize((0, 0, 9, 12), (3, 4)).apply_segmentation(tripled)
    np.testing.assert_array_equal(thirds, label)


def test_small_images_are_kept_whole():
    image = positions(10, 200)
    inputs = T.AugInput(image, sem_seg=np.ones((10, 200), np.uint8))
    T.AugmentationList([RandomScaledCrop((1.0, 1.0), (16, 32)), PadTo((16, 32), [123.6, 7.2, 300.0])])(inputs)
    assert inputs.image.shape == (16, 32, 3)
    assert (inputs.image[:10, :, 0] == image[:, :1, 0]).all()
    assert (inputs.image[10:] == [124, 7, 255]).all()
    assert (inputs.sem_seg[:10] == 1).all() and (inputs.sem_seg[10:] == 255).all()


def test_crops_of_one_class_are_drawn_again():
    """One column in five of class 1: a plain crop of width 4 often misses it, a redrawn one almost never."""
    label = np.zeros((8, 100), np.uint8)
    label[:, 40:44] = 1
    image = np.zeros((8, 100, 3), np.uint8)

    def shares(max_area):
        augmentation = RandomScaledCrop((1.0, 1.0), (8, 20), max_area)
        hits = 0
        for _ in range(300):
            top, left, height, width = augmentation.get_transform(image, label).window
            hits += label[top : top + height, left : left + width].any()
        return hits / 300

    # 23 of 81 windows touch class 1; with ten redraws at most (58 / 81) ** 11 = 2.5 % miss it.
    assert shares(1.0) == pytest.approx(23 / 81, abs=0.1)
    assert shares(0.99) > 0.93


def test_ignored_pixels_do_not_count_as_a_class():
    augmentation = RandomScaledCrop((1.0, 1.0), (4, 4), 0.75)
    varied = np.full((4, 4), 255, np.uint8)
    assert not augmentation._is_varied(varied)
    varied[0, :4] = [0, 0, 0, 1]
    assert augmentation._is_varied(varied)
    varied[1, 0] = 0
    assert not augmentation._is_varied(varied)

"""Post-processes against explicit loops in float64, hand-worked edges, and the contract each one keeps."""

from __future__ import annotations

import inspect

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from gmm_anomaly.postprocess import (
    POSTPROCESS_REGISTRY,
    apply_chain,
    chain_name,
    get_postprocesses,
    known_postprocesses,
)
from gmm_anomaly.postprocess.boundary_suppression import boundary_suppression
from gmm_anomaly.postprocess.smoothing import dilated_smoothing

NO_IMAGE = torch.zeros(3, 1, 1)
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def street(height=24, width=31, seed=0):
    """A score and a prediction with straight edges, a corner and a single odd pixel."""
    rng = np.random.default_rng(seed)
    prediction = np.zeros((height, width), dtype=np.int64)
    prediction[: height // 2, width // 2 :] = 3
    prediction[height // 2 :, : width // 3] = 7
    prediction[4, 4] = 5
    return torch.from_numpy(rng.normal(size=(height, width)).astype(np.float32)), torch.from_numpy(prediction)


def step_edge():
    prediction = torch.zeros(6, 10, dtype=torch.int64)
    prediction[:, 5:] = 2
    return prediction


def diamond(radius):
    offset = np.abs(np.arange(-radius, radius + 1))
    return (offset[:, None] + offset[None, :] <= radius).astype(np.uint8)


def suppressed_by_loops(score, prediction):
    """The steps of the paper's code, one pixel after the other, on OpenCV's boundaries."""
    classes = prediction.numpy().astype(np.uint8)
    boundary = (cv2.dilate(classes, CROSS) != cv2.erode(classes, np.ones((3, 3), np.uint8))).astype(np.uint8)
    value = score.numpy().astype(np.float64)
    for radius in (3, 2, 1, 0):
        inside = cv2.dilate(boundary, diamond(radius)) > 0
        padded, free = np.pad(value, 1, mode="edge"), np.pad(~inside, 1, mode="edge")
        updated = value.copy()
        for y, x in zip(*np.nonzero(inside), strict=True):
            window = free[y : y + 3, x : x + 3]
            if window.any():
                updated[y, x] = padded[y : y + 3, x : x + 3][window].mean()
        value = updated
    return value


@pytest.mark.parametrize("seed", [0, 1])
def test_suppression_is_the_loop(seed):
    score, prediction = street(seed=seed)
    found = boundary_suppression(score, prediction, NO_IMAGE)
    np.testing.assert_allclose(found.numpy(), suppressed_by_loops(score, prediction), rtol=1e-4, atol=1e-5)


def test_without_a_boundary_and_where_everything_is_one_the_score_stays():
    score, prediction = street()
    assert torch.equal(boundary_suppression(score, torch.zeros_like(prediction), NO_IMAGE), score)
    score = torch.randn(3, 3)
    assert torch.equal(boundary_suppression(score, torch.arange(9).view(3, 3), NO_IMAGE), score)


def test_smoothing_is_the_dilated_kernel():
    score, prediction = street(50, 61)
    kernel = np.zeros((37, 37))
    offset = np.arange(-3, 4)
    gaussian = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / 2)
    kernel[::6, ::6] = gaussian / gaussian.sum()
    assert kernel[18, 18] == pytest.approx(0.159241, abs=1e-6)
    assert kernel[18, 24] == pytest.approx(0.096585, abs=1e-6)
    expected = ndimage.correlate(score.numpy().astype(np.float64), kernel, mode="nearest")
    found = dilated_smoothing(score, prediction, NO_IMAGE)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gaussian_smoothing_is_scipys():
    score, prediction = street()
    expected = ndimage.gaussian_filter(score.numpy().astype(np.float64), 1.0, radius=3, mode="nearest")
    found = POSTPROCESS_REGISTRY.get("gaussian_smoothing")(score, prediction, NO_IMAGE)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", known_postprocesses())
def test_contract_of_every_post_process(name):
    postprocess = POSTPROCESS_REGISTRY.get(name)
    # Nothing but the score, the model's own prediction and the image: a label has no way in.
    assert len(inspect.signature(postprocess).parameters) == 3
    for height, width in ((24, 31), (5, 3), (1, 1)):
        score, prediction = street(24, 31)
        score, prediction = score[:height, :width], prediction[:height, :width]
        image = torch.randint(0, 256, (3, 2 * height, width), dtype=torch.uint8)
        before = score.clone()
        found = postprocess(score, prediction, image)
        assert found.shape == score.shape and found.dtype == torch.float32 and torch.equal(score, before)
        if name == "picture_level":
            # A shift that every fourth pixel tells.
            level = np.sort(score[::4, ::4].numpy(), axis=None)[score[::4, ::4].numel() // 10]
            torch.testing.assert_close(found, score - 0.5 * level)
            continue
        torch.testing.assert_close(postprocess(-score, prediction, image), -found, rtol=1e-4, atol=1e-4)
        constant = torch.full_like(score, 7.5)
        torch.testing.assert_close(postprocess(constant, prediction, image), constant)


def test_a_chain_is_applied_in_order():
    score, prediction = street()
    names = ["boundary_suppression", "dilated_smoothing"]
    found = apply_chain(score, prediction, NO_IMAGE, get_postprocesses(names))
    suppressed = boundary_suppression(score, prediction, NO_IMAGE)
    assert torch.equal(found, dilated_smoothing(suppressed, prediction, NO_IMAGE))
    reverse = apply_chain(score, prediction, NO_IMAGE, get_postprocesses(names[::-1]))
    assert not torch.equal(found, reverse)
    assert torch.equal(apply_chain(score, prediction, NO_IMAGE, {}), score)
    assert chain_name("energy", names) == "energy+boundary_suppression+dilated_smoothing"
    assert chain_name("energy", []) == "energy"


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"TEST\.POSTPROCESS: unknown post-process 'blur'; known are bound"):
        get_postprocesses(["blur"])
    with pytest.raises(ValueError, match="at most once"):
        get_postprocesses(["dilated_smoothing"] * 2)
    with pytest.raises(ValueError, match=r"two maps \(H, W\) of one size"):
        apply_chain(torch.zeros(3, 4), torch.zeros(4, 3), NO_IMAGE, {})

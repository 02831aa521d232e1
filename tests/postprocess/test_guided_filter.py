"""The guided filter against its formula in float64, one box at a time, and on edges worked by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.export import Dim

from gmm_anomaly.postprocess import get_postprocesses
from gmm_anomaly.postprocess.guided_filter import filter_by_guide

EPSILON = 1e-5


def boxes(height, width, radius):
    for y in range(height):
        for x in range(width):
            yield (y, x), np.s_[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]


def channels(guide, cell=1):
    """Colours and squares, (6, h, w): their means over cells, those at the border as far as they reach."""
    found = np.concatenate([guide - 0.5, 2 * (guide - 0.5) ** 2])
    starts = [range(0, length, cell) for length in found.shape[1:]]
    rows = [[found[:, y : y + cell, x : x + cell].mean(axis=(1, 2)) for x in starts[1]] for y in starts[0]]
    return np.array(rows).transpose(2, 0, 1)


def by_formula(score, guide, radius):
    """He et al., Eq. 5, 6 and 8, for the (6, H, W) channels of a guide."""
    height, width = score.shape
    own = np.zeros((7, height, width))
    for (y, x), box in boxes(height, width, radius):
        colours, values = guide[(slice(None), *box)].reshape(6, -1), score[box].ravel()
        covariance = np.cov(colours, bias=True) + EPSILON * np.eye(6)
        slope = np.linalg.solve(covariance, colours @ values / values.size - colours.mean(1) * values.mean())
        own[:, y, x] = *slope, values.mean() - slope @ colours.mean(1)
    mean = np.zeros_like(own)
    for (y, x), box in boxes(height, width, radius):
        mean[:, y, x] = own[(slice(None), *box)].mean(axis=(1, 2))
    return (mean[:6] * guide).sum(0) + mean[6]


def resized(score, size):
    return cv2.resize(score, size[::-1], interpolation=cv2.INTER_LINEAR)


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    guide = cv2.GaussianBlur(rng.random((24, 40, 3)), (0, 0), 2).transpose(2, 0, 1)
    guide = (guide - guide.min()) / np.ptp(guide)
    return 5 + 3 * rng.normal(size=(24, 40)), guide


def test_without_cells_it_is_the_formula(sample):
    score, guide = sample
    expected = by_formula(score, channels(guide), 5)
    options = {"radius": 5, "epsilon": EPSILON, "reduction": 1}
    found = filter_by_guide(torch.from_numpy(score), torch.from_numpy(guide), **options)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    single = filter_by_guide(torch.from_numpy(score).float(), torch.from_numpy(guide).float(), **options)
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-4)


def test_the_postprocess_is_the_formula_on_cells_of_eight_pixels(sample):
    guide = sample[1]
    # The last cells are seven and two pixels long.
    image = (guide * 255).round().astype(np.uint8)[:, :23, :34]
    cells = channels(image / 255.0, 8)
    assert cells.shape == (6, 3, 5)
    guided = get_postprocesses(["guided_filter"])["guided_filter"]
    for size in ((23, 34), (48, 60)):
        score = resized(sample[0], size)
        # A 16th of 5 columns, rounded up, is a radius of 1.
        expected = resized(by_formula(resized(score, (3, 5)), cells, 1), size)
        prediction = torch.zeros(size, dtype=torch.int64)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = guided(torch.from_numpy(score).float(), prediction, torch.from_numpy(image))
        np.testing.assert_allclose(found.numpy(), expected, rtol=5e-4)


def test_of_a_batch_each_is_filtered_alone(sample):
    score, guide = sample
    batch = filter_by_guide(
        torch.from_numpy(np.stack([score, -score])),
        torch.from_numpy(np.stack([guide, guide[:, ::-1].copy()])),
    )
    alone = filter_by_guide(torch.from_numpy(-score), torch.from_numpy(guide[:, ::-1].copy()))
    torch.testing.assert_close(batch[1], alone)


class Filtered(torch.nn.Module):
    def forward(self, image):
        return filter_by_guide(image.mean(dim=1), image)


def test_exporters_leave_height_and_width_open():
    sizes = {
        0: Dim("batch", min=1, max=8),
        2: Dim("height", min=33, max=512),
        3: Dim("width", min=33, max=512),
    }
    network = torch.export.export(
        Filtered(), (torch.rand(2, 3, 60, 75),), dynamic_shapes=(sizes,), strict=False
    )
    other = torch.rand(1, 3, 133, 64)
    torch.testing.assert_close(network.module()(other), Filtered()(other))

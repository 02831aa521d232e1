"""The guided filter against its formula in float64, one box at a time, and on edges worked by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from gmm_anomaly.postprocess import get_postprocesses
from gmm_anomaly.postprocess.guided_filter import filter_by_guide

EPSILON = 1e-4


def boxes(height, width, radius):
    for y in range(height):
        for x in range(width):
            yield (y, x), np.s_[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]


def channels(guide):
    return np.concatenate([guide - 0.5, 2 * (guide - 0.5) ** 2])


def by_formula(score, guide, radius):
    """He et al., Eq. 5, 6 and 8, for colours and squares: (7, H, W), slopes and a constant of each pixel."""
    guide = channels(guide)
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
    return mean


def enlarged(maps, size):
    return np.stack([cv2.resize(part, size[::-1], interpolation=cv2.INTER_LINEAR) for part in maps])


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    guide = cv2.GaussianBlur(rng.random((24, 40, 3)), (0, 0), 2).transpose(2, 0, 1)
    guide = (guide - guide.min()) / np.ptp(guide)
    return 5 + 3 * rng.normal(size=(24, 40)), guide


def test_the_exact_filter_is_the_formula(sample):
    score, guide = sample
    slope = by_formula(score, guide, 5)
    expected = (slope[:6] * channels(guide)).sum(0) + slope[6]
    options = {"radius": 5, "epsilon": EPSILON, "reduction": 1}
    found = filter_by_guide(torch.from_numpy(score), torch.from_numpy(guide), **options)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    single = filter_by_guide(torch.from_numpy(score).float(), torch.from_numpy(guide).float(), **options)
    np.testing.assert_allclose(single.numpy(), expected, rtol=2e-4)


def test_the_fast_form_solves_at_an_eighth_of_the_guides_size(sample):
    score, guide = sample
    image = (guide * 255).round().astype(np.uint8)
    photo = image / 255.0
    small = enlarged([score, *photo], (3, 5))
    # A 22nd of 5 columns, rounded up, is a radius of 1.
    slope = enlarged(by_formula(small[0], small[1:], 1), (24, 40))
    at_the_guides_size = (slope[:6] * channels(photo)).sum(0) + slope[6]
    guided = get_postprocesses(["guided_filter"])["guided_filter"]
    prediction = torch.zeros(score.shape, dtype=torch.int64)
    found = guided(torch.from_numpy(score).float(), prediction, torch.from_numpy(image))
    np.testing.assert_allclose(found.numpy(), at_the_guides_size, rtol=2e-4)
    # A score of another size than the image goes there and back.
    large = enlarged([score], (48, 60))[0]
    slope = enlarged(by_formula(enlarged([large], (3, 5))[0], small[1:], 1), (24, 40))
    expected = enlarged([(slope[:6] * channels(photo)).sum(0) + slope[6]], (48, 60))[0]
    prediction = torch.zeros(large.shape, dtype=torch.int64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = guided(torch.from_numpy(large).float(), prediction, torch.from_numpy(image))
    np.testing.assert_allclose(found.numpy(), expected, rtol=5e-4)
    batch = filter_by_guide(
        torch.from_numpy(np.stack([score, -score])),
        torch.from_numpy(np.stack([guide, guide[:, ::-1].copy()])),
    )
    alone = filter_by_guide(torch.from_numpy(-score), torch.from_numpy(guide[:, ::-1].copy()))
    torch.testing.assert_close(batch[1], alone)

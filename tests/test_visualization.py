"""Pixels of the pictures, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from gmm_anomaly import visualization
from gmm_anomaly.visualization import (
    CAPTION_BACKGROUND,
    SEPARATOR,
    heat_map,
    plot_embedding,
    robust_range,
    side_by_side,
)


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_heat_map_brightens_with_the_score():
    ramp = np.linspace(-3, 5, 256, dtype=np.float32)[None]
    painted = heat_map(ramp, -3, 5)
    steps = np.diff(luminance(painted)[0])
    assert steps.min() > -1.5 and steps.mean() > 0.5
    assert painted[0, 0].max() < 10 and painted[0, -1].min() > 150
    # Warm colours have more red than blue in RGB order: an exchange of channels would show.
    assert painted[0, 160, 0] > painted[0, 160, 2] + 50


def test_heat_map_of_unusual_values():
    painted = heat_map(np.array([[-np.inf, np.inf, 0.0, 1.0]]), 0, 1)
    assert np.array_equal(painted[0, :2], painted[0, 2:])
    assert len(np.unique(heat_map(np.full((3, 4), 7.0), 7.0, 7.0).reshape(-1, 3), axis=0)) == 1


def test_robust_range_is_made_of_percentiles_of_the_finite_scores():
    score = np.concatenate([np.arange(1001.0), [np.inf, -np.inf, np.nan]])
    assert robust_range(score) == pytest.approx((10.0, 998.0))
    assert robust_range(np.array([np.nan])) == (0.0, 0.0)


def test_side_by_side_keeps_the_panels_and_writes_captions():
    rng = np.random.default_rng(0)
    panels = [rng.integers(0, 256, (60, 200, 3)).astype(np.uint8) for _ in range(3)]
    joined = side_by_side(
        panels, ["one", "", "a caption that is far too long for the width of its panel " * 3]
    )
    bar = joined.shape[0] - 60
    assert joined.shape[1] == 3 * 200 + 2 * SEPARATOR
    for number, panel in enumerate(panels):
        left = number * (200 + SEPARATOR)
        assert np.array_equal(joined[bar:, left : left + 200], panel)
    first, second, third = (joined[:bar, start : start + 200] for start in (0, 204, 408))
    background = np.array(CAPTION_BACKGROUND)
    assert (second == background).all()
    assert first.max() > 200
    # Nothing touches the bar's border, so no letter is cut.
    for text in (first, third):
        assert (text[[0, -1]] == background).all() and (text[:, [0, -1]] == background).all()


def test_embeddings_lie_where_pca_puts_them_and_ellipses_are_as_wide_as_sigma():
    """Five dots of a class each, in six dimensions; scikit-learn's PCA is the oracle."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(5, 6)) @ np.diag([9, 4, 0.5, 0.4, 0.3, 0.2])
    # Dots of three pixels cannot tell more than that.
    colors = [(220, 30, 30), (20, 160, 20), (30, 60, 220), (200, 150, 0), (120, 0, 120), (0, 140, 140)]
    scale = np.array([[2.0, 1.0, 0.5, 0.5, 0.5, 0.5]])
    mean = features.mean(axis=0, keepdims=True)
    picture = plot_embedding(
        features, np.arange(5), mean, scale, np.array([5]), colors, [f"$class_{i}$" for i in range(6)]
    )
    assert picture.shape == (670, 840, 3) and picture.dtype == np.uint8
    places = [np.argwhere((picture[:, :640] == color).all(axis=2))[:, ::-1] for color in colors]
    drawn = np.array([place.mean(axis=0) for place in places])

    pca = PCA(2).fit(features)
    axes = pca.components_ * np.sign(pca.components_[[0, 1], np.abs(pca.components_).argmax(axis=1)])[:, None]
    wanted = (np.concatenate([features, mean]) - pca.mean_) @ axes.T
    # One scale for both directions; rows grow downwards.
    units = np.polyfit(wanted[:, 0], drawn[:, 0], 1)
    expected = wanted * [units[0], -units[0]] + drawn[5]
    np.testing.assert_allclose(drawn, expected, atol=1.5)
    # Its projections onto the axes are one standard deviation to either side.
    reach = np.sqrt(np.einsum("id,d,id->i", axes, scale[0] ** 2, axes)) * units[0]
    np.testing.assert_allclose((places[5].max(axis=0) - places[5].min(axis=0)) / 2, reach, atol=1.5)
    assert all((picture[:, 640:] == color).all(axis=2).sum() > 50 for color in colors), "the legend"


def test_rarer_classes_are_above_and_long_legends_end_in_a_count():
    labels = np.array([0, 0, *range(60)])
    features = np.zeros((62, 2))
    features[-1] = 1.0
    none = np.zeros((0, 2))
    colors = [(index, 0, 200) for index in range(60)]
    names = [str(index) for index in range(60)]
    picture = plot_embedding(features, labels, none, none, np.zeros(0, int), colors, names)
    found = np.unique(picture[:, :640].reshape(-1, 3), axis=0).tolist()
    assert [58, 0, 200] in found and [59, 0, 200] in found and [0, 0, 200] not in found
    legend = np.unique(picture[:, 640:].reshape(-1, 3), axis=0).tolist()
    shown = [color[0] for color in legend if color[1:] == [0, 200]]
    assert shown == list(range(visualization.LEGEND_LINES))

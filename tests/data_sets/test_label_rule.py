"""Label maps: what they give, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from gmm_anomaly.data.label_rule import LabelRule, ranges


def test_apply_equals_a_dictionary_look_up():
    label_map = {0: 255, 3: 0, 7: 1, 254: 2}
    rule = LabelRule.build("set", label_map, num_classes=3)
    raw = np.random.default_rng(0).choice(np.array([0, 3, 7, 254, 255], np.uint8), (40, 30))
    expected = [[(label_map | {255: 255})[int(value)] for value in row] for row in raw]
    mapped = rule.apply(raw, "file")
    assert mapped.dtype == np.uint8
    np.testing.assert_array_equal(mapped, expected)


def test_255_may_be_given_a_meaning():
    assert LabelRule.build("set", {0: 0, 255: 1}, num_classes=2).apply(
        np.array([[255, 0]], np.uint8), "f"
    ).tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({256: 0}, "raw value 256; expected integers in 0 .. 255"),
        ({"road": 0}, "raw value 'road'"),
        ({0: 2}, r"maps 0 to 2; expected 0 .. 1 or 255"),
        ({0: -1}, r"maps 0 to -1"),
        ({0: 0.5}, r"maps 0 to 0.5"),
    ],
)
def test_bad_label_maps(label_map, message):
    with pytest.raises(ValueError, match=message):
        LabelRule.build("set", label_map, num_classes=2)


@pytest.mark.parametrize("count", [0, 254])
def test_bad_number_of_classes(count):
    with pytest.raises(ValueError, match=f"expected 1 to 253 classes, found {count}"):
        LabelRule.build("set", None, num_classes=count)


def test_every_value_that_is_not_mapped_is_refused():
    rule = LabelRule.build("set", {1: 0, 2: 1}, num_classes=2)
    for value in range(256):
        raw = np.full((2, 2), value, np.uint8)
        if value in (1, 2, 255):
            rule.apply(raw, "f")
        else:
            with pytest.raises(ValueError, match=rf"label value {value} \(4 pixels\)"):
                rule.apply(raw, "f")


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2], "0-2"), ([0, 2, 3, 255], "0, 2-3, 255"), ([4, 5], "4-5")],
)
def test_ranges(values, text):
    assert ranges(values) == text

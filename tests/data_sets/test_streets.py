"""The synthetic streets: determinism, labels, anomalies, the cached copy and the data sets."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import MetadataCatalog

import gmm_anomaly
from gmm_anomaly.data import configure_synthetic, get_records, read_image, read_label
from gmm_anomaly.data.streets import ANOMALY_LABEL, CLASSES, IGNORE_LABEL, render_street
from gmm_anomaly.data.streets.datasets import NAMES, StreetSplit, cache_split

SMALL = (96, 192)
SPLIT = StreetSplit("streets", 3, seed=6, height=64, width=128, anomalies=True)


def _digest(seed: int, index: int, anomalies: bool) -> str:
    image, label = render_street(seed, index, *SMALL, anomalies)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


# Loads the renderer's own files under a bare parent, as nothing but NumPy and OpenCV is to be needed.
_CHILD = """
import hashlib, importlib, sys, types
for name in ("torch", "torchvision", "detectron2", "PIL", "scipy", "matplotlib"):
    sys.modules[name] = None
parent = types.ModuleType("bare")
parent.__path__ = [sys.argv[1]]
sys.modules["bare"] = parent
streets = importlib.import_module("bare.streets")
for index in (3, 1):
    for anomalies in (True, False):
        image, label = streets.render_street(5, index, 96, 192, anomalies)
        print(index, anomalies, hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())
"""


def test_another_process_with_only_numpy_and_opencv_renders_the_same_bytes():
    folder = Path(gmm_anomaly.__file__).parent / "data"
    run = subprocess.run([sys.executable, "-c", _CHILD, str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    assert lines == {f"{index} {a}": _digest(5, index, a) for index in (1, 3) for a in (False, True)}


def test_global_random_state_and_call_order_do_not_matter_but_seed_and_index_do():
    first = _digest(0, 4, True)
    assert len({first, _digest(0, 4, False), _digest(1, 4, True), _digest(0, 5, True)}) == 4
    np.random.seed(123)
    cv2.setRNGSeed(5)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        render_street(0, 9, 128, 256)
        assert _digest(0, 4, True) == first
    finally:
        cv2.setNumThreads(threads)


def test_every_class_is_common_and_in_its_place():
    """A rendering turned upside down, or labels out of place, would fail."""
    maps = np.stack([render_street(11, index, *SMALL)[1] for index in range(24)])
    common = {name: np.mean((maps == k).sum(axis=(1, 2)) >= 8) for k, name in enumerate(CLASSES)}
    assert min(common.values()) >= 0.6, common
    assert np.mean(maps[:, 70:85, 60:130] == CLASSES.index("road")) > 0.6
    assert not np.any(maps[:, 60:] == CLASSES.index("sky"))
    assert not np.any(maps[:, :8] == CLASSES.index("road"))
    assert maps.max() < len(CLASSES)


def test_anomaly_pictures_hold_anomalies_of_plausible_share_in_any_size():
    shares = []
    for index in range(30):
        size = ((128, 256), (64, 128), (97, 201), (150, 131))[index % 4]
        image, label = render_street(2, index, *size, True)
        assert image.shape == (*size, 3) and image.dtype == label.dtype == np.uint8 and label.shape == size
        assert image.flags.c_contiguous and image.std() > 10
        assert set(np.unique(label).tolist()) <= {*range(len(CLASSES)), ANOMALY_LABEL, IGNORE_LABEL}
        shares.append(np.mean(label == ANOMALY_LABEL))
    assert min(shares) > 0.0005
    assert max(shares) < 0.13
    assert 0.01 < np.mean(shares) < 0.07


def test_anomalies_leave_known_labels_and_far_pixels_alone_and_have_a_void_border():
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for index in range(6):
        plain_image, plain = render_street(3, index, *SMALL)
        image, label = render_street(3, index, *SMALL, True)
        known = (label != ANOMALY_LABEL) & (label != IGNORE_LABEL)
        assert np.array_equal(label[known], plain[known])
        # The sensor noise is the same too; shadows and compression reach beyond the objects.
        change = np.abs(plain_image.astype(int) - image)[known].max(axis=1)
        assert np.mean(change <= 10) > 0.8
        for edge in (label[0], label[-1], label[:, 0], label[:, -1]):
            assert np.all(edge == IGNORE_LABEL)
        anomaly = (label == ANOMALY_LABEL).astype(np.uint8)
        neighbours = (cv2.dilate(anomaly, cross) > 0) & (anomaly == 0)
        assert neighbours.any()
        assert np.all(label[neighbours] == IGNORE_LABEL)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((-1, 0), "seed"), ((0, -1), "index"), ((0, 0, 32, 512), "64 x 128"), ((0, 0, 256, 100), "64 x 128")],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        render_street(*arguments)


def test_cache_resumes_with_what_is_missing_and_refuses_another_split(tmp_path):
    assert len(list(SPLIT)) == 3
    cache_split(SPLIT, tmp_path)
    kept, lost = tmp_path / "images/000000.png", tmp_path / "labels/000001.png"
    kept.write_bytes(b"kept as it is")
    lost.unlink()
    cache_split(SPLIT, tmp_path)
    assert kept.read_bytes() == b"kept as it is"
    assert np.array_equal(cv2.imread(str(lost), cv2.IMREAD_UNCHANGED), SPLIT[1][1])
    for key, value in {"seed": 7, "height": 80, "num_images": 2, "anomalies": False}.items():
        with pytest.raises(ValueError, match=f"{key}.*Delete the folder"):
            cache_split(replace(SPLIT, **{key: value}), tmp_path)
    record = tmp_path / "split.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "renderer_version": -1}))
    with pytest.raises(ValueError, match="renderer_version.*Delete the folder"):
        cache_split(SPLIT, tmp_path)


@pytest.fixture
def small(cfg):
    node = cfg.DATASETS.SYNTHETIC
    node.HEIGHT, node.WIDTH, node.NUM_TRAIN, node.NUM_VAL, node.NUM_ANOMALY = 64, 128, 3, 2, 2
    return cfg


def test_frames_are_the_renderers_with_or_without_a_cache(small, tmp_path):
    node = small.DATASETS.SYNTHETIC
    node.SEED = 5
    for node.CACHE_DIR in ("", str(tmp_path)):
        configure_synthetic(small)
        for place, name in enumerate(NAMES):
            records = get_records(name)
            assert [record["image_id"] for record in records][:2] == ["000000", "000001"]
            assert records[1]["file_name"].startswith(node.CACHE_DIR or f"{name}/000001")
            image, label = render_street(15 + place, 1, height=64, width=128, anomalies=place == 2)
            np.testing.assert_array_equal(read_image(records[1], "RGB"), image)
            if place == 2:
                label = np.select([label == ANOMALY_LABEL, label == IGNORE_LABEL], [1, 255], 0)
            np.testing.assert_array_equal(read_label(records[1], MetadataCatalog.get(name)), label)
    assert len(list(tmp_path.rglob("*.png"))) == 14
    # Another size goes to another folder.
    node.WIDTH = 160
    configure_synthetic(small)
    assert read_image(get_records(NAMES[1])[0], "RGB").shape == (64, 160, 3)


@pytest.mark.parametrize(("key", "value", "least"), [("HEIGHT", 10, 64), ("NUM_VAL", 0, 1), ("SEED", -1, 0)])
def test_bad_keys(small, key, value, least):
    small.DATASETS.SYNTHETIC[key] = value
    message = f"DATASETS.SYNTHETIC.{key}: expected {least} or more, found {value}"
    with pytest.raises(ValueError, match=message):
        configure_synthetic(small)

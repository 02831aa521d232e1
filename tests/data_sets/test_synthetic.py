"""The synthetic streets: determinism, labels, anomalies and the cached copy."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import gmm_anomaly
from gmm_anomaly.data.synthetic import (
    ANOMALY_LABEL,
    CLASSES,
    IGNORE_LABEL,
    PALETTE,
    StreetSplit,
    cache_split,
    image_file,
    label_file,
    render_street,
)

SMALL = (96, 192)
SIZES = [(64, 128), (97, 201), (128, 256), (150, 131), (256, 512)]


def _digest(seed: int, index: int, size: tuple[int, int], anomalies: bool) -> str:
    image, label = render_street(seed, index, *size, anomalies)
    return hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()


# Loads the package's own files under a bare parent, as nothing but NumPy and OpenCV is to be needed.
_CHILD = """
import hashlib, importlib, sys, types
for name in ("torch", "torchvision", "detectron2", "PIL", "scipy", "matplotlib"):
    sys.modules[name] = None
parent = types.ModuleType("bare")
parent.__path__ = [sys.argv[1]]
sys.modules["bare"] = parent
synthetic = importlib.import_module("bare.synthetic")
for index in (3, 1):
    for anomalies in (True, False):
        image, label = synthetic.render_street(5, index, 96, 192, anomalies)
        print(index, anomalies, hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest())
"""


def test_another_process_with_only_numpy_and_opencv_renders_the_same_bytes() -> None:
    folder = Path(gmm_anomaly.__file__).parent / "data"
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert run.returncode == 0, run.stderr
    lines = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    here = {f"{i} {a}": _digest(5, i, SMALL, a) for i in (1, 3) for a in (False, True)}
    assert lines == here


def test_global_random_state_and_call_order_do_not_matter() -> None:
    first = _digest(0, 4, SMALL, True)
    np.random.seed(123)
    cv2.setRNGSeed(5)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        render_street(0, 9, 128, 256)
        assert _digest(0, 4, SMALL, True) == first
    finally:
        cv2.setNumThreads(threads)


def test_streets_differ_between_indices_and_seeds() -> None:
    digests = [_digest(seed, index, SMALL, False) for seed in range(3) for index in range(4)]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("anomalies", [False, True])
def test_sizes_types_and_label_values(size: tuple[int, int], anomalies: bool) -> None:
    known = set(range(len(CLASSES))) | {IGNORE_LABEL}
    for index in range(2):
        image, label = render_street(8, index, *size, anomalies)
        assert image.shape == (*size, 3) and image.dtype == np.uint8 and image.flags.c_contiguous
        assert label.shape == size and label.dtype == np.uint8
        values = set(np.unique(label).tolist())
        assert values <= (known | {ANOMALY_LABEL} if anomalies else known)
        assert image.std() > 10


def test_classes_have_names_and_colours_of_their_own() -> None:
    assert len(CLASSES) >= 8
    assert len(set(CLASSES)) == len(CLASSES) == len(PALETTE) == len(set(PALETTE))


def test_every_class_is_common() -> None:
    frames = 30
    present = np.zeros(len(CLASSES))
    for index in range(frames):
        label = render_street(11, index, 128, 256)[1]
        present += np.bincount(label.ravel(), minlength=256)[: len(CLASSES)] >= 8
    assert dict(zip(CLASSES, present >= 0.6 * frames, strict=True)) == dict.fromkeys(CLASSES, True)


def test_road_is_below_and_sky_above() -> None:
    """On average over streets: a rendering turned upside down or labels out of place would fail."""
    maps = np.stack([render_street(1, index, *SMALL)[1] for index in range(12)])
    assert np.mean(maps[:, 70:85, 60:130] == CLASSES.index("road")) > 0.6
    assert np.mean(maps[:, 60:] == CLASSES.index("sky")) == 0
    assert np.mean(maps[:, :8] == CLASSES.index("road")) == 0


def test_anomaly_pictures_hold_anomalies_of_plausible_share() -> None:
    shares = []
    for index in range(30):
        label = render_street(2, index, anomalies=True)[1]
        shares.append(np.mean(label == ANOMALY_LABEL))
    assert min(shares) > 0.0005
    assert max(shares) < 0.13
    assert 0.01 < np.mean(shares) < 0.07


def test_anomalies_leave_known_labels_and_far_pixels_alone() -> None:
    for index in range(8):
        plain_image, plain = render_street(3, index, *SMALL)
        image, label = render_street(3, index, *SMALL, True)
        known = (label != ANOMALY_LABEL) & (label != IGNORE_LABEL)
        assert np.array_equal(label[known], plain[known])
        # The sensor noise is the same too; shadows and compression reach beyond the objects.
        change = np.abs(plain_image.astype(int) - image)[known].max(axis=1)
        assert np.mean(change <= 10) > 0.8


def test_void_surrounds_anomalies_and_the_picture() -> None:
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for index in range(6):
        label = render_street(4, index, *SMALL, True)[1]
        for edge in (label[0], label[-1], label[:, 0], label[:, -1]):
            assert np.all(edge == IGNORE_LABEL)
        anomaly = (label == ANOMALY_LABEL).astype(np.uint8)
        neighbours = (cv2.dilate(anomaly, cross) > 0) & (anomaly == 0)
        assert neighbours.any()
        assert np.all(label[neighbours] == IGNORE_LABEL)


def test_plain_streets_have_no_rim() -> None:
    for index in range(6):
        label = render_street(4, index, *SMALL)[1]
        assert not np.any(label[: SMALL[0] // 2] == IGNORE_LABEL)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((-1, 0), "seed"), ((0, -1), "index"), ((0, 0, 32, 512), "64 x 128"), ((0, 0, 256, 100), "64 x 128")],
)
def test_bad_arguments_are_named(arguments: tuple[int, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        render_street(*arguments)


def _split(**changes: object) -> StreetSplit:
    settings = {"name": "streets", "num_images": 3, "seed": 6, "height": 64, "width": 128, "anomalies": True}
    return StreetSplit(**{**settings, **changes})  # type: ignore[arg-type]


def test_split_is_a_sequence_of_its_streets() -> None:
    split = _split()
    assert len(split) == 3
    for found, expected in zip(split[2], render_street(6, 2, 64, 128, True), strict=True):
        assert np.array_equal(found, expected)
    assert sum(1 for _ in split) == 3
    with pytest.raises(IndexError, match="streets has 3 images"):
        split[3]
    with pytest.raises(ValueError, match="num_images"):
        _split(num_images=0)


def test_cache_holds_the_rendered_pixels(tmp_path: Path) -> None:
    split = _split()
    folder = cache_split(split, tmp_path / "cache")
    for index in range(3):
        image, label = split[index]
        assert np.array_equal(cv2.imread(str(image_file(folder, index)), cv2.IMREAD_COLOR)[..., ::-1], image)
        assert np.array_equal(cv2.imread(str(label_file(folder, index)), cv2.IMREAD_UNCHANGED), label)
    record = json.loads((folder / "split.json").read_text())
    assert (record["height"], record["width"], record["num_images"], record["seed"]) == (64, 128, 3, 6)
    assert sorted(p.name for p in (folder / "images").iterdir()) == ["000000.png", "000001.png", "000002.png"]


def test_cache_resumes_with_what_is_missing(tmp_path: Path) -> None:
    split = _split()
    cache_split(split, tmp_path)
    before = label_file(tmp_path, 0).read_bytes()
    image_file(tmp_path, 0).write_bytes(b"kept as it is")
    label_file(tmp_path, 1).unlink()
    cache_split(split, tmp_path)
    assert image_file(tmp_path, 0).read_bytes() == b"kept as it is"
    assert label_file(tmp_path, 0).read_bytes() == before
    assert np.array_equal(cv2.imread(str(label_file(tmp_path, 1)), cv2.IMREAD_UNCHANGED), split[1][1])


@pytest.mark.parametrize("change", [{"seed": 7}, {"height": 80}, {"num_images": 2}, {"anomalies": False}])
def test_stale_cache_is_refused_then_rendered_again(tmp_path: Path, change: dict[str, object]) -> None:
    cache_split(_split(), tmp_path)
    other = _split(**change)
    key = next(iter(change))
    with pytest.raises(ValueError, match=f"{key}: found .*overwrite=True"):
        cache_split(other, tmp_path)
    cache_split(other, tmp_path, overwrite=True)
    assert len(list((tmp_path / "labels").glob("*.png"))) == len(other)
    for index in range(len(other)):
        assert np.array_equal(
            cv2.imread(str(label_file(tmp_path, index)), cv2.IMREAD_UNCHANGED), other[index][1]
        )


def test_cache_of_another_renderer_and_broken_record_are_refused(tmp_path: Path) -> None:
    cache_split(_split(num_images=1), tmp_path)
    record = tmp_path / "split.json"
    found = json.loads(record.read_text())
    record.write_text(json.dumps({**found, "renderer_version": -1}))
    with pytest.raises(ValueError, match="renderer_version: found -1"):
        cache_split(_split(num_images=1), tmp_path)
    record.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        cache_split(_split(num_images=1), tmp_path)


def test_cache_reports_progress_without_tqdm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    cache_split(_split(num_images=2), tmp_path)
    assert "rendering streets: 2/2" in capsys.readouterr().out

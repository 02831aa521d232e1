"""Score maps in every format, and what is refused."""

from __future__ import annotations

import sys

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gmm_anomaly.evaluation.score_files import read_score_map, require_h5py

SCORE = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)


def save(path, array, **options):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, **{options.get("name", "score"): array}, **options.get("others", {}))
    elif path.suffix in (".hdf5", ".h5"):
        with h5py.File(path, "w") as file:
            file.create_dataset(
                options.get("name", "value"), data=array, compression="gzip", compression_opts=9
            )
            for name, other in options.get("others", {}).items():
                file.create_dataset(name, data=other)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".hdf5", ".h5"])
@pytest.mark.parametrize(("dtype", "shape"), [("f2", (1, 7, 9)), ("f4", (7, 9)), ("f8", (1, 1, 7, 9, 1))])
def test_floats_come_back_as_they_were_without_single_axes(tmp_path, suffix, dtype, shape):
    found = read_score_map(save(tmp_path / f"map{suffix}", SCORE.astype(dtype).reshape(shape)))
    assert found.values.dtype == dtype and not found.ranks_only
    assert np.array_equal(found.values, SCORE.astype(dtype))


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_a_key_chooses_among_arrays(tmp_path, suffix):
    path = save(tmp_path / f"map{suffix}", SCORE, name="mine", others={"other": -SCORE})
    assert np.array_equal(read_score_map(path, "mine").values, SCORE)
    for key in (None, "nothing"):
        with pytest.raises(ValueError, match=r"map\..*mine, other; name it with --key|other, mine; name it"):
            read_score_map(path, key)
    path = save(tmp_path / "map.npy", SCORE)
    with pytest.raises(ValueError, match=r"map.npy: --key names an array in .npz and HDF5 files"):
        read_score_map(path, "mine")
    # The benchmark's own name comes first.
    path = save(tmp_path / "other.hdf5", SCORE, others={"other": -SCORE})
    assert np.array_equal(read_score_map(path).values, SCORE)


def save_png(path, pixels, **text):
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    Image.fromarray(np.array(pixels, np.uint16)).save(path, pnginfo=info)


def test_png_keeps_ranks_and_with_a_scale_units(tmp_path):
    pixels = [[0, 1, 65535], [300, 299, 32768]]
    save_png(tmp_path / "map.png", pixels)
    found = read_score_map(tmp_path / "map.png")
    assert found.ranks_only and found.values.tolist() == pixels
    save_png(tmp_path / "map.png", [[0, 100, 65535]], scale="0.5", offset="-10")
    found = read_score_map(tmp_path / "map.png")
    assert not found.ranks_only and found.values.tolist() == [[-10.0, 40.0, 32757.5]]
    for scale, message in (("-1", "above 0"), ("wide", "must be numbers")):
        save_png(tmp_path / "map.png", pixels, scale=scale)
        with pytest.raises(ValueError, match=f"map.png.*{message}"):
            read_score_map(tmp_path / "map.png")


def test_pictures_are_refused(tmp_path):
    for shape, mode in (((4, 4, 3), "RGB"), ((4, 4), "L")):
        cv2.imwrite(str(tmp_path / "map.png"), np.zeros(shape, np.uint8))
        with pytest.raises(ValueError, match=f"map.png.*one channel of 16 bits, found PNG of mode {mode}"):
            read_score_map(tmp_path / "map.png")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".hdf5", ".png"])
def test_cut_off_files_are_named(tmp_path, suffix):
    path = tmp_path / f"map{suffix}"
    if suffix == ".png":
        cv2.imwrite(str(path), np.arange(300, dtype=np.uint16).reshape(15, 20))
    else:
        save(path, np.repeat(SCORE, 40, axis=0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(ValueError, match=rf"map{suffix}: cannot be"):
        read_score_map(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4)), r"must be \(H, W\), found shape \(2, 3, 4\)"),
        (np.zeros((0, 4)), r"must be \(H, W\), found shape \(0, 4\)"),
        (np.zeros((2, 2), complex), "real numbers"),
        (np.array([[object()]]), "cannot be read.*Object arrays"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "map.npy", array)
    with pytest.raises(ValueError, match=message):
        read_score_map(tmp_path / "map.npy")


def test_without_h5py_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install h5py"):
        require_h5py()

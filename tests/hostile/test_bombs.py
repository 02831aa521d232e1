"""Small files that claim to be large are refused from their headers."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from gmm_anomaly.data import image_files
from gmm_anomaly.data.prepare_fishyscapes import read_overlay
from gmm_anomaly.data.reading import image_size, read_image, read_raw_label
from gmm_anomaly.evaluation.score_files import read_score_map


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def claiming(path: Path, width: int, height: int, depth: int = 8) -> Path:
    """A grey PNG of a few hundred bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.filterwarnings("ignore:Image size:PIL.Image.DecompressionBombWarning")
# Above Pillow's own limit, above this project's alone, and in numbers that overflow 32 bits.
@pytest.mark.parametrize("size", [(50_000, 50_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_images_above_100_megapixels_are_not_decoded(tmp_path, size, monkeypatch):
    path = claiming(tmp_path / "bomb.png", *size)
    assert path.stat().st_size < 1000
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    message = r"bomb.png: at most 100 megapixels are decoded, its header claims .*\d"
    for read in (
        lambda: read_image({"file_name": str(path)}, "RGB"),
        lambda: read_raw_label(str(path)),
        lambda: image_size(str(path)),
        lambda: read_score_map(claiming(path, *size, depth=16)),
    ):
        with pytest.raises(ValueError, match=message):
            read()


def test_the_limit_itself_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 12)
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    assert read_image({"file_name": str(tmp_path / "a.png")}, "RGB").shape == (3, 4, 3)
    Image.new("L", (13, 1)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="claims 13 x 1 pixels"):
        read_image({"file_name": str(tmp_path / "a.png")}, "RGB")


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"II*\0\x08\0\0\0"]
)
def test_only_the_documented_decoders_run(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content + bytes(100))
    with pytest.raises(
        ValueError, match=r"a.png cannot be decoded: it is no PNG, JPEG, WebP, BMP or PPM file"
    ):
        read_image({"file_name": str(path)}, "RGB")


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for read in (
        lambda: read_image({"file_name": str(tmp_path / "a.png")}, "RGB"),
        lambda: read_score_map(tmp_path / "a.png"),
    ):
        with pytest.raises(ValueError, match="regular file"):
            read()


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((10**6, 10**6), r"at most 100 megapixels are read, it claims the shape \(1000000, 1000000\)"),
        ((10**12, 10**12, 1), "at most 100 megapixels"),
        ((9_999, 9_999), "it is shorter than its header says"),
        ((-2, -3), "cannot be read|megapixels|shape"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_that_claim_to_be_large(tmp_path, suffix, shape, message):
    path = tmp_path / f"map{suffix}"
    content = npy_header(shape) + bytes(64)
    if suffix == ".npz":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("score.npy", content)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"map{suffix}: .*({message})"):
        read_score_map(path)


def test_npz_of_zeros_that_unpack_to_gigabytes(tmp_path):
    path = tmp_path / "map.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("score.npy", npy_header((50_000, 50_000)) + bytes(1 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"map.npz: at most 100 megapixels"):
        read_score_map(path)


def test_npz_with_a_compression_numpy_does_not_write(tmp_path):
    path = tmp_path / "map.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("score.npy", npy_header((2, 2)) + bytes(16))
    with pytest.raises(ValueError, match="map.npz: arrays must be stored or deflated"):
        read_score_map(path)


def test_hdf5_that_claims_to_be_large(tmp_path):
    # Chunks that were never written take no room in the file.
    with h5py.File(tmp_path / "map.hdf5", "w") as file:
        file.create_dataset("value", (100_000, 100_000), "f4", chunks=(100, 100), compression="gzip")
    assert (tmp_path / "map.hdf5").stat().st_size < 10_000
    with pytest.raises(ValueError, match="map.hdf5: at most 100 megapixels"):
        read_score_map(tmp_path / "map.hdf5")


def test_hdf5_with_values_in_other_files(tmp_path):
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["value"] = np.ones((2, 2))
    np.ones((2, 2), "f8").tofile(tmp_path / "raw")
    layout = h5py.VirtualLayout((2, 2), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "value", (2, 2))
    with h5py.File(tmp_path / "linked.hdf5", "w") as file:
        file["value"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "value")
    with h5py.File(tmp_path / "virtual.hdf5", "w") as file:
        file.create_virtual_dataset("value", layout)
    with h5py.File(tmp_path / "raw.hdf5", "w") as file:
        file.create_dataset("value", (2, 2), "f8", external=[(str(tmp_path / "raw"), 0, 32)])
    assert read_score_map(tmp_path / "secret.hdf5").values.sum() == 4
    for name, message in (("linked", "found none"), ("virtual", "in other files"), ("raw", "in other files")):
        with pytest.raises(ValueError, match=rf"{name}.hdf5: .*{message}"):
            read_score_map(tmp_path / f"{name}.hdf5")


def test_overlays_that_claim_to_be_large(tmp_path):
    with zipfile.ZipFile(tmp_path / "a_rgb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rgb.npy", npy_header((10**5, 10**5, 3), "<i2") + bytes(64))
    with pytest.raises(ValueError, match="a_rgb.npz.*100 megapixels"):
        read_overlay(tmp_path / "a_rgb.npz")

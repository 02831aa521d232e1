"""Images and labels as arrays, label maps, and every way in which a file can be wrong."""

from __future__ import annotations

import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from gmm_anomaly.data.reading import LabelRule, image_size, read_image, read_label, read_raw_label

RULE = LabelRule.build("ten", {value: value for value in range(10)}, num_classes=10)
RNG = np.random.default_rng(1)
PICTURE = RNG.integers(0, 256, (7, 11, 3), np.uint8)
LABEL = RNG.integers(0, 10, (7, 11), np.uint8)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def indexed(palette: np.ndarray) -> Image.Image:
    image = Image.fromarray(LABEL)
    image.putpalette(palette.ravel().tolist())
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def grey_png(width: int, height: int, depth: int, pixels: bytes) -> bytes:
    """A PNG written by hand: Pillow saves none of 2 bits, and none that claims a wrong size."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---- Images ----


def test_lossless_images_come_back_exactly(tmp_path, save_image):
    for extension in (".png", ".webp", ".bmp", ".ppm"):
        options = {"lossless": True} if extension == ".webp" else {}
        record = {"file_name": save_image(tmp_path / f"a{extension}", PICTURE, **options)}
        for order, expected in (("RGB", PICTURE), ("BGR", PICTURE[:, :, ::-1])):
            image = read_image(record, order)
            assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
            np.testing.assert_array_equal(image, expected)
    with pytest.raises(ValueError, match="format: expected one of RGB, BGR, found 'HSV'"):
        read_image(record, "HSV")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    path = str(tmp_path / "a.jpg")
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :16] = 255
    Image.fromarray(picture).save(path, exif=turned(orientation), quality=95)
    upright = detectron2_read_image(path, "RGB")
    np.testing.assert_array_equal(read_image({"file_name": path}, "RGB"), upright)
    assert image_size({"file_name": path}) == upright.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_leaves_the_image_as_stored(tmp_path, save_image):
    path = save_image(tmp_path / "a.png", PICTURE, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image({"file_name": path}, "RGB"), PICTURE)
    assert image_size({"file_name": path}) == (7, 11)


def test_palette_grey_and_alpha_give_the_colours_a_viewer_shows(tmp_path):
    palette = RNG.integers(0, 256, (10, 3), np.uint8)
    alpha = RNG.integers(0, 256, (7, 11, 1), np.uint8)
    cases = {
        "palette.png": (indexed(palette), palette[LABEL]),
        "grey.png": (Image.fromarray(LABEL), LABEL[..., None]),
        "alpha.png": (Image.fromarray(np.concatenate([PICTURE, alpha], 2)), PICTURE),
        "grey_alpha.png": (Image.fromarray(np.stack([LABEL, alpha[..., 0]], 2), "LA"), LABEL[..., None]),
        "mask.png": (Image.fromarray(LABEL > 4), np.where(LABEL > 4, 255, 0)[..., None]),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        found = read_image({"file_name": str(tmp_path / name)}, "RGB")
        np.testing.assert_array_equal(found, np.broadcast_to(expected, (7, 11, 3)), err_msg=name)


def test_of_16_bits_the_upper_8_are_kept(tmp_path, save_image):
    grey = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    path = save_image(tmp_path / "grey.png", grey)
    expected = np.repeat((grey >> 8)[..., None], 3, 2)
    np.testing.assert_array_equal(read_image({"file_name": path}, "RGB"), expected)
    colours = RNG.integers(0, 65536, (5, 4, 3), np.uint16)
    assert cv2.imwrite(str(tmp_path / "colours.png"), colours)
    found = read_image({"file_name": str(tmp_path / "colours.png")}, "BGR")
    np.testing.assert_array_equal(found, colours >> 8)


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_files_that_cannot_be_decoded_are_named(tmp_path, save_image, extension):
    path = tmp_path / f"frame_17{extension}"
    record = {"file_name": str(path), "sem_seg_file_name": str(path)}
    with pytest.raises(FileNotFoundError, match=f"no image .*frame_17{extension}"):
        read_image(record, "RGB")
    with pytest.raises(FileNotFoundError, match=f"no label .*frame_17{extension}"):
        read_label(record, RULE)
    save_image(path, RNG.integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"image .*frame_17{extension} cannot be decoded"):
        read_image(record, "RGB")
    path.write_text("<html>not found</html>")
    for read, source in ((image_size, record), (read_raw_label, path)):
        with pytest.raises(ValueError, match=f"frame_17{extension} cannot be decoded"):
            read(source)
    # A file of a few hundred bytes that claims gigabytes: Pillow's limit.
    path.write_bytes(grey_png(50_000, 50_000, 8, bytes(100_000)))
    with pytest.raises(ValueError, match=f"image .*frame_17{extension} is too large .*MAX_IMAGE_PIXELS"):
        read_image(record, "RGB")
    Image.new("F", (4, 3), 0.5).save(path, "TIFF")
    with pytest.raises(ValueError, match=f"frame_17{extension} .*floating point pixels"):
        read_image(record, "RGB")


# ---- Labels ----


def test_label_files_give_their_values(tmp_path):
    """Grey, palette of 8 and 4 bits whatever the colours, and 16 bits where the values fit."""
    palette = RNG.integers(0, 256, (10, 3), np.uint8)
    images = {8: Image.fromarray(LABEL), 4: indexed(palette), 16: Image.fromarray(LABEL.astype(np.uint16))}
    for bits, image in images.items():
        path = tmp_path / f"{bits}.png"
        image.save(path, **({"bits": 4} if bits == 4 else {}))
        assert path.read_bytes()[24] == bits
        found = read_raw_label(path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, LABEL)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (4, 3)), "must be a PNG of one 8-bit channel.*found PNG of mode RGB, 8 bits"),
        (Image.new("LA", (4, 3)), "mode LA"),
        (Image.new("1", (4, 3)), "mode 1, 1 b"),
        # Decoders stretch the values of few bits over 0 .. 255.
        (grey_png(4, 1, 2, bytes([0, 0b00011011])), "found PNG of mode L, 2 bits"),
        (Image.fromarray(np.full((2, 2), 256, np.uint16)), "must fit into 8 bits, .* values up to 256"),
    ],
)
def test_other_label_files_are_refused(tmp_path, image, message):
    path = tmp_path / "label.png"
    path.write_bytes(image) if isinstance(image, bytes) else image.save(path)
    with pytest.raises(ValueError, match=f"{path}: .*{message}"):
        read_raw_label(path)


def test_lossy_and_turned_labels_are_refused(tmp_path, save_image):
    with pytest.raises(ValueError, match="label.jpg: .*found JPEG of mode L"):
        read_raw_label(save_image(tmp_path / "label.jpg", LABEL))
    with pytest.raises(ValueError, match="label.png: the label has the EXIF orientation 3"):
        read_raw_label(save_image(tmp_path / "label.png", LABEL, exif=turned(3)))


def test_label_must_have_the_size_of_its_upright_image(tmp_path, save_image):
    record = {
        "file_name": save_image(tmp_path / "a.jpg", PICTURE, exif=turned(6)),
        "sem_seg_file_name": save_image(tmp_path / "b.png", LABEL),
    }
    with pytest.raises(ValueError, match=r"b.png is 11 x 7 \(width x height\), its image .*a.jpg is 7 x 11"):
        read_label(record, RULE)
    with pytest.raises(ValueError, match="a.jpg is 9 x 7"):
        read_label(record, RULE, size=(7, 9))
    save_image(tmp_path / "b.png", LABEL.T.copy())
    np.testing.assert_array_equal(read_label(record, RULE), LABEL.T)


def test_rendered_records_are_the_callers_own():
    render = {"seed": 5, "index": 3, "height": 64, "width": 128, "anomalies": False}
    record = {"file_name": "synthetic/000003", "render": render}
    image, label = read_image(record, "RGB"), read_label(record, RULE)
    assert image_size(record) == (64, 128)
    assert image.shape == (64, 128, 3) and label.shape == (64, 128)
    np.testing.assert_array_equal(read_image(record, "BGR"), image[:, :, ::-1])
    kept = image.copy()
    image[:], label[:] = 0, 0
    np.testing.assert_array_equal(read_image(record, "RGB"), kept)
    assert read_label(record, RULE).any()


# ---- Label maps ----


def test_apply_equals_a_dictionary_look_up():
    label_map = {0: 255, 3: 0, 7: 1, 254: 2}
    rule = LabelRule.build("set", label_map, num_classes=3)
    raw = RNG.choice(np.array([0, 3, 7, 254, 255], np.uint8), (40, 30))
    expected = [[(label_map | {255: 255})[int(value)] for value in row] for row in raw]
    mapped = rule.apply(raw, "file")
    assert mapped.dtype == np.uint8
    np.testing.assert_array_equal(mapped, expected)
    # 255 may be given a meaning.
    rule = LabelRule.build("set", {0: 0, 255: 1}, num_classes=2)
    assert rule.apply(np.array([[255, 0]], np.uint8), "f").tolist() == [[1, 0]]
    # Other values are refused.
    raw = LABEL % 2
    raw[2, 3:5], raw[0, 0] = 77, 10
    rule = LabelRule.build("pair", {0: 0, 1: 1, 3: 0}, num_classes=2)
    message = "bad.png: label value 10 (1 pixels), 77 (2 pixels) is outside the classes of pair; allowed: "
    with pytest.raises(ValueError, match=re.escape(f"{message}0-1, 3, 255.")):
        rule.apply(raw, "bad.png")


@pytest.mark.parametrize(
    ("metadata", "mapping"),
    [
        ({"evaluator_type": "anomaly"}, {0: 0, 1: 1, 255: 255}),
        ({"evaluator_type": "anomaly", "label_map": {0: 0, 2: 1}}, {0: 0, 2: 1, 255: 255}),
        # Detectron2's own.
        ({"evaluator_type": "sem_seg", "stuff_classes": ["a", "b"]}, {0: 0, 1: 1, 255: 255}),
        ({"stuff_classes": ["a", "b"], "ignore_label": 254}, {0: 0, 1: 1, 254: 255, 255: 255}),
        ({"stuff_classes": ["a", "b"], "ignore_label": 0}, {0: 255, 1: 1, 255: 255}),
    ],
)
def test_rules_of_metadata(metadata, mapping):
    rule = LabelRule.from_metadata(Metadata(name="set", **metadata))
    assert (dict(rule.mapping), rule.num_classes) == (mapping, 2)


@pytest.mark.parametrize(
    ("label_map", "count", "message"),
    [
        ({256: 0}, 2, "raw value 256; expected integers in 0 .. 255"),
        ({"road": 0}, 2, "raw value 'road'"),
        ({0: 2}, 2, r"maps 0 to 2; expected 0 .. 1 or 255"),
        ({0: -1}, 2, r"maps 0 to -1"),
        ({0: 0.5}, 2, r"maps 0 to 0.5"),
        ({}, 254, "expected 1 to 253 classes, found 254"),
    ],
)
def test_bad_label_maps(label_map, count, message):
    with pytest.raises(ValueError, match=message):
        LabelRule.build("set", label_map, num_classes=count)

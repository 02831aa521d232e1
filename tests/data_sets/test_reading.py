"""Images and labels as arrays, and every way in which a file can be wrong."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import read_image as detectron2_read_image
from PIL import Image

from gmm_anomaly.data.label_rule import LabelRule
from gmm_anomaly.data.reading import image_size, read_image, read_label, read_raw_label

RULE = LabelRule.build("ten", None, num_classes=10)


@pytest.fixture
def picture():
    return np.random.default_rng(1).integers(0, 256, (7, 11, 3), np.uint8)


@pytest.fixture
def label():
    return np.random.default_rng(2).integers(0, 10, (7, 11), np.uint8)


@pytest.mark.parametrize(
    ("extension", "options"), [(".png", {}), (".webp", {"lossless": True}), (".bmp", {}), (".ppm", {})]
)
def test_lossless_images_come_back_exactly(tmp_path, save_image, picture, extension, options):
    record = {"file_name": save_image(tmp_path / f"a{extension}", picture, **options)}
    for order, expected in (("RGB", picture), ("BGR", picture[:, :, ::-1])):
        image = read_image(record, order)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
        np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    path = str(tmp_path / "a.jpg")
    picture = np.zeros((16, 32, 3), np.uint8)
    picture[:8, :16] = 255
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(picture).save(path, exif=exif, quality=95)
    upright = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.swapaxes(0, 1),
        6: np.rot90(picture, -1),
        7: picture[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(picture),
    }[orientation]
    image = read_image({"file_name": path}, "RGB")
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() <= 6
    assert image_size(path) == upright.shape[:2]
    np.testing.assert_array_equal(image, detectron2_read_image(path, "RGB"))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_images_of_other_modes_become_three_channels(tmp_path, mode):
    path = str(tmp_path / "a.png")
    Image.new(mode, (4, 3), 1).save(path)
    assert read_image({"file_name": path}, "RGB").shape == (3, 4, 3)


def test_palette_grey_and_alpha_give_the_colours_a_viewer_shows(tmp_path, picture, label):
    palette = np.random.default_rng(4).integers(0, 256, (10, 3), np.uint8)
    indexed = Image.fromarray(label)
    indexed.putpalette(palette.ravel().tolist())
    alpha = np.random.default_rng(5).integers(0, 256, (7, 11, 1), np.uint8)
    cases = {
        "palette.png": (indexed, palette[label]),
        "grey.png": (Image.fromarray(label), np.repeat(label[..., None], 3, 2)),
        "alpha.png": (Image.fromarray(np.concatenate([picture, alpha], 2)), picture),
        "grey_alpha.png": (Image.fromarray(np.stack([label, alpha[..., 0]], 2), "LA"), label[..., None]),
        "mask.png": (Image.fromarray(label > 4), np.where(label > 4, 255, 0)[..., None]),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        found = read_image({"file_name": str(tmp_path / name)}, "RGB")
        np.testing.assert_array_equal(found, np.broadcast_to(expected, (7, 11, 3)), err_msg=name)


def test_of_16_bits_the_upper_8_are_kept(tmp_path, save_image):
    grey = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    expected = np.repeat((grey >> 8)[..., None], 3, 2)
    path = save_image(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_image({"file_name": path}, "RGB"), expected)
    colours = np.random.default_rng(6).integers(0, 65536, (5, 4, 3), np.uint16)
    assert cv2.imwrite(str(tmp_path / "colours.png"), colours)
    assert (tmp_path / "colours.png").read_bytes()[24] == 16
    found = read_image({"file_name": str(tmp_path / "colours.png")}, "BGR")
    np.testing.assert_array_equal(found, colours >> 8)


def test_floating_point_images_are_refused(tmp_path):
    Image.new("F", (4, 3), 0.5).save(tmp_path / "a.pfm")
    with pytest.raises(ValueError, match=r"image .*a.pfm has pixels of Pillow's mode 'F'"):
        read_image({"file_name": str(tmp_path / "a.pfm")}, "RGB")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_leaves_the_image_as_stored(tmp_path, save_image, picture):
    path = save_image(tmp_path / "a.png", picture, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image({"file_name": path}, "RGB"), picture)
    assert image_size(path) == (7, 11)


def test_unknown_format(tmp_path, save_image, picture):
    record = {"file_name": save_image(tmp_path / "a.png", picture)}
    with pytest.raises(ValueError, match="INPUT.FORMAT: expected one of RGB, BGR, found 'HSV'"):
        read_image(record, "HSV")


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_cut_off_image_is_named(tmp_path, save_image, extension):
    picture = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"frame_17{extension}"
    save_image(path, picture)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"image .*frame_17{extension} cannot be decoded"):
        read_image({"file_name": str(path)}, "RGB")


def test_file_that_is_no_image_is_named(tmp_path):
    path = tmp_path / "page.jpg"
    path.write_text("<html>not found</html>")
    for read in (lambda: read_image({"file_name": str(path)}, "RGB"), lambda: image_size(str(path))):
        with pytest.raises(ValueError, match="page.jpg cannot be decoded"):
            read()


def test_missing_files_are_named(tmp_path):
    path = str(tmp_path / "gone.png")
    with pytest.raises(FileNotFoundError, match="no image .*gone.png"):
        read_image({"file_name": path}, "RGB")
    with pytest.raises(FileNotFoundError, match="no image .*gone.png"):
        image_size(path)
    with pytest.raises(FileNotFoundError, match="no label .*gone.png"):
        read_label({"file_name": path, "sem_seg_file_name": path}, RULE)


def test_grey_and_palette_labels_give_their_values(tmp_path, label):
    grey = Image.fromarray(label)
    palette = Image.fromarray(label)
    palette.putpalette(list(np.random.default_rng(4).integers(0, 256, 30)))
    for name, image in (("grey", grey), ("palette", palette)):
        path = str(tmp_path / f"{name}.png")
        image.save(path)
        np.testing.assert_array_equal(read_raw_label(path), label)
    with Image.open(path) as stored:
        assert stored.mode == "P"


def test_four_bit_palette_labels_are_not_stretched(tmp_path, label):
    image = Image.fromarray(label)
    image.putpalette(list(range(48)))
    path = tmp_path / "small.png"
    image.save(path, bits=4)
    assert path.read_bytes()[24] == 4
    np.testing.assert_array_equal(read_raw_label(str(path)), label)


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        ("RGB", "mode RGB with 8 bits; colours are no label values"),
        ("LA", "mode LA"),
        ("1", "mode 1 with 1 b"),
    ],
)
def test_other_label_modes_are_refused(tmp_path, mode, found):
    path = str(tmp_path / "label.png")
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(ValueError, match=rf"label.png: a label must be a PNG of one 8-bit channel.*{found}"):
        read_raw_label(path)


def test_wide_labels_are_taken_if_their_values_fit(tmp_path, save_image, label):
    path = save_image(tmp_path / "label.png", label.astype(np.uint16))
    assert (tmp_path / "label.png").read_bytes()[24] == 16
    found = read_raw_label(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, label)
    wide = label.astype(np.uint16)
    wide[3, 4] = 256
    save_image(path, wide)
    with pytest.raises(
        ValueError, match=r"label.png: label values must fit into 8 bits, .* values up to 256"
    ):
        read_raw_label(path)


def test_turned_labels_are_refused(tmp_path, save_image, label):
    exif = Image.Exif()
    exif[274] = 3
    path = save_image(tmp_path / "label.png", label, exif=exif)
    with pytest.raises(ValueError, match="label.png: the label has the EXIF orientation 3"):
        read_raw_label(path)


def test_lossy_label_files_are_refused(tmp_path, save_image, label):
    path = save_image(tmp_path / "label.jpg", label)
    with pytest.raises(ValueError, match="found JPEG of mode L"):
        read_raw_label(path)


def test_two_bit_grey_labels_are_refused_because_decoders_stretch_them(tmp_path):
    # A 4 x 1 grey PNG of depth 2, written by hand: PIL saves no such file.
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "label.png"
    header = struct.pack(">IIBBBBB", 4, 1, 2, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, 0b00011011]))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match="found PNG of mode L with 2 bits"):
        read_raw_label(str(path))


def test_label_is_mapped_by_metadata(tmp_path, save_image, picture):
    raw = np.resize(np.array([0, 2, 255], np.uint8), (7, 11))
    record = {
        "file_name": save_image(tmp_path / "a.png", picture),
        "sem_seg_file_name": save_image(tmp_path / "b.png", raw),
    }
    metadata = MetadataCatalog.get("a test's own metadata")
    metadata.set(evaluator_type="anomaly", label_map={0: 0, 2: 1})
    try:
        expected = np.where(raw == 2, 1, raw)
        np.testing.assert_array_equal(read_label(record, metadata), expected)
    finally:
        MetadataCatalog.remove("a test's own metadata")


def test_label_value_outside_the_classes(tmp_path, save_image, picture, label):
    label[2, 3:5] = 77
    label[0, 0] = 10
    record = {
        "file_name": save_image(tmp_path / "a.png", picture),
        "sem_seg_file_name": save_image(tmp_path / "bad.png", label),
    }
    with pytest.raises(ValueError) as caught:
        read_label(record, RULE)
    message = str(caught.value)
    assert "bad.png: label value 10 (1 pixels), 77 (2 pixels)" in message
    assert "classes of ten; allowed: 0-9, 255" in message


def test_label_of_another_size(tmp_path, save_image, picture, label):
    record = {
        "file_name": save_image(tmp_path / "a.png", picture),
        "sem_seg_file_name": save_image(tmp_path / "b.png", label[:, :9]),
    }
    with pytest.raises(ValueError, match=r"b.png is 9 x 7 \(width x height\), its image .*a.png is 11 x 7"):
        read_label(record, RULE)


def test_label_of_a_turned_image_must_be_upright(tmp_path, save_image, picture, label):
    exif = Image.Exif()
    exif[274] = 6
    record = {
        "file_name": save_image(tmp_path / "a.jpg", picture, exif=exif),
        "sem_seg_file_name": save_image(tmp_path / "b.png", label),
    }
    with pytest.raises(ValueError, match=r"a.jpg is 7 x 11 upright \(it has the EXIF orientation 6\)"):
        read_label(record, RULE)
    save_image(tmp_path / "b.png", label.T.copy())
    np.testing.assert_array_equal(read_label(record, RULE), label.T)


def test_withheld_label_names_the_data_set(tmp_path):
    with pytest.raises(ValueError, match="ten: the label of x.png is withheld"):
        read_label({"file_name": "x.png"}, RULE)


def test_rendered_records_are_the_callers_own():
    record = {
        "file_name": "synthetic/000003",
        "render": {"seed": 5, "index": 3, "height": 64, "width": 128, "anomalies": False},
    }
    metadata = SimpleNamespace(
        name="streets", get={"evaluator_type": "closed_set", "stuff_classes": ["x"] * 10}.get
    )
    image, label = read_image(record, "RGB"), read_label(record, metadata)
    assert image.shape == (64, 128, 3) and label.shape == (64, 128)
    np.testing.assert_array_equal(read_image(record, "BGR"), image[:, :, ::-1])
    kept = image.copy()
    image[:] = 0
    label[:] = 0
    np.testing.assert_array_equal(read_image(record, "RGB"), kept)
    assert read_label(record, metadata).any()

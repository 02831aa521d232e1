"""Damaged files, hundreds of each format: a reader gives a sound result or its documented error, in time.

GMM_ANOMALY_FUZZ sets how many damaged copies of each file are read; 200 by default.
"""

from __future__ import annotations

import importlib.util
import io
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gmm_anomaly.data.image_files import MAX_PIXELS
from gmm_anomaly.data.label_rule import LabelRule
from gmm_anomaly.data.prepare_fishyscapes import read_overlay
from gmm_anomaly.data.reading import image_size, read_image, read_label
from gmm_anomaly.evaluation.score_files import read_score_map
from gmm_anomaly.weight_files import read_weights

_spec = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)

COPIES = int(os.environ.get("GMM_ANOMALY_FUZZ", "200"))
# Of wall time, on a machine that may be busy; a file takes milliseconds.
SECONDS_A_FILE = 30
MISSING = "gone.png"
RULE = LabelRule.build("ten", None, num_classes=10)

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (12, 17, 3), np.uint8)
LABEL = RNG.integers(0, 10, (12, 17), np.uint8)
SCORE = RNG.normal(size=(12, 17)).astype(np.float32)


def packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_palette() -> Image.Image:
    image = Image.fromarray(LABEL)
    image.putpalette(list(range(30)))
    return image


def arrays(save: Callable[..., None], *positional: Any, **named: Any) -> bytes:
    file = io.BytesIO()
    save(file, *positional, **named)
    return file.getvalue()


def hdf5(**options: Any) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as stored:
        stored.create_dataset("value", data=SCORE, **options)
    return file.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def scaled() -> PngInfo:
    text = PngInfo()
    text.add_text("scale", "0.5")
    text.add_text("offset", "-10", zip=True)
    return text


def check_image(path: Path) -> None:
    image = read_image({"file_name": str(path)}, "RGB")
    assert (
        image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size <= 3 * MAX_PIXELS
    )
    assert image_size(str(path)) == image.shape[:2]


def check_label(path: Path) -> None:
    label = read_label({"file_name": MISSING, "sem_seg_file_name": str(path)}, RULE)
    assert label.dtype == np.uint8 and label.ndim == 2
    assert set(np.unique(label)) <= {*range(10), 255}


def check_pair(path: Path) -> None:
    """The label is whole, the image beside it damaged: its size is all that counts."""
    label = path.with_name("whole.png")
    if not label.exists():
        label.write_bytes(
            packed(Image.fromarray(LABEL.T.copy()), "PNG")
        )  # the image is turned by its EXIF tag
    record = {"file_name": str(path), "sem_seg_file_name": str(label)}
    assert read_label(record, RULE).shape == image_size(str(path))


def check_score(path: Path) -> None:
    values = read_score_map(path).values
    assert values.ndim == 2 and values.dtype.kind == "f" and 0 < values.size <= MAX_PIXELS


def check_overlay(path: Path) -> None:
    overlay = read_overlay(path)
    assert overlay.ndim == 3 and overlay.shape[2] == 3


def check_weights(path: Path) -> None:
    read_weights(path)


COLOURS, INDICES = Image.fromarray(PICTURE), Image.fromarray(LABEL)
SIXTEEN = Image.fromarray(LABEL.astype(np.uint16))
STATE = {"model": {"a": SCORE[:2], "b": np.arange(3)}, "__author__": "zoo"}
TENSORS = {"model": {"a": torch.ones(2, 3), "b": torch.arange(3)}, "iteration": 7}

FILES: dict[str, tuple[Callable[[Path], None], str, bytes]] = {
    "png image": (check_image, ".png", packed(COLOURS, "PNG")),
    "16-bit image": (check_image, ".png", packed(SIXTEEN, "PNG")),
    "palette image": (check_image, ".png", packed(with_palette(), "PNG", transparency=3)),
    "jpeg image": (check_image, ".jpg", packed(COLOURS, "JPEG", exif=turned())),
    "progressive image": (check_image, ".jpg", packed(COLOURS, "JPEG", progressive=True)),
    "webp image": (check_image, ".webp", packed(COLOURS, "WEBP", lossless=True, exif=turned())),
    "bmp image": (check_image, ".bmp", packed(with_palette(), "BMP")),
    "ppm image": (check_image, ".ppm", packed(COLOURS, "PPM")),
    "image of a label": (check_pair, ".jpg", packed(COLOURS, "JPEG", exif=turned())),
    "grey label": (check_label, ".png", packed(INDICES, "PNG")),
    "palette label": (check_label, ".png", packed(with_palette(), "PNG", bits=4)),
    "16-bit label": (check_label, ".png", packed(SIXTEEN, "PNG")),
    "npy score": (check_score, ".npy", arrays(np.save, SCORE)),
    "npz score": (check_score, ".npz", arrays(np.savez, score=SCORE)),
    "small npz score": (check_score, ".npz", arrays(np.savez_compressed, score=SCORE.astype(np.float16))),
    "hdf5 score": (check_score, ".hdf5", hdf5(compression="gzip")),
    "h5 score": (check_score, ".h5", hdf5()),
    "png score": (check_score, ".png", packed(SIXTEEN, "PNG", pnginfo=scaled())),
    "overlay": (check_overlay, ".npz", arrays(np.savez_compressed, rgb=PICTURE.astype(np.int16))),
    "zoo weights": (check_weights, ".pkl", pickle.dumps(STATE, protocol=2)),
    "weights": (check_weights, ".pth", arrays(lambda file: torch.save(TENSORS, file))),
}


def read_all(name: str, folder: Path, reached: Any, results: Any) -> None:
    """In a process of its own: read damaged copies; say what went wrong, and how many were refused."""
    check, suffix, content = FILES[name]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # What libraries print about damaged files.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faults, refused = [], 0
    path = folder / f"damaged{suffix}"
    for number in range(COPIES):
        reached.value = number
        signal.alarm(SECONDS_A_FILE)
        path.write_bytes(mutations.mutated(content, name, number))
        try:
            check(path)
        except ValueError as error:
            refused += 1
            if path.name not in str(error):
                faults.append(f"copy {number}: the error names no file: {error!r}")
        except BaseException as error:
            faults.append(f"copy {number}: {error!r}")
    signal.alarm(0)
    results.put((faults, refused))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name, tmp_path):
    check, suffix, content = FILES[name]
    (tmp_path / f"whole{suffix}").write_bytes(content)
    check(tmp_path / f"whole{suffix}")
    context = multiprocessing.get_context("fork")
    reached, results = context.Value("i", -1), context.SimpleQueue()
    process = context.Process(target=read_all, args=(name, tmp_path, reached, results))
    process.start()
    process.join()
    assert process.exitcode != -signal.SIGALRM, f"copy {reached.value}: not read in {SECONDS_A_FILE} seconds"
    assert process.exitcode == 0, f"copy {reached.value}: the process ended with {process.exitcode}"
    faults, refused = results.get()
    assert not faults, "\n".join(faults)
    assert refused > COPIES // 10

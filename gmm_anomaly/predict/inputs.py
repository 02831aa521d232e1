"""What is predicted: images in any of the forms that a person has them in, videos, files and folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image

from gmm_anomaly.data.pairing import IMAGE_EXTENSIONS, is_hidden
from gmm_anomaly.data.reading import IMAGE_FORMATS, read_image, upright_rgb

AnyImage: TypeAlias = "np.ndarray | torch.Tensor | Image.Image | str | os.PathLike[str]"
VIDEO_EXTENSIONS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
# Those whose header counts the frames; of others OpenCV knows the length in seconds, sound included.
COUNTED_EXTENSIONS = (".mp4", ".avi", ".mov", ".m4v")
# Of videos that do not say.
DEFAULT_FPS = 25.0
logger = logging.getLogger(__name__)
_EXPECTED = "an (H, W, 3) uint8 array, a (3, H, W) uint8 tensor"


def as_rgb(image: AnyImage, format: str = "RGB") -> np.ndarray:
    """An image as an array.

    Args:
        image: (H, W, 3) uint8 array, (3, H, W) uint8 tensor on any device, PIL image, or path of a
            file. Files and PIL images are turned upright by their EXIF orientation.
        format: channel order of arrays and tensors, "RGB" or "BGR" (OpenCV's); the others know their own.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be decoded, another shape, an unknown format. TypeError: another type.
    """
    if format not in IMAGE_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(IMAGE_FORMATS)}, found {format!r}")
    if isinstance(image, str | os.PathLike):
        return read_image({"file_name": os.path.expanduser(image)}, "RGB")
    if isinstance(image, Image.Image):
        return np.array(upright_rgb(image), order="C")
    array: Any = image
    if isinstance(image, torch.Tensor):
        array = image.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if image.ndim == 3 else array
    elif not isinstance(image, np.ndarray):
        raise TypeError(f"image: expected {_EXPECTED}, a PIL image or a path, found {type(image).__name__}")
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f"image: expected {_EXPECTED}, found {tuple(image.shape)} {image.dtype}. Of a grey image give "
            "np.stack([image] * 3, axis=-1), values in [0, 1] times 255, the images of a batch to predict()"
        )
    return np.array(array if format == "RGB" else array[..., ::-1], order="C")


class VideoReader:
    """The frames of a video file, (H, W, 3) uint8 BGR, in order.

    Attributes:
        fps: frames per second.
        frames: how many the file says it has, or None.
        least_frames: with fewer than these the file is damaged.

    Raises:
        ValueError: the file cannot be opened as a video, or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        read, self._first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not read:
            raise ValueError(f"video {path} cannot be decoded: it is corrupt, empty, or of an unknown codec")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        frames = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = int(frames) if frames > 0 else None
        # Where OpenCV estimates their number, a second may be missing.
        counted = path.suffix.lower() in COUNTED_EXTENSIONS
        self.least_frames = (self.frames or 0) - (0 if counted else self.fps)

    def __iter__(self) -> Iterator[np.ndarray]:
        read, frame = True, self._first
        while read:
            yield frame
            read, frame = self._capture.read()
        self._capture.release()


def list_sources(given: Iterable[str]) -> list[Path]:
    """Images and videos of files, folders and patterns, each once, in the order given.

    A folder means the images and videos directly in it, by name; a pattern whatever it matches, and with
    ``**`` in any depth. Hidden files are left out. A file that is named is taken whatever its extension, as a
    video if it has a video's (:func:`is_video`).

    Raises:
        FileNotFoundError: no such file, a folder without images, or a pattern that matches nothing.
        ValueError: two images or two videos of one name, whose results would overwrite each other.
    """
    paths = list(dict.fromkeys(path for entry in given for path in _paths(entry)))
    videos = {path.stem: path for path in paths if is_video(path)}
    by_name: dict[tuple[str, bool], Path] = {}
    for path in paths:
        other = by_name.setdefault((path.stem, is_video(path)), path)
        # The scores of a video's frames are numbered.
        numbered = re.fullmatch(r"(.+)_\d{6,}", path.stem)
        if numbered and not is_video(path):
            other = videos.get(numbered[1], other)
        if other is not path:
            raise ValueError(
                f"{other} and {path} would be written under one name, {path.stem!r}; predict them in two "
                "calls with different --out"
            )
    return paths


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_EXTENSIONS


def _paths(entry: str) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        return [path]
    candidates = list(path.iterdir()) if path.is_dir() else [*map(Path, glob(entry, recursive=True))]
    extensions = IMAGE_EXTENSIONS + VIDEO_EXTENSIONS
    found = sorted(
        file
        for file in candidates
        if file.suffix.lower() in extensions and not is_hidden(file, entry) and file.is_file()
    )
    seen = [file for file in candidates if file.is_file() and not is_hidden(file, entry)]
    if kinds := {file.suffix.lower() or file.name for file in seen} - {*extensions}:
        logger.warning("%s: files of other kinds are left out: %s", entry, ", ".join(sorted(kinds)))
    if not found:
        wrong = "no images or videos in this folder" if path.is_dir() else "no such file or folder"
        raise FileNotFoundError(f"{entry}: {wrong} ({', '.join(extensions)})")
    return found

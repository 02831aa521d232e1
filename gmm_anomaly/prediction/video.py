"""Videos: frames in, an overlay video and one line of JSON per frame out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from gmm_anomaly.data.atomic import replacing

from .results import Prediction

# Where a file does not say.
DEFAULT_FPS = 25.0


class VideoReader:
    """The frames of a video file, (H, W, 3) uint8 BGR, in order; use it in a ``with``.

    Attributes:
        fps: frames per second. frames: how many the file says it has, or None.

    Raises:
        ValueError: the file cannot be opened as a video, or holds no frame.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture = cv2.VideoCapture(str(path))
        read, self._first = self._capture.read() if self._capture.isOpened() else (False, None)
        if not read:
            self._capture.release()
            raise ValueError(f"video {path} cannot be decoded: it is corrupt, empty, or of an unknown codec")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        frames = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.frames = int(frames) if frames > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        frame: np.ndarray | None = self._first
        while frame is not None:
            yield frame
            read, following = self._capture.read()
            frame = following if read else None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._capture.release()


@contextmanager
def video_writer(target: Path, fps: float) -> Iterator[Any]:
    """A function that appends (H, W, 3) uint8 RGB pictures of one size to an MP4 file.

    The file has its name once it is complete; after an error there is none. H.264 needs a library that
    OpenCV's wheels lack, so the codec is MPEG-4.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(target) as temporary:
        # OpenCV goes by the extension.
        growing = temporary.with_name(temporary.name + target.suffix)
        writer: cv2.VideoWriter | None = None

        def append(picture: np.ndarray) -> None:
            nonlocal writer
            if writer is None:
                size = picture.shape[1], picture.shape[0]
                writer = cv2.VideoWriter(str(growing), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
                if not writer.isOpened():
                    raise OSError(f"{target}: OpenCV cannot write an MPEG-4 video there")
            writer.write(np.ascontiguousarray(picture[..., ::-1]))

        try:
            yield append
            if writer is not None:
                writer.release()
                os.replace(growing, temporary)
        finally:
            if writer is not None:
                writer.release()
            growing.unlink(missing_ok=True)


def frame_line(index: int, fps: float, prediction: Prediction) -> str:
    """One frame as a line of JSON; its components only if there is a threshold."""
    found: dict[str, Any] = {
        "frame": index,
        "seconds": round(index / fps, 6),
        "mean_score": float(prediction.score.mean(dtype=np.float64)),
        "max_score": float(prediction.score.max()),
    }
    if prediction.threshold is not None:
        found["components"] = [component.to_json() for component in prediction.components]
    return json.dumps(found)


def write_video(folder: Path, name: str, fps: float, predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Write ``videos/NAME.mp4`` and ``videos/NAME.jsonl``; both appear when the last frame is there.

    Args:
        predictions: of the frames, at least one, all of one size and colour range.

    Returns:
        What was written, as plain values.
    """
    video, lines = folder / "videos" / f"{name}.mp4", folder / "videos" / f"{name}.jsonl"
    frames = 0
    anomalous: int | None = None
    with (
        replacing(lines) as temporary,
        temporary.open("w") as file,
        video_writer(video, fps) as append,
    ):
        for index, prediction in enumerate(predictions):
            append(prediction.overlay())
            file.write(frame_line(index, fps, prediction) + "\n")
            frames += 1
            if prediction.threshold is not None:
                anomalous = (anomalous or 0) + bool(prediction.components)
    return {
        "frames": frames,
        "fps": fps,
        "frames_with_anomalies": anomalous,
        "overlay": str(video),
        "lines": str(lines),
    }

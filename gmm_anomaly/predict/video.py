"""Videos: frames in, an overlay video and one line of JSON per frame out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from gmm_anomaly.data.atomic import replacing

from .result import Prediction

# Where a file does not say.
DEFAULT_FPS = 25.0


class VideoReader:
    """The frames of a video file, (H, W, 3) uint8 BGR, in order.

    Attributes:
        fps: frames per second. frames: how many the file says it has, or None.

    Raises:
        ValueError: the file cannot be opened as a video, or holds no frame.
    """

    def __init__(self, path: Path) -> None:
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
        read, frame = True, self._first
        while read:
            yield frame
            read, frame = self._capture.read()
        self._capture.release()


def extremes(prediction: Prediction) -> dict[str, float]:
    score = prediction.score
    return {"mean_score": float(score.mean(dtype=np.float64)), "max_score": float(score.max())}


def write_video(folder: Path, name: str, fps: float, predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Write ``videos/NAME.mp4`` (MPEG-4: H.264 needs a library that OpenCV's wheels lack) and its lines; both
    appear when the last frame is there.

    Args:
        fps: frames per second. predictions: of the frames, at least one, of one size and colour range.

    Returns:
        What was written, as plain values.

    Raises:
        OSError: the video cannot be written.
    """
    video, lines = (folder / "videos" / f"{name}.{kind}" for kind in ("mp4", "jsonl"))
    writer, frames, anomalous = cv2.VideoWriter(), 0, None
    with replacing(video) as unfinished, replacing(lines) as temporary, temporary.open("w") as file:
        # OpenCV goes by the extension.
        growing = unfinished.with_suffix(".mp4")
        try:
            for prediction in predictions:
                line: dict[str, Any] = {"frame": frames, "seconds": round(frames / fps, 6)}
                line |= extremes(prediction)
                if prediction.threshold is not None:
                    line["components"] = [component.to_json() for component in prediction.components]
                    anomalous = (anomalous or 0) + bool(prediction.components)
                file.write(json.dumps(line) + "\n")
                picture = np.ascontiguousarray(prediction.overlay()[..., ::-1])
                if not frames:
                    writer.open(str(growing), cv2.VideoWriter.fourcc(*"mp4v"), fps, picture.shape[1::-1])
                if not writer.isOpened():
                    raise OSError(f"{video}: OpenCV cannot write an MPEG-4 video there")
                writer.write(picture)
                frames += 1
            writer.release()
            growing.replace(unfinished)
        finally:
            writer.release()
            growing.unlink(missing_ok=True)
    found = {"frames": frames, "fps": fps, "frames_with_anomalies": anomalous}
    return found | {"overlay": str(video), "lines": str(lines)}

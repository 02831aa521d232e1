"""A camera, predicted frame by frame in a window until somebody presses q."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from .results import Prediction
from .video import DEFAULT_FPS


@contextmanager
def open_camera(number: int) -> Iterator[cv2.VideoCapture]:
    """A camera by its number, from 0.

    Raises:
        OSError: there is no such camera, or it gives no picture.
    """
    capture = cv2.VideoCapture(number)
    try:
        if not capture.isOpened():
            raise OSError(
                f"--webcam {number}: there is no camera of this number, or another program uses it; on Linux "
                "`ls /dev/video*` lists them"
            )
        yield capture
    finally:
        capture.release()


def require_display() -> None:
    """Raise unless OpenCV can open a window.

    Raises:
        OSError: there is no display. ImportError: this OpenCV was built without windows.
    """
    advice = "record videos and give the files instead"
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise OSError(f"--webcam shows a window, and there is no display (DISPLAY is not set); {advice}")
    try:
        cv2.namedWindow(_WINDOW)
    except cv2.error as error:
        raise ImportError(
            "--webcam shows a window, and this OpenCV was built without (opencv-python-headless): "
            f"pip install opencv-python in its place, or {advice}"
        ) from error


def frame_rate(capture: cv2.VideoCapture, predict: Callable[[np.ndarray], Prediction]) -> float:
    """Frames per second that camera and model reach together.

    Raises:
        OSError: the camera gives no picture.
    """
    frame = _read(capture)
    predict(frame)  # the first one warms up
    start = time.perf_counter()
    predict(frame)
    own = capture.get(cv2.CAP_PROP_FPS)
    return min(own if 0 < own < 1000 else DEFAULT_FPS, 1 / (time.perf_counter() - start))


def watch(capture: cv2.VideoCapture, predict: Callable[[np.ndarray], Prediction]) -> Iterator[Prediction]:
    """Predict frames, (H, W, 3) uint8 BGR, and show each until q is pressed; yields the predictions.

    Raises:
        OSError: the camera gives no more pictures.
    """
    try:
        while True:
            prediction = predict(_read(capture))
            cv2.imshow(_WINDOW, np.ascontiguousarray(prediction.overlay()[..., ::-1]))
            yield prediction
            if cv2.waitKey(1) & 0xFF == ord("q"):
                return
    finally:
        cv2.destroyAllWindows()


_WINDOW = "gmm-anomaly: q quits"


def _read(capture: cv2.VideoCapture) -> np.ndarray:
    read, frame = capture.read()
    if not read:
        raise OSError("the camera gives no picture; is it still connected?")
    return frame

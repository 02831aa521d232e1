"""A picture and its label map from (seed, index): sample the scene, paint far to near, then expose it."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from .anomalies import Anomaly, sample_anomalies
from .backdrop import paint_backdrop
from .buildings import Plot, paint_plot
from .canvas import Frame
from .ground import in_wall_shadow, paint_ground
from .labels import ANOMALY_LABEL, IGNORE_LABEL
from .light import Light
from .scene import Scene, Thing, sample_scene

MIN_HEIGHT, MIN_WIDTH = 64, 128
# Streams of one picture, so that adding anomalies moves neither the street nor the sensor noise.
_SCENE, _ANOMALIES, _SENSOR = range(3)


def render_street(
    seed: int, index: int, height: int = 256, width: int = 512, anomalies: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Street number ``index`` of the data set ``seed``.

    Returns the image, (height, width, 3) uint8 RGB, and the label map, (height, width) uint8: a class index,
    255 for void, and with ``anomalies`` 254 on objects of unknown kinds. The same arguments give the same
    bytes in any process and order. With and without anomalies it is the same street, and outside anomalies,
    their void border and the void rim of the picture the labels agree.

    Raises ValueError for a negative seed or index, and for a picture smaller than 64 x 128.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, found seed={seed}, index={index}")
    if height < MIN_HEIGHT or width < MIN_WIDTH:
        raise ValueError(
            f"a street needs at least height x width {MIN_HEIGHT} x {MIN_WIDTH}, found {height} x {width}"
        )
    scene = sample_scene(np.random.default_rng((seed, index, _SCENE)), height, width)
    strangers: list[Anomaly] = []
    if anomalies:
        rng = np.random.default_rng((seed, index, _ANOMALIES))
        solids = [thing for thing in scene.things if thing.z < 60]
        strangers = sample_anomalies(rng, scene.camera, scene.street, solids)
    frame = _paint(scene, strangers)
    if anomalies:
        _add_void_border(frame.label)
    _paint_hood(frame, scene.hood)
    if anomalies:
        rim = max(1, round(height / 128))
        for edge in (np.s_[:rim], np.s_[-rim:], np.s_[:, :rim], np.s_[:, -rim:]):
            frame.label[edge] = IGNORE_LABEL
    image = _expose(frame.image, scene.light, np.random.default_rng((seed, index, _SENSOR)))
    return image, frame.label


def _paint(scene: Scene, strangers: list[Anomaly]) -> Frame:
    frame = Frame(scene.camera, scene.light)
    standing: list[Thing | Anomaly] = [*scene.things, *strangers]
    for thing in standing:
        if thing.z < 70:
            thing.cast(frame)
    paint_backdrop(frame, scene.backdrop)
    paint_ground(frame, scene.street, scene.wall_heights)
    # A wall is as deep as its far end: whatever stands in front of it comes later.
    queue: list[tuple[float, Plot | Thing | Anomaly]] = [
        (plot.z1, plot) for plot in scene.plots if plot.z1 > 2.0
    ]
    queue += [(thing.z, thing) for thing in standing]
    queue.sort(key=lambda entry: -entry[0])
    for _, item in queue:
        if isinstance(item, Plot):
            paint_plot(frame, item)
        else:
            shaded = in_wall_shadow(frame, scene.street, scene.wall_heights, item.x, item.z)
            item.paint(frame, 0.25 + 0.75 * scene.light.ambient if shaded else 1.0)
    return frame


def _add_void_border(label: np.ndarray) -> None:
    """One to two pixels around anomalies (at 256 rows), where blending mixes them with the street."""
    anomaly = (label == ANOMALY_LABEL).astype(np.uint8)
    size = 2 * max(1, round(label.shape[0] / 256)) + 1
    wide = cv2.dilate(anomaly, np.ones((size, size), np.uint8))
    label[(wide > 0) & (anomaly == 0)] = IGNORE_LABEL


def _paint_hood(frame: Frame, share: float) -> None:
    """The own car's bonnet at the lower edge, void as in real recordings."""
    if not share:
        return
    height, width = frame.label.shape
    columns = (np.arange(width, dtype=np.float32)[None] / width - 0.5) * 2.0
    top = height * (1.0 - share * (1.0 - 0.55 * columns**2))
    first = int(height * (1.0 - share)) - 1
    rows = np.arange(first, height, dtype=np.float32)[:, None]
    cover = np.clip(rows - top + 0.5, 0.0, 1.0)
    gloss = 18.0 + 70.0 * np.exp(-(((rows - top) / (0.012 * height)) ** 2)) * (
        0.4 + 0.6 * frame.light.ambient
    )
    region = frame.image[:, first:]
    region += cover * (gloss - region)
    frame.label[first:][cover > 0.02] = IGNORE_LABEL


@lru_cache(maxsize=4)
def _corner_distance(height: int, width: int) -> np.ndarray:
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None]
    return 0.5 * (x * x + y * y)


def _expose(image: np.ndarray, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Lens, exposure, white balance, tone curve, sensor noise and compression, over everything alike."""
    height, width = image.shape[1:]
    curve = np.arange(256, dtype=np.float64)[:, None] / 255.0 * light.gains
    table = np.rint(255.0 * np.clip(curve, 0.0, 1.0) ** light.gamma).astype(np.uint8)
    falloff = (1.0 - light.vignette * _corner_distance(height, width)) * np.float32(light.exposure)
    sigma = max(light.blur * height / 256, 0.3)
    luma = _noise(rng, height, width) * np.float32(0.8 * light.noise)
    planes = []
    for channel in range(3):
        plane = cv2.GaussianBlur(image[channel], (0, 0), sigma)
        plane *= falloff
        np.maximum(plane, 0.0, out=plane)
        toned = cv2.LUT(cv2.convertScaleAbs(plane), table[:, channel])
        chroma = _noise(rng, (height + 1) // 2, (width + 1) // 2) * np.float32(0.6 * light.noise)
        grain = cv2.resize(chroma, (width, height), interpolation=cv2.INTER_LINEAR)
        grain += luma
        planes.append(cv2.add(toned, grain, dtype=cv2.CV_8U))
    if not light.jpeg:
        return cv2.merge(planes)
    _, packed = cv2.imencode(".jpg", cv2.merge(planes[::-1]), [cv2.IMWRITE_JPEG_QUALITY, light.jpeg])
    return cv2.cvtColor(cv2.imdecode(packed, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Unit-variance noise from sums of two uniform bytes: near enough to normal, at a tenth of the time."""
    draws = rng.integers(0, 256, (2, height, width), dtype=np.uint8)
    return (draws[0].astype(np.float32) + draws[1] - np.float32(255.0)) * np.float32(1.0 / 104.5)

"""A picture and its label map from (seed, index): sample the street, paint it far to near, then expose it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from .anomalies import sample_anomalies
from .buildings import Plot
from .canvas import ANOMALY_LABEL, IGNORE_LABEL, Camera, Frame, Light, Thing
from .figures import Person, Plant, lamp_row, sign_post
from .street import Street, paint_backdrop
from .vehicles import Car

# Raised with every change that alters a pixel: a cached split of another version is stale.
RENDERER_VERSION = 3
MIN_HEIGHT, MIN_WIDTH = 64, 128
_VIEW = 130.0  # metres of built-up street
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

    Raises:
        ValueError: a negative seed or index, or a picture smaller than 64 x 128.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, found seed={seed}, index={index}")
    if height < MIN_HEIGHT or width < MIN_WIDTH:
        raise ValueError(
            f"a street needs at least height x width {MIN_HEIGHT} x {MIN_WIDTH}, found {height} x {width}"
        )
    rng = np.random.default_rng((seed, index, _SCENE))
    frame = Frame(Camera(rng, height, width), Light(rng))
    paint_backdrop(frame, rng)
    street = Street(rng)
    density = rng.choice([0.92, 0.65, 0.35], p=[0.45, 0.35, 0.2])
    plots, things = _sample_plots(rng, street, density)
    things += _sample_cars(rng, street)
    things += _sample_people(rng, street)
    things += _sample_verges(rng, street)
    hood = rng.uniform(0.03, 0.09) if rng.random() < 0.35 else 0.0
    if anomalies:
        solids = [thing for thing in things if thing.z < 60]
        strangers = np.random.default_rng((seed, index, _ANOMALIES))
        things += sample_anomalies(strangers, frame.camera, street, solids)
    frame.walls = [(wall, _wall_heights(plots, side)) for wall, side in zip(street.walls, (-1, 1), strict=True)]
    _paint(frame, street, plots, things)
    if anomalies:
        _add_void_border(frame.label)
    if hood:
        _paint_hood(frame, hood)
    if anomalies:
        rim = max(1, round(height / 128))
        inside = frame.label[rim:-rim, rim:-rim]
        frame.label = cv2.copyMakeBorder(inside, *(rim,) * 4, cv2.BORDER_CONSTANT, value=IGNORE_LABEL)
    image = _expose(frame.image, frame.light, np.random.default_rng((seed, index, _SENSOR)))
    return image, frame.label


def _sample_plots(
    rng: np.random.Generator, street: Street, density: float
) -> tuple[list[Plot], list[Thing]]:
    plots: list[Plot] = []
    greens: list[Thing] = []
    town = density > 0.8 or rng.random() < 0.3
    for side, wall in zip((-1, 1), street.walls, strict=True):
        z, before = rng.uniform(-8.0, 2.0), None
        while z < _VIEW:
            length = rng.uniform(8, 24) if town else rng.uniform(7, 15)
            if rng.random() < density:
                before = Plot(rng, side, wall, z, length, town, before=before)
                plots.append(before)
            else:
                if rng.random() < 0.5:
                    plots.append(Plot(rng, side, wall, z, length, town, hedge=True))
                for depth in z + rng.uniform(0, length, rng.integers(1, 4)):
                    if depth > 5.0:
                        x = wall + side * rng.uniform(1.8, 9.0)
                        greens.append(Plant(rng, x, depth, rng.random() < 0.3))
            z += length
            if not town or rng.random() < 0.12:
                z += rng.uniform(0.5, 6.0)
    return plots, greens


def _wall_heights(plots: Sequence[Plot], side: int) -> np.ndarray:
    heights = np.zeros(int(_VIEW * 2) + 60, np.float32)
    for plot in plots:
        if plot.side == side:
            heights[max(0, int(plot.z0 * 2)) : max(0, int(plot.z1 * 2))] = plot.height + 0.5 * plot.roof
    return heights


def _depth(rng: np.random.Generator, near: float, far: float) -> float:
    return float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _sample_cars(rng: np.random.Generator, street: Street) -> list[Thing]:
    cars: list[Car] = []

    def add(x: float, z: float, ahead: bool, wobble: float) -> None:
        car = Car(rng, x, z, (0.0 if ahead else np.pi) + rng.normal(0, wobble))
        free = all(
            abs(other.x - x) > 1.9 or abs(other.z - z) > (other.length + car.length) / 2 + 0.4 for other in cars
        )
        if free and car.near > 3.5:
            cars.append(car)

    for side, parked, x in zip((-1, 1), street.parking, (street.left + 1.1, street.right - 1.1), strict=True):
        z = rng.uniform(3, 14)
        for _ in range(int(rng.integers(2, 9)) if parked else 0):
            add(x + rng.normal(0, 0.08), z, side > 0 or rng.random() < 0.3, 0.02)
            z += rng.uniform(5.2, 6.5) + (rng.uniform(5, 20) if rng.random() < 0.3 else 0.0)
    for x, direction in street.lanes:
        # The own lane is kept free for some metres, as a driver does.
        first = 11.0 if abs(x) < 1.2 else 6.5
        for _ in range(int(rng.integers(0, 3))):
            add(x + rng.normal(0, 0.2), _depth(rng, first, 60), direction > 0, 0.03)
    if rng.random() < 0.12:  # one that crosses
        cars.append(Car(rng, rng.uniform(street.left, street.right), _depth(rng, 12, 40), np.pi / 2))
    for x, direction in street.lanes[-2:] if len(cars) < 2 else ():
        add(x, _depth(rng, 12, 45), direction > 0, 0.0)
    return list(cars)


def _sample_people(rng: np.random.Generator, street: Street) -> list[Thing]:
    people: list[Thing] = []
    for _ in range(int(rng.integers(2, 8))):
        x0, x1 = street.walks[int(rng.random() < 0.55)]
        x, z = rng.uniform(x0 + 0.2, x1 - 0.2), _depth(rng, 5, 36)
        people.append(Person(rng, x, z))
        if rng.random() < 0.3:
            people.append(Person(rng, x + rng.choice([-1, 1]) * rng.uniform(0.5, 0.8), z + 0.1))
    depths = [_depth(rng, 12, 35)] if rng.random() < 0.2 else []
    if street.crossing:
        near, far, _ = street.crossing
        depths.extend(rng.uniform(near + 0.5, far - 0.3, rng.integers(0, 4)))
    return people + [Person(rng, rng.uniform(street.left, street.right), z) for z in depths]


def _sample_verges(rng: np.random.Generator, street: Street) -> list[Thing]:
    """Lamp posts, signs, trees in rows and bushes along both sides."""
    things: list[Thing] = []
    for side, edge, wall in zip((-1, 1), (street.left, street.right), street.walls, strict=True):
        if rng.random() < 0.8:
            things += lamp_row(rng, edge, side)
        for _ in range(int(rng.integers(0, 3) + rng.integers(1, 3))):
            things.append(sign_post(rng, edge + side * rng.uniform(0.4, 1.1), _depth(rng, 7.0, 34)))
        if rng.random() < 0.55:
            x, z, spacing = edge + side * rng.uniform(0.8, 1.3), rng.uniform(6, 16), rng.uniform(7, 16)
            while z < 80:
                things.append(Plant(rng, x + rng.normal(0, 0.1), z, False))
                z += spacing * rng.uniform(0.8, 1.4)
        for _ in range(int(rng.integers(0, 4))):
            things.append(Plant(rng, wall - side * rng.uniform(0.2, 0.6), _depth(rng, 6, 45), True))
    return things


def _paint(frame: Frame, street: Street, plots: list[Plot], things: list[Thing]) -> None:
    for thing in things:
        if thing.z < 70:
            thing.cast(frame)
    street.paint(frame)
    # A wall is as deep as its far end: whatever stands in front of it comes later.
    queue: list[tuple[float, Plot | Thing]] = [(plot.z1, plot) for plot in plots if plot.z1 > 2.0]
    queue += [(thing.z, thing) for thing in things]
    for _, item in sorted(queue, key=lambda entry: -entry[0]):
        if isinstance(item, Plot):
            item.paint(frame)
        else:
            shaded = bool(frame.walled(item.x, 1.0, item.z))
            item.paint(frame, 0.25 + 0.75 * frame.light.ambient if shaded else 1.0)


def _add_void_border(label: np.ndarray) -> None:
    """One to two pixels around anomalies (at 256 rows), where blending mixes them with the street."""
    anomaly = (label == ANOMALY_LABEL).astype(np.uint8)
    size = 2 * max(1, round(label.shape[0] / 256)) + 1
    label[cv2.dilate(anomaly, np.ones((size, size), np.uint8)) > anomaly] = IGNORE_LABEL


def _paint_hood(frame: Frame, share: float) -> None:
    """The own car's bonnet at the lower edge, void as in real recordings."""
    height, width = frame.label.shape
    columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)
    top = height * (1.0 - share * (1.0 - 0.55 * columns**2))
    rows = np.arange(int(top.min()) - 1, height, dtype=np.float32)[:, None]
    cover = np.clip(rows - top + 0.5, 0.0, 1.0)
    gloss = np.exp(-(((rows - top) / (0.012 * height)) ** 2)) * (0.4 + 0.6 * frame.light.ambient)
    region = frame.image[:, -len(rows) :]
    region += cover * (18.0 + 70.0 * gloss - region)
    frame.label[-len(rows) :][cover > 0.02] = IGNORE_LABEL


@lru_cache(maxsize=4)
def _corner_distance(height: int, width: int) -> np.ndarray:
    y, x = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    return 0.5 * (y[:, None] ** 2 + x**2)


def _expose(image: np.ndarray, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Lens, exposure, white balance, tone curve, sensor noise and compression, over everything alike."""
    height, width = image.shape[1:]
    gains = 1.0 + 0.1 * light.warmth * np.array([1.0, 0.1, -1.0]) + rng.uniform(-0.025, 0.025, 3)
    tones = np.clip(np.arange(256)[:, None] / 255.0 * gains, 0.0, 1.0) ** rng.uniform(0.8, 1.12)
    table = np.rint(255.0 * tones).astype(np.uint8)
    falloff = np.float32(rng.uniform(0.85, 1.3)) * (1.0 - np.float32(rng.uniform(0.0, 0.35)) * _corner_distance(height, width))
    blur, strength = max(rng.uniform(0.35, 0.75) * height / 256, 0.3), rng.uniform(0.8, 4.5)
    luma = _noise(rng, height, width, 0.8 * strength)
    planes = []
    for channel in range(3):
        plane = cv2.GaussianBlur(image[channel], (0, 0), blur) * falloff
        toned = cv2.LUT(cv2.convertScaleAbs(np.maximum(plane, 0.0)), table[:, channel])
        chroma = _noise(rng, (height + 1) // 2, (width + 1) // 2, 0.6 * strength)
        chroma = cv2.resize(chroma, (width, height), interpolation=cv2.INTER_LINEAR)
        planes.append(cv2.add(toned, chroma + luma, dtype=cv2.CV_8U))
    if rng.random() < 0.5:
        return cv2.merge(planes)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))]
    _, packed = cv2.imencode(".jpg", cv2.merge(planes[::-1]), quality)
    return cv2.cvtColor(cv2.imdecode(packed, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _noise(rng: np.random.Generator, height: int, width: int, strength: float) -> np.ndarray:
    """Noise of this standard deviation from sums of two uniform bytes: near enough to normal, at a tenth of
    the time."""
    draws = rng.integers(0, 256, (2, height, width), dtype=np.uint8)
    return (draws[0].astype(np.float32) + draws[1] - np.float32(255.0)) * np.float32(strength / 104.5)

"""A picture and its label map from (seed, index): sample the street, paint it far to near, then expose it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np

from .anomalies import sample_anomalies
from .buildings import Plot
from .canvas import ANOMALY_LABEL, IGNORE_LABEL, Camera, Frame, Light, Thing
from .figures import Person, Plant, lamp_row, sign_post
from .street import Street, paint_backdrop
from .vehicles import Car

# Raised with every change that alters a pixel: a cached split of another version is stale.
RENDERER_VERSION = 6
MIN_HEIGHT, MIN_WIDTH = 64, 128
_VIEW = 130  # metres of built-up street
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
        raise ValueError(f"a street needs {MIN_HEIGHT} x {MIN_WIDTH} pixels, found {height} x {width}")
    rng = np.random.default_rng((seed, index, _SCENE))
    frame = Frame(Camera(rng, height, width), Light(rng))
    paint_backdrop(frame, rng)
    street = Street(rng)
    plots, things = _sample_plots(rng, street)
    things += [*_sample_cars(rng, street), *_sample_people(rng, street), *_sample_verges(rng, street)]
    if anomalies:
        solids = [thing for thing in things if thing.z < 60]
        strange = np.random.default_rng((seed, index, _ANOMALIES))
        things += sample_anomalies(strange, frame.camera, street, solids)
    _paint(frame, street, plots, things)
    if anomalies:  # one to two pixels around them (at 256 rows), where blending mixes them with the street
        mask = (frame.label == ANOMALY_LABEL).astype(np.uint8)
        size = 2 * max(1, round(height / 256)) + 1
        frame.label[cv2.dilate(mask, np.ones((size, size), np.uint8)) > mask] = IGNORE_LABEL
        rim = max(1, round(height / 128))
        inside = frame.label[rim:-rim, rim:-rim]
        frame.label = cv2.copyMakeBorder(inside, *(rim,) * 4, cv2.BORDER_CONSTANT, value=IGNORE_LABEL)
    return _expose(frame.image, frame.light, np.random.default_rng((seed, index, _SENSOR))), frame.label


def _sample_plots(rng: np.random.Generator, street: Street) -> tuple[list[Plot], list[Thing]]:
    plots: list[Plot] = []
    greens: list[Thing] = []
    density = rng.choice([0.92, 0.65, 0.35], p=[0.45, 0.35, 0.2])
    town = density > 0.8 or rng.random() < 0.3
    for side, wall in zip((-1, 1), street.walls, strict=True):
        z = rng.uniform(-8.0, 2.0)
        while z < _VIEW:
            length = rng.uniform(8, 24) if town else rng.uniform(7, 15)
            if rng.random() < density:
                plots.append(Plot(rng, side, wall, z, length, town))
            else:
                for _ in range(rng.integers(1, 6)):
                    x, depth = rng.uniform((0.6, z), (9.0, z + length))
                    if 5.0 < depth < 90.0:
                        greens.append(Plant(rng, wall + side * x, depth, rng.random() < 0.5))
            z += length
            if not town or rng.random() < 0.12:
                z += rng.uniform(0.5, 6.0)
    return plots, greens


def _depth(rng: np.random.Generator, near: float, far: float) -> float:
    return float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _sample_cars(rng: np.random.Generator, street: Street) -> list[Car]:
    cars: list[Car] = []

    def add(x: float, z: float, ahead: bool, wobble: float) -> None:
        car = Car(rng, x, z, (0.0 if ahead else np.pi) + rng.normal(0, wobble))
        apart = [(abs(o.x - x), abs(o.z - z) - (o.length + car.length) / 2) for o in cars]
        if car.near > 3.5 and all(across > 1.9 or along > 0.4 for across, along in apart):
            cars.append(car)

    for side, parked, x in zip((-1, 1), street.parking, (street.left + 1.1, street.right - 1.1), strict=True):
        z = rng.uniform(3, 14)
        for _ in range(int(rng.integers(2, 9)) if parked else 0):
            add(x + rng.normal(0, 0.08), z, side > 0 or rng.random() < 0.3, 0.02)
            z += rng.uniform(5.2, 6.5) + (rng.uniform(5, 20) if rng.random() < 0.3 else 0.0)
    for x, ahead in street.lanes:
        # The own lane is kept free for some metres, as a driver does.
        for _ in range(int(rng.integers(0, 3))):
            add(x + rng.normal(0, 0.2), _depth(rng, 11.0 if abs(x) < 1.2 else 6.5, 60), ahead, 0.03)
    return cars


def _sample_people(rng: np.random.Generator, street: Street) -> list[Person]:
    places = []
    for _ in range(int(rng.integers(2, 8))):
        x0, x1 = street.walks[int(rng.random() < 0.55)]
        x, z = rng.uniform(x0 + 0.2, x1 - 0.2), _depth(rng, 5, 36)
        places.append((x, z))
        if rng.random() < 0.3:
            places.append((x + rng.choice([-1, 1]) * rng.uniform(0.5, 0.8), z + 0.1))
    if street.crossing:
        near, far, _ = street.crossing
        low, high = (street.left, near + 0.5), (street.right, far - 0.3)
        places += rng.uniform(low, high, (rng.integers(0, 4), 2)).tolist()
    return [Person(rng, x, z) for x, z in places]


def _sample_verges(rng: np.random.Generator, street: Street) -> list[Thing]:
    """Lamp posts, signs, trees in rows and bushes along both sides."""
    things: list[Thing] = []
    for side, edge, wall in zip((-1, 1), (street.left, street.right), street.walls, strict=True):
        if rng.random() < 0.8:
            things += lamp_row(rng, edge, side)
        for _ in range(int(rng.integers(1, 4))):
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
    camera = frame.camera
    for plot in plots:
        plot.cast(frame)
    x, z, near, half = np.array([(t.x, t.z, t.near, t.half) for t in things]).T
    u, v = camera.project(np.stack([x, 0 * x, z], axis=1)).T
    # Things whose feet are in the shadow of a building are dark as a whole.
    foot = (np.clip(at, 0, size - 1).astype(int) for at, size in ((v, camera.height), (u, camera.width)))
    dim = np.where(frame.shadow[tuple(foot)], 0.25 + 0.75 * frame.light.ambient, 1.0).tolist()
    for thing in things:
        if thing.z < 70:
            thing.cast(frame)
    street.paint(frame)
    # How far each reaches from its column; the slack is for lamps, which reach beyond their posts.
    reach = (half + 2.5) * camera.focal / near
    # A wall is as deep as its far end: whatever stands in front of it comes later.
    queue: list[tuple[float, Callable[[Frame], None]]] = []
    queue += [(plot.z1, plot.paint) for plot in plots if plot.z1 > 2.0]
    for index in np.flatnonzero((u > -reach) & (u < camera.width + reach)):
        queue.append((z[index], partial(things[index].paint, sunlit=dim[index])))
    for _, paint in sorted(queue, key=lambda entry: -entry[0]):
        paint(frame)


def _expose(image: np.ndarray, light: Light, rng: np.random.Generator) -> np.ndarray:
    """Lens, exposure, white balance, tone curve and sensor noise, over everything alike."""
    height, width = image.shape[1:]
    gains = 1.0 + 0.1 * light.warmth * np.array([1.0, 0.1, -1.0]) + rng.uniform(-0.025, 0.025, 3)
    tones = np.clip(np.arange(256)[:, None] / 255.0 * gains, 0.0, 1.0) ** rng.uniform(0.8, 1.12)
    table = np.rint(255.0 * tones).astype(np.uint8)
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    falloff = rng.uniform(0.85, 1.3) * (1.0 - rng.uniform(0.0, 0.17) * (x * x + y * y))
    blur, strength = max(rng.uniform(0.35, 0.75) * height / 256, 0.3), rng.uniform(0.8, 4.5)
    # Grey noise, and half as much of each colour's own.
    noise = strength * rng.standard_normal((4, height, width), np.float32)
    planes = []
    for channel in range(3):
        plane = cv2.GaussianBlur(image[channel], (0, 0), blur) * falloff
        toned = cv2.LUT(cv2.convertScaleAbs(np.maximum(plane, 0.0)), table[:, channel])
        planes.append(cv2.add(toned, 0.8 * noise[3] + 0.4 * noise[channel], dtype=cv2.CV_8U))
    return cv2.merge(planes)

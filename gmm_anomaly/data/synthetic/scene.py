"""One street scene: camera, light, layout and everything that stands along it, from one random stream."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .backdrop import Backdrop, sample_backdrop
from .buildings import Plot, sample_plot
from .camera import Camera
from .light import Light, sample_light
from .people import Person, sample_person
from .plants import Plant, sample_plant
from .posts import Post, sample_lamp, sample_sign
from .street import Street, sample_street
from .vehicles import Car, sample_car

_VIEW = 130.0  # metres of built-up street

Thing = Person | Plant | Post | Car


@dataclass(frozen=True)
class Scene:
    camera: Camera
    light: Light
    street: Street
    backdrop: Backdrop
    plots: tuple[Plot, ...]
    things: tuple[Thing, ...]
    wall_heights: tuple[np.ndarray, np.ndarray]
    hood: float


def sample_scene(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Everything is drawn in metres and shares of the picture: another size shows the same street."""
    camera = _sample_camera(rng, height, width)
    light = sample_light(rng)
    street = sample_street(rng)
    backdrop = sample_backdrop(rng)
    density = float(rng.choice([0.92, 0.65, 0.35], p=[0.45, 0.35, 0.2]))
    plots, things = _sample_plots(rng, street, density)
    things += _sample_cars(rng, street)
    things += _sample_posts(rng, street)
    things += _sample_people(rng, street)
    things += _sample_street_trees(rng, street, density)
    return Scene(
        camera=camera,
        light=light,
        street=street,
        backdrop=backdrop,
        plots=tuple(plots),
        things=tuple(things),
        wall_heights=(_wall_heights(plots, -1), _wall_heights(plots, 1)),
        hood=float(rng.uniform(0.03, 0.09)) if rng.random() < 0.35 else 0.0,
    )


def _sample_camera(rng: np.random.Generator, height: int, width: int) -> Camera:
    # The focal length follows the geometric mean of both sides: other aspects crop or widen the same view.
    focal = rng.uniform(0.52, 0.82) * np.sqrt(2.0 * width * height)
    bend = rng.uniform(-1, 1) / 380.0 if rng.random() < 0.6 else 0.0
    return Camera(
        height=height,
        width=width,
        focal=float(focal),
        u0=float(width * rng.uniform(0.36, 0.64)),
        v0=float(height * rng.uniform(0.34, 0.5)),
        eye=float(rng.uniform(1.2, 2.1)),
        bend=float(bend),
        bend_end=float(rng.uniform(30, 70)),
    )


def _sample_plots(rng: np.random.Generator, street: Street, density: float) -> tuple[list[Plot], list[Thing]]:
    plots: list[Plot] = []
    greens: list[Thing] = []
    town = density > 0.8 or rng.random() < 0.3
    for side, wall in zip((-1, 1), street.walls, strict=True):
        z = rng.uniform(-8.0, 2.0)
        before: Plot | None = None
        while z < _VIEW:
            length = rng.uniform(8, 24) if town else rng.uniform(7, 15)
            if rng.random() < density:
                before = sample_plot(rng, "building", side, wall, z, length, town, before)
                plots.append(before)
            else:
                if rng.random() < 0.5:
                    plots.append(sample_plot(rng, "hedge", side, wall, z, length, town, None))
                for _ in range(int(rng.integers(1, 4))):
                    depth = z + rng.uniform(0, length)
                    if depth > 5.0:
                        x = wall + side * rng.uniform(1.8, 9.0)
                        greens.append(sample_plant(rng, float(x), float(depth), bool(rng.random() < 0.3)))
            z += length
            if not town or rng.random() < 0.12:
                z += rng.uniform(0.5, 6.0)
    return plots, greens


def _wall_heights(plots: list[Plot], side: int) -> np.ndarray:
    heights = np.zeros(int(_VIEW * 2) + 60, np.float32)
    for plot in plots:
        if plot.side == side:
            heights[max(0, int(plot.z0 * 2)) : max(0, int(plot.z1 * 2))] = plot.height + 0.5 * plot.roof
    return heights


def _depth(rng: np.random.Generator, near: float, far: float) -> float:
    return float(np.exp(rng.uniform(np.log(near), np.log(far))))


def _sample_cars(rng: np.random.Generator, street: Street) -> list[Thing]:
    cars: list[Car] = []

    def add(x: float, z: float, yaw: float) -> None:
        car = sample_car(rng, float(x), float(z), float(yaw))
        if car.near < 3.5:
            return
        gap = 0.4
        for other in cars:
            if abs(other.x - car.x) < 1.9 and abs(other.z - car.z) < (other.length + car.length) / 2 + gap:
                return
        cars.append(car)

    for side, parked in zip((-1, 1), street.parking, strict=True):
        if not parked:
            continue
        x = street.left + 1.1 if side < 0 else street.right - 1.1
        z = rng.uniform(3, 14)
        for _ in range(int(rng.integers(2, 9))):
            yaw = (np.pi if side < 0 and rng.random() < 0.7 else 0.0) + rng.normal(0, 0.02)
            add(x + rng.normal(0, 0.08), z, yaw)
            z += rng.uniform(5.2, 6.5) + (rng.uniform(5, 20) if rng.random() < 0.3 else 0.0)
    for lane, direction in street.lanes:
        # The own lane is kept free for some metres, as a driver does.
        first = 11.0 if abs(lane) < 1.2 else 6.5
        for _ in range(int(rng.integers(0, 3))):
            add(
                lane + rng.normal(0, 0.2),
                _depth(rng, first, 60),
                (0.0 if direction > 0 else np.pi) + rng.normal(0, 0.03),
            )
    if rng.random() < 0.12:
        add(rng.uniform(street.left, street.right), _depth(rng, 12, 40), rng.choice([-1, 1]) * np.pi / 2)
    if len(cars) < 2:
        for lane, direction in street.lanes[-2:]:
            add(lane, _depth(rng, 12, 25), 0.0 if direction > 0 else np.pi)
            add(lane, _depth(rng, 26, 45), 0.0 if direction > 0 else np.pi)
    return list(cars)


def _sample_posts(rng: np.random.Generator, street: Street) -> list[Thing]:
    posts: list[Thing] = []
    for side, edge in ((-1, street.left), (1, street.right)):
        if rng.random() < 0.8:
            spacing, z = rng.uniform(13, 28), rng.uniform(5, 18)
            pattern = sample_lamp(rng, 0.0, 0.0, -side)
            while z < 90:
                x = float(edge + side * rng.uniform(0.45, 0.6))
                posts.append(
                    Post(
                        x,
                        float(z),
                        pattern.height,
                        pattern.girth,
                        pattern.arm,
                        pattern.colour,
                        (),
                        pattern.hue,
                    )
                )
                z += spacing * rng.uniform(0.9, 1.1)
    for _ in range(int(rng.integers(2, 7))):
        right = rng.random() < 0.6
        edge, side = (street.right, 1) if right else (street.left, -1)
        posts.append(sample_sign(rng, float(edge + side * rng.uniform(0.4, 1.1)), _depth(rng, 7.0, 34)))
    return posts


def _sample_people(rng: np.random.Generator, street: Street) -> list[Thing]:
    people: list[Thing] = []
    for _ in range(int(rng.integers(2, 8))):
        x0, x1 = street.walks[int(rng.random() < 0.55)]
        x, z = rng.uniform(x0 + 0.2, x1 - 0.2), _depth(rng, 5, 36)
        people.append(sample_person(rng, float(x), z))
        if rng.random() < 0.3:
            people.append(sample_person(rng, float(x + rng.choice([-1, 1]) * rng.uniform(0.5, 0.8)), z + 0.1))
    for crossing in street.crosswalks:
        for _ in range(int(rng.integers(0, 4))):
            z = rng.uniform(crossing.near + 0.5, crossing.far - 0.3)
            people.append(sample_person(rng, float(rng.uniform(street.left, street.right)), float(z)))
    if rng.random() < 0.2:
        people.append(sample_person(rng, float(rng.uniform(street.left, street.right)), _depth(rng, 12, 35)))
    return people


def _sample_street_trees(rng: np.random.Generator, street: Street, density: float) -> list[Thing]:
    trees: list[Thing] = []
    for side in (-1, 1):
        edge, wall = (street.left, street.walls[0]) if side < 0 else (street.right, street.walls[1])
        if rng.random() < 0.55:
            spacing, z = rng.uniform(7, 16), rng.uniform(6, 16)
            x = edge + side * rng.uniform(0.8, 1.3)
            while z < 80:
                trees.append(sample_plant(rng, float(x + rng.normal(0, 0.1)), float(z), False))
                z += spacing * rng.uniform(0.8, 1.4)
        for _ in range(int(rng.integers(0, 4))):
            x = wall - side * rng.uniform(0.2, 0.6)
            trees.append(sample_plant(rng, float(x), _depth(rng, 6, 45), True))
    return trees

"""Cross-section of one street: lanes, kerbs, sidewalks, verges and walls, as seen from the driver's lane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .labels import ROAD, SIDEWALK, TERRAIN


@dataclass(frozen=True)
class Marking:
    """Painted line along the street: centre x, width, dash, period and phase in metres (dash 0: solid)."""

    x: float
    width: float
    dash: float
    period: float
    phase: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Crosswalk:
    near: float
    far: float
    stripe: float


@dataclass(frozen=True)
class Patch:
    """Rectangle of the road with another brightness (repairs, covers, stains), metres."""

    x0: float
    x1: float
    z0: float
    z1: float
    factor: float
    round: bool


@dataclass(frozen=True)
class Street:
    """edges: ascending x in metres between bands; kinds: label per band, one more than edges; colours: RGB
    per band. left, right: road edges. walls: x of the building lines. walks: (x0, x1) of both sidewalks."""

    edges: tuple[float, ...]
    kinds: tuple[int, ...]
    colours: np.ndarray
    kerbs: tuple[int, ...]
    left: float
    right: float
    walls: tuple[float, float]
    walks: tuple[tuple[float, float], tuple[float, float]]
    lanes: tuple[tuple[float, int], ...]
    parking: tuple[bool, bool]
    markings: tuple[Marking, ...]
    crosswalks: tuple[Crosswalk, ...]
    patches: tuple[Patch, ...]
    slab: float
    grain: float
    offset: tuple[int, int]


def sample_street(rng: np.random.Generator) -> Street:
    lane = rng.uniform(2.9, 3.6)
    oncoming, same = int(rng.integers(0, 3)), int(rng.integers(1, 3))
    own = int(rng.integers(0, same))
    parking = (bool(rng.random() < 0.5), bool(rng.random() < 0.5))
    middle = -(own + 0.5) * lane + rng.normal(0, 0.25)  # x of the line between the two directions
    strip = [2.2 if parked else rng.uniform(0.1, 0.6) for parked in parking]
    left, right = middle - oncoming * lane - strip[0], middle + same * lane + strip[1]

    road = rng.uniform(70, 135) + rng.uniform(-5, 5, 3)
    kerb = rng.uniform(120, 185) + rng.uniform(-8, 8, 3)
    # Sidewalks range from asphalt like the road to light, beige or reddish slabs.
    walk = rng.uniform(85, 175) + rng.uniform(0, 18) * np.array([1.0, 0.1, -1.0]) + rng.uniform(-5, 5, 3)
    if rng.random() < 0.2:
        walk = walk * np.array([1.08, 0.85, 0.78])
    grass = np.array([rng.uniform(80, 150), rng.uniform(105, 150), rng.uniform(45, 85)])

    bands: list[list[tuple[float, int, np.ndarray]]] = []
    walks, walls = [], []
    for side, edge in ((-1, left), (1, right)):
        kerb_width = rng.uniform(0.14, 0.28)
        verge = rng.uniform(0.8, 3.0) if rng.random() < 0.45 else 0.0
        width = rng.uniform(1.8, 4.2)
        garden = rng.uniform(0.6, 4.0) if rng.random() < 0.5 else 0.0
        at, rows = edge, []
        for extent, kind, colour in (
            (kerb_width, SIDEWALK, kerb),
            (verge, TERRAIN, grass),
            (width, SIDEWALK, walk),
            (garden, TERRAIN, grass * rng.uniform(0.85, 1.15)),
        ):
            if extent:
                rows.append((at, kind, colour))
                at += side * extent
        start = edge + side * (kerb_width + verge)
        walks.append((min(start, start + side * width), max(start, start + side * width)))
        walls.append(at)
        rows.append((at, TERRAIN, grass * rng.uniform(0.8, 1.1)))
        bands.append(rows)
    order = [*reversed(bands[0]), (0.0, ROAD, road), *bands[1]]
    edges = [row[0] for row in reversed(bands[0])] + [row[0] for row in bands[1]]

    split = len(bands[0])
    return Street(
        edges=tuple(float(e) for e in edges),
        kinds=tuple(int(row[1]) for row in order),
        colours=np.array([row[2] for row in order], np.float32),
        kerbs=(split - 1, split + 1),
        left=float(left),
        right=float(right),
        walls=(float(walls[0]), float(walls[1])),
        walks=(walks[0], walks[1]),
        lanes=tuple(
            [(float(middle - (i + 0.5) * lane), -1) for i in range(oncoming)]
            + [(float(middle + (i + 0.5) * lane), 1) for i in range(same)]
        ),
        parking=parking,
        markings=_sample_markings(rng, left, right, middle, lane, oncoming, same, parking),
        crosswalks=_sample_crosswalks(rng),
        patches=_sample_patches(rng, left, right),
        slab=float(rng.uniform(0.4, 1.3)),
        grain=float(rng.uniform(0.06, 0.16)),
        offset=(int(rng.integers(0, 4096)), int(rng.integers(0, 4096))),
    )


def _sample_markings(
    rng: np.random.Generator,
    left: float,
    right: float,
    middle: float,
    lane: float,
    oncoming: int,
    same: int,
    parking: tuple[bool, bool],
) -> tuple[Marking, ...]:
    white = tuple(rng.uniform(195, 250) * np.ones(3))
    centre = (
        (rng.uniform(200, 235), rng.uniform(160, 185), rng.uniform(40, 90)) if rng.random() < 0.25 else white
    )
    width, dash, gap = rng.uniform(0.11, 0.18), rng.uniform(2.0, 4.5), rng.uniform(2.5, 6.0)

    def line(x: float, colour: tuple[float, ...], solid: bool) -> Marking:
        red, green, blue = colour
        return Marking(x, width, 0.0 if solid else dash, dash + gap, rng.uniform(0, 9), (red, green, blue))

    lines = [line(middle + i * lane, white, False) for i in range(1 - oncoming, same) if i]
    if oncoming:
        style = rng.choice(["dashed", "solid", "double"], p=[0.6, 0.2, 0.2])
        if style == "double":
            lines += [line(middle - width, centre, True), line(middle + width, centre, True)]
        else:
            lines.append(line(middle, centre, style == "solid"))
    if rng.random() < 0.75:
        lines.append(line(middle - oncoming * lane + (0.1 if not parking[0] else 0.0), white, True))
        lines.append(line(middle + same * lane - (0.1 if not parking[1] else 0.0), white, True))
    return tuple(lines)


def _sample_crosswalks(rng: np.random.Generator) -> tuple[Crosswalk, ...]:
    if rng.random() > 0.3:
        return ()
    near = float(np.exp(rng.uniform(np.log(7), np.log(35))))
    return (Crosswalk(near, near + rng.uniform(2.5, 4.0), rng.uniform(0.4, 0.6)),)


def _sample_patches(rng: np.random.Generator, left: float, right: float) -> tuple[Patch, ...]:
    patches = []
    for _ in range(int(rng.integers(1, 8))):
        x, z = rng.uniform(left, right), np.exp(rng.uniform(np.log(4), np.log(50)))
        if rng.random() < 0.35:
            radius = rng.uniform(0.28, 0.4)
            patches.append(
                Patch(x - radius, x + radius, z - radius, z + radius, rng.uniform(0.45, 0.75), True)
            )
        else:
            half, length = rng.uniform(0.15, 1.3), rng.uniform(0.5, 8.0)
            x = min(max(x, left + half), right - half)
            patches.append(Patch(x - half, x + half, z, z + length, rng.uniform(0.72, 1.2), False))
    return tuple(patches)

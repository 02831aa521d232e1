"""Building fronts, end walls, roofs and hedges along the two wall lines of a street."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .canvas import Canvas, Frame
from .labels import BUILDING, VEGETATION
from .surfaces import sample_tile

_NEAR = 1.0  # metres: what is closer is behind the picture's edge


@dataclass(frozen=True)
class Plot:
    """One plot along the street between depths z0 and z1 (metres). kind: "building" or "hedge".

    hidden: height up to which the end wall is covered by the adjoining nearer building."""

    kind: str
    side: int
    wall: float
    z0: float
    z1: float
    height: float
    hidden: float
    depth: float
    roof: float
    colour: np.ndarray
    roof_colour: np.ndarray
    trim: np.ndarray
    glass: np.ndarray
    panes: np.ndarray
    bay: float
    floor: float
    ground_floor: float
    window: tuple[float, float]
    shop: bool
    courses: float
    offset: tuple[int, int]


def sample_plot(
    rng: np.random.Generator,
    kind: str,
    side: int,
    wall: float,
    z0: float,
    length: float,
    town: bool,
    before: Plot | None,
) -> Plot:
    """before: the nearer plot on the same side, if any."""
    adjoins = before is not None and before.kind == kind == "building" and z0 - before.z1 < 0.01
    if kind == "hedge":
        height = rng.uniform(0.7, 2.4)
        colour = np.array([rng.uniform(45, 95), rng.uniform(75, 125), rng.uniform(30, 65)])
    else:
        height = rng.uniform(8, 24) if town else rng.uniform(3.2, 8.5)
        grey = rng.uniform(75, 215)
        tint = [
            (1.0, 1.0, 1.0),
            (1.08, 0.98, 0.82),
            (1.15, 0.82, 0.7),
            (1.1, 1.02, 0.75),
            (0.9, 0.98, 1.08),
            (1.1, 0.9, 0.88),
            (0.92, 1.03, 0.9),
        ][int(rng.integers(0, 7))]
        colour = grey * np.array(tint) + rng.uniform(-6, 6, 3)
    pitched = kind == "building" and rng.random() < (0.25 if town else 0.85)
    floor = rng.uniform(2.7, 3.6)
    bay = rng.uniform(1.6, 4.2)
    return Plot(
        kind=kind,
        side=side,
        wall=before.wall
        if before and adjoins
        else wall + (side * rng.uniform(0, 0.6) if kind == "building" else 0),
        z0=z0,
        z1=z0 + length,
        height=float(height),
        hidden=before.height if before and adjoins else 0.0,
        depth=float(rng.uniform(7, 14)),
        roof=float(rng.uniform(2.0, 4.5)) if pitched else 0.0,
        colour=colour.astype(np.float32),
        roof_colour=np.array(
            [(150, 85, 65), (95, 90, 92), (115, 75, 60), (70, 75, 85)][int(rng.integers(0, 4))], np.float32
        )
        * np.float32(rng.uniform(0.8, 1.2)),
        trim=(np.clip(colour * rng.uniform(0.6, 1.35), 30, 245)).astype(np.float32),
        glass=np.array([rng.uniform(35, 80), rng.uniform(45, 90), rng.uniform(55, 105)], np.float32),
        panes=rng.uniform(0.55, 1.9, 64).astype(np.float32),
        bay=float(bay),
        floor=float(floor),
        ground_floor=float(rng.uniform(3.0, 4.2) if town else floor),
        window=(float(min(rng.uniform(0.8, 1.8), 0.75 * bay)), float(rng.uniform(1.1, 1.9))),
        shop=bool(town and rng.random() < 0.55),
        courses=float(rng.choice([0.0, 0.25, 0.5])) if rng.random() < 0.6 else 0.0,
        offset=(int(rng.integers(0, 4096)), int(rng.integers(0, 4096))),
    )


def paint_plot(frame: Frame, plot: Plot) -> None:
    """End wall towards the camera, then the roof, then the street front."""
    if plot.z0 > _NEAR + 0.5 and plot.hidden < plot.height:
        _paint_end(frame, plot)
    if plot.roof:
        _paint_roof(frame, plot)
    camera = frame.camera
    inverse = np.linspace(1.0 / max(plot.z0, _NEAR), 1.0 / plot.z1, 24)
    z = 1.0 / inverse
    u = camera.u0 + camera.focal * (plot.wall + camera.shift(z)) / z
    # Inside a bend the wall turns its back beyond the tangent; the nearer part hides the rest.
    outward = u * plot.side
    visible = int(np.argmax(np.diff(outward) > 0)) + 1 if np.any(np.diff(outward) > 0) else u.size
    if visible < 2:
        return
    u, z = u[:visible], z[:visible]
    left, right = sorted((float(u[0]), float(u[-1])))
    columns = np.arange(max(0, int(np.ceil(left))), min(camera.width, int(np.floor(right)) + 1))
    if columns.size == 0:
        return
    order = np.argsort(u)
    depth = 1.0 / np.interp(columns, u[order], (1.0 / z)[order])
    normal = (-float(plot.side), 0.0, 0.0)
    resolution = depth * depth / (camera.focal * max(abs(plot.wall), 0.5))
    _paint_face(frame, plot, columns, depth - plot.z0, depth, resolution, frame.light.shade(normal))


def _paint_end(frame: Frame, plot: Plot) -> None:
    camera = frame.camera
    back = plot.wall + plot.side * (plot.depth if plot.kind == "building" else 1.2)
    shift = float(camera.shift(np.array(plot.z0)))
    near, far = (camera.u0 + camera.focal * (x + shift) / plot.z0 for x in (plot.wall, back))
    left, right = sorted((near, far))
    columns = np.arange(max(0, int(np.ceil(left))), min(camera.width, int(np.floor(right)) + 1))
    if columns.size == 0:
        return
    x = (columns - camera.u0) * plot.z0 / camera.focal - shift
    depth = np.full(columns.size, plot.z0)
    resolution = np.full(columns.size, plot.z0 / camera.focal)
    _paint_face(
        frame,
        plot,
        columns,
        np.abs(x - plot.wall),
        depth,
        resolution,
        frame.light.shade((0.0, 0.0, -1.0)),
        plot.hidden,
    )


def _paint_roof(frame: Frame, plot: Plot) -> None:
    z0, z1 = max(plot.z0, _NEAR + 1.0), plot.z1
    eaves, ridge = plot.height, plot.height + plot.roof
    front = plot.wall - plot.side * 0.4
    middle = plot.wall + plot.side * plot.depth / 2
    back = plot.wall + plot.side * plot.depth
    faces = []
    if plot.z0 > _NEAR + 0.5:
        faces.append(
            (plot.colour, (0.0, 0.0, -1.0), [(plot.wall, eaves, z0), (middle, ridge, z0), (back, eaves, z0)])
        )
    depths = np.linspace(z0, z1, 5)
    slope = [(front, eaves - 0.1, z) for z in depths] + [(middle, ridge, z) for z in depths[::-1]]
    faces.append((plot.roof_colour, (-plot.side * 0.6, 0.8, 0.0), slope))
    for colour, normal, points in faces:
        pixels = frame.camera.project(np.array(points))
        # The slope is unseen from below the eaves: its outline then runs the other way round.
        if len(points) > 3 and cv2.contourArea(pixels.astype(np.float32), True) * plot.side < 1.0:
            continue
        canvas = Canvas(frame, (*pixels.min(axis=0), *pixels.max(axis=0)))
        canvas.polygon(pixels, colour)
        canvas.grain(0.12, 1.0, plot.offset, "grain")
        canvas.paste(BUILDING, (z0 + plot.z1) / 2, frame.light.shade(normal))


def _paint_face(
    frame: Frame,
    plot: Plot,
    columns: np.ndarray,
    along: np.ndarray,
    depth: np.ndarray,
    resolution: np.ndarray,
    shade: float,
    lowest: float = 0.0,
) -> None:
    """columns: (n,) picture columns; along: metres along the face; depth, resolution: metres and metres
    per pixel; lowest: height below which the face is hidden anyway."""
    camera, light = frame.camera, frame.light
    along, depth, resolution = (a.astype(np.float32)[None] for a in (along, depth, resolution))
    pixel = depth / np.float32(camera.focal)
    height = np.float32(plot.height)
    if plot.kind == "hedge":
        height = height * (0.9 + 0.3 * sample_tile("leaf", along * 9.0 + plot.offset[0], np.zeros((1, 1))))
    top = camera.v0 - float(((height - camera.eye) / pixel).max())
    bottom = camera.v0 + float(((camera.eye - np.float32(lowest)) / pixel).max())
    first, last = max(0, int(top)), min(camera.height, int(np.ceil(bottom)) + 1)
    if last <= first:
        return
    rows = np.arange(first, last, dtype=np.float32)[:, None]
    y = camera.eye - (rows - camera.v0) * pixel
    cover = np.clip((height - y) / pixel + 0.5, 0.0, 1.0)
    cover *= y > -0.5 * pixel
    clear = light.clear(depth).astype(np.float32)
    haze = 1.0 - clear
    gain = shade * clear
    columns_slice = slice(int(columns[0]), int(columns[-1]) + 1)
    if plot.kind == "hedge":
        layers = [(plot.colour, None, _leaves(plot, along, y))]
    else:
        layers = _front(plot, light.horizon, along, y, pixel, resolution)
    for channel in range(3):
        colour: np.ndarray | float = 0.0
        for rgb, share, tone in layers:
            layer = tone * rgb[channel]
            if share is None:
                colour = layer
            else:
                layer = layer - colour
                layer *= share
                colour += layer
        colour *= gain
        colour += haze * light.haze[channel]
        region = frame.image[channel, first:last, columns_slice]
        colour -= region
        colour *= cover
        region += colour
    label = frame.label[first:last, columns_slice]
    label[cover > 0.5] = VEGETATION if plot.kind == "hedge" else BUILDING


# A colour, the share of a pixel it covers (None: all of it) and its brightness.
Layer = tuple[np.ndarray, np.ndarray | None, np.ndarray]


def _leaves(plot: Plot, along: np.ndarray, y: np.ndarray) -> np.ndarray:
    noise = sample_tile("leaf", along * 14.0 + plot.offset[0], y * 14.0 + plot.offset[1])
    noise *= 0.45
    noise += 0.65 + 0.35 * np.clip(y / plot.height, 0.0, 1.0)
    return noise


def _front(
    plot: Plot, sky: np.ndarray, along: np.ndarray, y: np.ndarray, pixel: np.ndarray, resolution: np.ndarray
) -> list[Layer]:
    """Plaster or brick, casings, panes; along, pixel, resolution: (1, n), y: (rows, n)."""
    tone = sample_tile("blotch", along * 12.0 + plot.offset[0], y * 12.0 + plot.offset[1])
    tone *= 0.12
    tone += 1.0
    if plot.courses:
        course = y / plot.courses
        joint = np.abs(course - np.floor(course) - 0.5) > 0.42
        tone -= joint * (0.14 * np.minimum(1.0, 0.04 / pixel))
    tone *= 1.0 - 0.2 * (y < 0.5) + 0.2 * (y > plot.height - 0.35)

    bay = along / np.float32(plot.bay)
    bay_index = np.floor(bay)
    across = np.abs(bay - bay_index - 0.5) * np.float32(plot.bay)
    storey = (y - np.float32(plot.ground_floor)) * np.float32(1.0 / plot.floor)
    storey_index = np.floor(storey)
    up = np.abs(storey - storey_index - 0.5) * np.float32(plot.floor)
    half_width, half_height = np.float32(plot.window[0] / 2), np.float32(plot.window[1] / 2)
    door = np.mod(bay_index, 4) == plot.offset[0] % 4
    if plot.shop:
        sill, lintel, ground_half = 0.5, plot.ground_floor - 0.8, np.float32(plot.bay * 0.42)
    else:
        sill, lintel, ground_half = 0.9, min(2.4, plot.ground_floor - 0.5), half_width
    sill = np.where(door, 0.0, sill).astype(np.float32)
    ground_half = np.where(door, np.float32(0.55), ground_half)
    # Ground floor and upper floors differ in both directions: rows of either kind take their own numbers.
    below = storey_index < 0
    distance = np.where(below, np.abs(y - (sill + lintel) * 0.5), up)
    distance[y >= plot.height - 0.4] = 99.0
    tall = np.where(below, (lintel - sill) * 0.5, half_height)
    density, fine = 1.0 / pixel, 1.0 / resolution
    vertical = (tall - distance) * density
    across_upper, across_ground = (half_width - across) * fine, (ground_half - across) * fine
    panes = np.clip(vertical + 0.5, 0.0, 1.0)
    panes *= np.where(below, np.clip(across_ground + 0.5, 0.0, 1.0), np.clip(across_upper + 0.5, 0.0, 1.0))
    vertical += np.float32(0.1) * density + 0.5
    casing = np.clip(vertical, 0.0, 1.0, out=vertical)
    margin = np.float32(0.1) * fine + 0.5
    casing *= np.where(
        below, np.clip(across_ground + margin, 0.0, 1.0), np.clip(across_upper + margin, 0.0, 1.0)
    )
    panes *= 1.0 - 0.6 * ((across < 0.035) & (resolution < 0.06))

    pane = (bay_index * 7 + storey_index * 13).astype(np.int32) & 63
    bright = plot.panes[pane]
    bright *= 0.8 + np.minimum(up, plot.floor / 2) * np.float32(0.5 / plot.floor)
    glass = (0.75 * plot.glass + 0.25 * sky).astype(np.float32)
    flat = np.ones((1, 1), np.float32)
    return [(plot.colour, None, tone), (plot.trim, casing, flat), (glass, panes, bright)]

"""What stands upright on a street: people, trees and bushes, lamp posts and traffic signs."""

from __future__ import annotations

import numpy as np

from .canvas import CIRCLE, PERSON, POLE, TRAFFIC_SIGN, VEGETATION, Frame, Thing

_SKIN = ((236, 195, 170), (205, 155, 120), (150, 105, 75), (95, 65, 48))
_RED, _BLUE, _WHITE = (190, 28, 38), (28, 75, 165), (235, 235, 235)
_YELLOW, _GREEN, _BLACK = (240, 190, 30), (20, 115, 70), (25, 25, 25)
_UP, _DOWN, _DISC = np.pi / 2, -np.pi / 2, 20
# Signs in units of half their height: regular polygons (corners, turn, radius, x, y, colour), and bars (x, y,
# half width, half height, colour) on top of them.
_SIGNS: tuple[tuple[list[tuple], list[tuple]], ...] = (
    (  # speed limit
        [(_DISC, 0, 1.0, 0, 0, _RED), (_DISC, 0, 0.76, 0, 0, _WHITE)],
        [(-0.28, 0, 0.19, 0.38, _BLACK), (0.28, 0, 0.19, 0.38, _BLACK), (-0.28, 0, 0.06, 0.22, _WHITE),
         (0.28, 0, 0.06, 0.22, _WHITE)],
    ),
    ([(_DISC, 0, 1.0, 0, 0, _RED)], [(0, 0, 0.7, 0.17, _WHITE)]),  # no entry
    ([(3, _UP, 1.15, 0, -0.2, _RED), (3, _UP, 0.72, 0, -0.2, _WHITE)], [(0, -0.08, 0.08, 0.28, _BLACK)]),
    ([(3, _DOWN, 1.15, 0, 0.2, _RED), (3, _DOWN, 0.68, 0, 0.2, _WHITE)], []),  # yield
    ([(_DISC, 0, 1.0, 0, 0, _BLUE), (3, _UP, 0.42, 0, 0.25, _WHITE)], [(0, -0.25, 0.12, 0.35, _WHITE)]),
    ([(4, 0, 1.1, 0, 0, _WHITE), (4, 0, 0.75, 0, 0, _YELLOW)], []),  # priority road
    *(  # directions
        ([], [(0, 0, 1.45, 0.8, ink), (0, 0, 1.37, 0.72, ground), (-0.2, 0.3, 0.85, 0.12, ink),
              (-0.35, -0.25, 0.7, 0.12, ink)])
        for ground, ink in ((_BLUE, _WHITE), (_GREEN, _WHITE), (_YELLOW, _BLACK))
    ),
)  # fmt: skip


class Person(Thing):
    """A pedestrian, standing or walking, seen from the front, the back or the side; drawn in body heights."""

    def __init__(self, rng: np.random.Generator, x: float, z: float) -> None:
        height = rng.uniform(1.1, 1.4) if rng.random() < 0.12 else rng.uniform(1.55, 1.92)
        super().__init__(x, z, 0.25 * height, height)
        facing = int(rng.choice([-1, 0, 0, 1]))
        self.sideways, self.mirror = abs(facing), facing or 1
        self.stride, self.build = rng.uniform(-1, 1), rng.uniform(0.85, 1.25)
        self.away, self.skin = rng.random() < 0.5, np.float64(_SKIN[rng.integers(4)])
        self.hair, self.shoes = np.array([1.0, 0.8, 0.6]) * rng.uniform(25, 150), rng.uniform(20, 90)
        dark = rng.uniform(25, 110, (2, 1)) + rng.uniform(-10, 10, (2, 3))
        self.top, self.legs = np.where(rng.random((2, 1)) < 0.45, dark, rng.uniform(30, 225, (2, 3)))

    def cast(self, frame: Frame) -> None:
        frame.cast(self.ring(0.16), 0.0, self.height)

    def paint(self, frame: Frame, sunlit: float) -> None:
        canvas = frame.stand(self.x, self.z, self.height, (-0.33, -0.02, 0.33, 1.02), self.mirror)
        side, build, lean = self.sideways, self.build, 0.02 * self.sideways
        shoulder, waist = (0.085 if side else 0.125) * build, (0.07 if side else 0.085) * build
        right = [(0.7 * shoulder, 0.835), (shoulder, 0.79), (waist, 0.6), (1.1 * waist, 0.42)]
        for sign in (-1, 1):  # a leg; the coat between them; an arm
            swing, apart = 0.15 * self.stride * sign * side, 0.05 * sign * (1 - side)
            foot = (swing + apart, 0.02 + 0.05 * max(0.0, -sign * self.stride) * (1 - side))
            canvas.limb((0.8 * apart, 0.5), foot, 0.085 * build, 0.055, self.legs * (0.7 + 0.1 * sign))
            canvas.disc(foot[0] + 1.5 * lean, foot[1], 0.032 + 0.9 * lean, 0.022, self.shoes)
        canvas.polygon([*right, *[(-x, y) for x, y in reversed(right)]], self.top)
        for sign in (-1, 1):
            x = sign * (shoulder - 0.01) * (1 - side)
            hand = (1.25 * x - 0.13 * self.stride * sign * side, 0.45)
            canvas.limb((x, 0.79), hand, 0.05 * build, 0.04 * build, self.top * 0.82)
            canvas.disc(*hand, 0.022, 0.025, self.skin)
        canvas.limb((0.5 * lean, 0.82), (0.75 * lean, 0.88), 0.055, 0.05, self.skin)
        canvas.disc(lean, 0.925, 0.055, 0.072, self.skin)
        behind = self.away and not side
        canvas.disc(-0.4 * lean, 0.93 if behind else 0.962, 0.06, 0.072 if behind else 0.042, self.hair)
        canvas.grain(0.1, 1.0)
        canvas.paste(PERSON, self.z, sunlit)


class Plant(Thing):
    """A tree or bush: a trunk and a crown of overlapping tufts with frayed outlines."""

    def __init__(self, rng: np.random.Generator, x: float, z: float, bush: bool) -> None:
        trunk, width = (0.0, rng.uniform(0.9, 2.4)) if bush else rng.uniform((1.6, 2.6), (3.2, 5.2)).tolist()
        self.crown = width * (rng.uniform(0.6, 1.0) if bush else rng.uniform(0.8, 1.3))
        if not bush and rng.random() < 0.2:  # conifer
            trunk, self.crown, width = rng.uniform((0.5, 5.0, 2.2), (1.5, 9.0, 3.6)).tolist()
            y = np.linspace(0.1, 0.92, 28)
            spread, radius = 0.26 * (1.0 - y), 0.1 + 0.22 * (1.0 - y)
        else:
            y = np.sort(rng.uniform(0.12, 0.9, rng.integers(5, 9) if bush else rng.integers(10, 18)))
            spread = 0.34 * np.sqrt(np.clip(1.0 - (2 * y - 0.95) ** 2, 0.03, 1.0))
            radius = rng.uniform(0.14, 0.25, y.size)
            y[0], spread[0], radius[0] = 0.45, 0.0, 0.3  # a core that keeps the tufts together
        super().__init__(x, z, width / 2, trunk + self.crown)
        self.trunk, self.girth = trunk, rng.uniform(0.18, 0.42)
        # Place in the crown, radius (both as shares of its size) and brightness.
        x_tufts = spread * rng.uniform(-1, 1, y.size)
        self.tufts = np.stack([x_tufts, y, radius, rng.uniform(0.8, 1.2, y.size)], axis=1).tolist()
        self.colour = rng.uniform((55, 90, 30), (120, 145, 75))
        if rng.random() < 0.15:  # autumn
            self.colour = rng.uniform((130, 85, 35), (185, 125, 60))
        self.bark = np.array([1.0, 0.85, 0.7]) * rng.uniform(60, 110)

    def cast(self, frame: Frame) -> None:
        if self.trunk:
            frame.cast(self.ring(self.girth), 0.0, self.trunk)
        frame.cast(self.ring(0.84 * self.half), self.trunk + 0.3 * self.crown, self.trunk + 0.8 * self.crown)

    def paint(self, frame: Frame, sunlit: float) -> None:
        scale, light = frame.camera.focal / self.z, frame.light
        if self.trunk:
            girth, top = max(self.girth, 1.2 / scale), self.trunk + 0.3 * self.crown
            canvas = frame.stand(self.x, self.z, 1.0, (-girth, 0.0, girth, top))
            canvas.limb((0.0, 0.0), (0.0, top), girth * 1.25, girth * 0.7, self.bark)
            canvas.grain(0.35, max(1.0, scale / 40))
            canvas.paste(VEGETATION, self.z, sunlit)
        lit = 0.88 * float(np.sign(light.sun[0])) * (1.0 - light.ambient)  # from left to right
        canvas = frame.stand(self.x, self.z, 1.0, (-self.half, self.trunk, self.half, self.height))
        for x, y, radius, bright in self.tufts:
            radius *= 2 * self.half
            colour = self.colour * (bright * (0.62 + 0.4 * y + lit * x))
            canvas.disc(2 * self.half * x, self.trunk + self.crown * y, radius, 0.85 * radius, colour)
        canvas.fray(min(max(scale * 0.035, 0.45), 4.0), 0.55, 0.32, self.colour * 0.75)
        canvas.paste(VEGETATION, self.z, sunlit)


class Post(Thing):
    """A lamp post, or a pole with traffic signs. arm: signed reach of the lamp over the road, 0 for none.
    signs: number in the table, size and height of the centre, from below."""

    def __init__(
        self, x: float, z: float, height: float, girth: float, grey: float, arm: float = 0.0,
        signs: tuple[tuple[int, float, float], ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(x, z, max([size for _, size, _ in signs], default=girth) / 2, height)
        self.girth, self.grey, self.arm, self.signs = girth, grey, arm, signs

    def cast(self, frame: Frame) -> None:
        frame.cast(self.ring(self.girth * 0.7), 0.0, self.height)
        for _, size, centre in self.signs:
            frame.cast(self.ring(size * 0.4), centre - size * 0.3, centre + size * 0.3)

    def paint(self, frame: Frame, sunlit: float) -> None:
        scale = frame.camera.focal / self.z
        girth, top = max(self.girth, 1.15 / scale), self.height
        box = (min(-girth, self.arm), 0.0, max(girth, self.arm), top + 0.4)
        canvas = frame.stand(self.x, self.z, 1.0, box)
        canvas.limb((0, 0), (0, top), girth, girth * 0.8, self.grey)
        if self.arm:
            canvas.limb((0, top), (self.arm, top + 0.25), girth * 0.8, girth * 0.6, self.grey)
            canvas.limb((0.62 * self.arm, top + 0.19), (self.arm, top + 0.25), 0.2, 0.18, (200, 200, 190))
        canvas.paste(POLE, self.z, sunlit)
        for number, size, centre in self.signs:
            half = max(size / 2, 1.0 / scale)
            middle = centre / half
            sign = frame.stand(self.x, self.z, half, (-1.5, middle - 1, 1.5, middle + 1))
            polygons, bars = _SIGNS[number]
            for corners, turn, radius, x, y, colour in polygons:
                angle = np.arange(corners) * (2 * np.pi / corners) + turn
                outline = np.stack([np.cos(angle), np.sin(angle)], axis=1) if corners != _DISC else CIRCLE
                sign.polygon(outline * radius + (x, y + middle), colour)
            for x, y, w, h, colour in bars:
                sign.box(x - w, middle + y - h, x + w, middle + y + h, colour)
            sign.paste(TRAFFIC_SIGN, self.z - 0.1, 0.35 + 0.65 * sunlit)


def lamp_row(rng: np.random.Generator, edge: float, side: int) -> list[Post]:
    """Equal lamp posts along the road's edge, whose lamps reach over the road."""
    height, girth, grey = rng.uniform((4.5, 0.13, 55), (8.5, 0.24, 165)).tolist()
    arm = -side * rng.uniform(0.9, 2.4) if rng.random() < 0.75 else 0.0
    depths = rng.uniform(5, 18) + np.arange(7) * rng.uniform(13, 28)
    return [Post(edge + side * rng.uniform(0.45, 0.6), z, height, girth, grey, arm) for z in depths if z < 90]


def sign_post(rng: np.random.Generator, x: float, z: float) -> Post:
    size, bottom = rng.uniform((0.6, 1.9), (0.95, 2.5)).tolist()
    first, second = rng.choice(len(_SIGNS), size=2, replace=False)
    signs, height = [(first, size, bottom + size / 2)], bottom + 0.8 * size
    if rng.random() < 0.3:
        signs.append((second, size * 0.9, bottom + 1.55 * size))
        height += size
    return Post(x, z, height, rng.uniform(0.07, 0.11), rng.uniform(110, 185), signs=tuple(signs))

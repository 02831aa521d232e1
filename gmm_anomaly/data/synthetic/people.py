"""Pedestrians, built from limbs: standing or walking, seen from the front, the back or the side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .canvas import Canvas, Frame
from .labels import PERSON

_SKIN = ((236, 195, 170), (205, 155, 120), (150, 105, 75), (95, 65, 48))


@dataclass(frozen=True)
class Person:
    """height in metres. stride: -1..1, phase of the step; facing: -1 left, 0 along the street, 1 right."""

    x: float
    z: float
    height: float
    stride: float
    facing: int
    build: float
    skirt: bool
    coat: float
    bag: int
    skin: np.ndarray
    hair: np.ndarray
    top: np.ndarray
    legs: np.ndarray
    shoes: np.ndarray
    bag_colour: np.ndarray
    away: bool

    @property
    def reach(self) -> tuple[float, float]:
        return 0.25 * self.height, self.height

    @property
    def near(self) -> float:
        return self.z

    def cast(self, frame: Frame) -> None:
        frame.cast(self.x, self.z, 0.22, 0.0, 0.0, 120)
        frame.cast(self.x, self.z, 0.16, 0.0, self.height, 210)

    def paint(self, frame: Frame, sunlit: float) -> None:
        u, v = frame.camera.ground(self.x, self.z)
        size = frame.camera.scale(self.z) * self.height
        if u + 0.4 * size < 0 or u - 0.4 * size > frame.camera.width:
            return
        canvas = Canvas(frame, (u - 0.33 * size, v - 1.02 * size, u + 0.33 * size, v + 0.02 * size))

        def at(x: float, y: float) -> tuple[float, float]:
            return u + x * size, v - y * size

        self._legs(canvas, at, size)
        self._upper(canvas, at, size)
        canvas.grain(0.1, max(1.0, size / 60), (int(self.x * 50) & 1023, int(self.z * 50) & 1023))
        canvas.paste(PERSON, self.z, sunlit)

    def _legs(self, canvas: Canvas, at, size: float) -> None:
        thigh, ankle = 0.085 * self.build * size, 0.05 * size
        if self.facing:
            swing = 0.15 * self.stride
            feet = ((-swing, 0.02), (swing, 0.02))
            knees = ((-swing * 0.35 + 0.02 * self.facing, 0.26), (swing * 0.55 + 0.02 * self.facing, 0.26))
            hips = ((0.0, 0.5), (0.0, 0.5))
        else:
            lift = 0.05 * abs(self.stride)
            feet = (
                (-0.05, 0.015 + (lift if self.stride > 0 else 0.0)),
                (0.05, 0.015 + (lift if self.stride < 0 else 0)),
            )
            knees = ((-0.05, 0.26), (0.05, 0.26))
            hips = ((-0.04, 0.5), (0.04, 0.5))
        for index in (0, 1):
            colour = self.legs * (0.78 if index == 0 else 1.0)
            canvas.limb(at(*hips[index]), at(*knees[index]), thigh, thigh * 0.8, colour)
            canvas.limb(at(*knees[index]), at(*feet[index]), thigh * 0.8, ankle, colour)
            toe = (feet[index][0] + 0.03 * self.facing, feet[index][1])
            canvas.ellipse(at(*toe), (0.05 * size if self.facing else 0.032 * size, 0.022 * size), self.shoes)
        if self.skirt:
            canvas.polygon(
                np.array([at(-0.07, 0.52), at(0.07, 0.52), at(0.11, 0.3), at(-0.11, 0.3)]), self.legs * 0.9
            )

    def _upper(self, canvas: Canvas, at, size: float) -> None:
        shoulder = (0.085 if self.facing else 0.125) * self.build
        waist = (0.07 if self.facing else 0.085) * self.build
        hem = self.coat
        arm = 0.05 * self.build * size
        swing = 0.13 * self.stride * (1 if self.facing else 0.25)
        if self.bag == 1:
            canvas.ellipse(at(-0.1 * (self.facing or 1), 0.68), (0.07 * size, 0.11 * size), self.bag_colour)
        arms = ((-1, 0.8), (1, 1.1))
        for sign, bright in arms:
            offset = 0.0 if self.facing else sign * (shoulder - 0.01)
            hand = (offset * 1.15 + (swing * sign if self.facing else 0.02 * sign), 0.45)
            elbow = (offset * 1.12 + swing * sign * 0.3, 0.62)
            if self.facing and sign == 1:
                continue  # the near arm lies over the torso, below
            self._arm(canvas, at, (offset, 0.79), elbow, hand, arm, self.top * bright, size)
        canvas.polygon(
            np.array(
                [
                    at(-shoulder * 0.7, 0.835),
                    at(shoulder * 0.7, 0.835),
                    at(shoulder, 0.79),
                    at(waist, 0.6),
                    at(waist * 1.1, hem),
                    at(-waist * 1.1, hem),
                    at(-waist, 0.6),
                    at(-shoulder, 0.79),
                ]
            ),
            self.top,
        )
        if self.facing:
            self._arm(canvas, at, (0.0, 0.79), (swing * 0.3, 0.62), (swing, 0.45), arm, self.top * 0.82, size)
        if self.bag == 2:
            canvas.ellipse(at(0.13 * (self.facing or 1), 0.42), (0.055 * size, 0.07 * size), self.bag_colour)
        canvas.limb(
            at(0.01 * self.facing, 0.82), at(0.015 * self.facing, 0.88), 0.055 * size, 0.05 * size, self.skin
        )
        head = at(0.02 * self.facing, 0.925)
        canvas.ellipse(head, (0.055 * size, 0.072 * size), self.skin)
        if self.away and not self.facing:
            canvas.ellipse(at(0.0, 0.93), (0.059 * size, 0.072 * size), self.hair)
        else:
            canvas.ellipse(at(-0.008 * self.facing, 0.962), (0.06 * size, 0.042 * size), self.hair)

    def _arm(
        self, canvas: Canvas, at, top, elbow, hand, width: float, colour: np.ndarray, size: float
    ) -> None:
        canvas.limb(at(*top), at(*elbow), width, width * 0.9, colour)
        canvas.limb(at(*elbow), at(*hand), width * 0.9, width * 0.75, colour)
        canvas.ellipse(at(*hand), (0.022 * size, 0.025 * size), self.skin)


def sample_person(rng: np.random.Generator, x: float, z: float) -> Person:
    def cloth() -> np.ndarray:
        if rng.random() < 0.45:
            return rng.uniform(25, 110) + rng.uniform(-10, 10, 3)
        return rng.uniform(30, 225, 3)

    child = rng.random() < 0.12
    return Person(
        x=x,
        z=z,
        height=float(rng.uniform(1.1, 1.4) if child else rng.uniform(1.55, 1.92)),
        stride=float(rng.uniform(-1, 1)),
        facing=int(rng.choice([-1, 0, 0, 1])),
        build=float(rng.uniform(0.85, 1.25)),
        skirt=bool(rng.random() < 0.15),
        coat=float(rng.choice([0.46, 0.42, 0.32])),
        bag=int(rng.choice([0, 0, 1, 2])),
        skin=np.array(_SKIN[int(rng.integers(0, 4))], np.float64),
        hair=np.array([1.0, 0.8, 0.6]) * rng.uniform(25, 150),
        top=cloth(),
        legs=cloth() * 0.8,
        shoes=rng.uniform(20, 90) * np.ones(3),
        bag_colour=rng.uniform(30, 160, 3),
        away=bool(rng.random() < 0.5),
    )

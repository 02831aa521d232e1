"""Label values of the synthetic streets: Cityscapes names, colours and relative order."""

from __future__ import annotations

# (name, RGB) in the order of Cityscapes' train ids, without the kinds that the renderer does not draw.
_CITYSCAPES = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("pole", (153, 153, 153)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("car", (0, 0, 142)),
)

CLASSES: tuple[str, ...] = tuple(name for name, _ in _CITYSCAPES)
PALETTE: tuple[tuple[int, int, int], ...] = tuple(colour for _, colour in _CITYSCAPES)

ROAD, SIDEWALK, BUILDING, POLE, TRAFFIC_SIGN, VEGETATION, TERRAIN, SKY, PERSON, CAR = range(len(CLASSES))

IGNORE_LABEL = 255
ANOMALY_LABEL = 254

"""Outlier exposure: objects that belong to no known class, pasted into training images.

A pasted pixel has the label :data:`OUTLIER_LABEL` until the mapper is done with it; then every loss of the
known classes ignores it, and a mask of its own says where the objects are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image
from torch import Tensor

from .pairing import IMAGE_EXTENSIONS, visible_files
from .reading import IGNORE_LABEL, read_image
from .streets.anomalies import draw_unknown

# In label images, between pasting and the model's input.
OUTLIER_LABEL = 254
RENDERED = "rendered"
# Of COCO's categories, what streets hold anyway (as in Meta-OoD, Chan et al., ICCV 2021).
_KNOWN_IN_COCO = {
    "person", "bicycle", "car", "motorcycle", "bus", "train", "truck", "traffic light", "stop sign",
    "fire hydrant", "parking meter", "bench", "potted plant",
}  # fmt: skip
# Objects of fewer pixels say nothing.
_LEAST_PIXELS = 400
# Placed so often at most: objects hide no other one.
_TRIES = 10

# (random numbers, height in pixels, the image) -> (h, w, 4) float32 RGBA, alpha 0..1.
Source = Callable[[np.random.Generator, int, np.ndarray], np.ndarray]


def rendered(rng: np.random.Generator, height: int, image: np.ndarray) -> np.ndarray:
    """No download: an unknown object of the rendered streets, as it is, or its shape, filled with noise or a
    piece of the image that is turned, of another scale and often of another hue."""
    cutout = draw_unknown(rng, height).astype(np.float32)
    cutout[..., 3] /= 255
    if rng.random() < 0.3:
        return cutout
    rows, columns = cutout.shape[:2]
    if rng.random() < 0.15:
        # Around any colour, in grains of any size.
        grains = np.exp(rng.uniform(0, np.log((rows, columns)))).astype(int)
        noise = rng.normal(rng.uniform(0, 255, 3), rng.uniform(10, 80), (*grains, 3))
        filling = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
        cutout[..., :3] = np.clip(filling, 0, 255)
        return cutout
    zoom, turn = np.exp(rng.uniform(np.log(0.4), np.log(3.0))), rng.uniform(0, 2 * np.pi)
    turned = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))]) * zoom
    centre = rng.uniform((0.1, 0.25), (0.9, 0.85)) * (image.shape[1], image.shape[0])
    matrix = np.column_stack([turned, centre - turned @ (columns / 2, rows / 2)])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    piece = cv2.warpAffine(image, matrix, (columns, rows), flags=flags, borderMode=cv2.BORDER_REFLECT)
    if rng.random() < 0.6:
        hsv = cv2.cvtColor(piece, cv2.COLOR_RGB2HSV).astype(np.float32)
        hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 180)) % 180
        hsv[..., 1] = np.minimum(hsv[..., 1] * rng.uniform(0.5, 2.5) + rng.uniform(0, 40), 255)
        piece = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    # Half of them keep the shape's own light and shade.
    light = cutout[..., :3].mean(axis=2, keepdims=True) if rng.random() < 0.5 else np.float32(255)
    cutout[..., :3] = piece * (0.5 + 0.5 * light / max(float(np.max(light)), 1.0)) * rng.uniform(0.7, 1.5)
    return cutout


class CutOuts:
    """Objects from files: RGBA images in a folder and below. Out of one without alpha, another frame or a
    texture, pieces are cut, as :func:`rendered` does out of the image itself.

    Raises:
        FileNotFoundError: no such folder, or no image in it. ValueError, when used: nothing but transparent.
    """

    def __init__(self, folder: Path) -> None:
        files = visible_files(folder) if folder.is_dir() else []
        self.files = sorted(path for path in files if path.suffix.lower() in IMAGE_EXTENSIONS)
        if not self.files:
            raise FileNotFoundError(
                f'INPUT.OUTLIERS.SOURCE: expected "{RENDERED}", a folder of RGBA cut-outs or a .json of COCO '
                f"annotations, found {folder} without an image in it"
            )

    def __call__(self, rng: np.random.Generator, height: int, _image: np.ndarray) -> np.ndarray:
        path = self.files[rng.integers(len(self.files))]
        with Image.open(path) as file:
            if "A" not in file.getbands() and "transparency" not in file.info:
                return rendered(rng, height, read_image({"file_name": str(path)}, "RGB"))
            cutout = np.asarray(file.convert("RGBA"))
        if not cutout[..., 3].any():
            raise ValueError(f"INPUT.OUTLIERS.SOURCE: {path} is transparent everywhere")
        return _fitted(cutout[..., :3], cutout[..., 3], height)


class Annotated:
    """Objects from annotations in COCO's format, but for what streets hold anyway and crowds.

    The images lie as COCO has them (``annotations/instances_NAME.json`` beside ``NAME/``), or where the
    annotations' ``file_name`` leads from the file's own folder.

    Raises:
        ValueError: no object in the file.
    """

    def __init__(self, path: Path) -> None:
        from pycocotools.coco import COCO

        self.coco = COCO(str(path))
        wrong = {key for key, found in self.coco.cats.items() if found["name"] in _KNOWN_IN_COCO}
        self.objects = [
            key
            for key, found in sorted(self.coco.anns.items())
            if found["category_id"] not in wrong
            and not found.get("iscrowd")
            and found.get("segmentation")
            and found["area"] >= _LEAST_PIXELS
        ]
        if not self.objects:
            raise ValueError(
                f"INPUT.OUTLIERS.SOURCE: {path} has no object of {_LEAST_PIXELS} pixels with an outline that "
                "is not of a class of streets"
            )
        beside = path.parent.parent / path.stem.removeprefix("instances_")
        self.folder = beside if beside.is_dir() else path.parent

    def __call__(self, rng: np.random.Generator, height: int, _image: np.ndarray) -> np.ndarray:
        found = self.coco.anns[self.objects[rng.integers(len(self.objects))]]
        file = self.folder / self.coco.imgs[found["image_id"]]["file_name"]
        alpha = 255 * self.coco.annToMask(found)
        return _fitted(read_image({"file_name": str(file)}, "RGB"), alpha, height)


def _fitted(image: np.ndarray, alpha: np.ndarray, height: int) -> np.ndarray:
    """What alpha (H, W) uint8 shows of an image, cut out and brought to a height; see :data:`Source`."""
    left, top, columns, rows = cv2.boundingRect(alpha)
    place = np.s_[top : top + rows, left : left + columns]
    cutout = np.dstack([image[place], alpha[place]]).astype(np.float32)
    size = (max(2, round(columns * height / rows)), max(2, height))
    cutout = cv2.resize(cutout, size, interpolation=cv2.INTER_AREA if height < rows else cv2.INTER_LINEAR)
    cutout[..., 3] /= 255
    return cutout


@cache
def get_source(name: str) -> Source:
    """``INPUT.OUTLIERS.SOURCE``: "rendered", a folder of RGBA cut-outs or photos, or a .json of COCO's form.

    Raises:
        FileNotFoundError, ValueError: nothing of these there.
    """
    if name == RENDERED:
        return rendered
    path = Path(name).expanduser()
    return Annotated(path) if path.is_file() else CutOuts(path)


def separated(label: Tensor, pastes: bool) -> dict[str, Tensor]:
    """label: (H, W) int64, maybe with objects -> "sem_seg", which ignores them, and where the image was one
    to paste into, "outliers" (H, W) bool."""
    outliers = label == OUTLIER_LABEL
    found = {"sem_seg": label.masked_fill(outliers, IGNORE_LABEL)}
    return found | {"outliers": outliers} if pastes else found


class Paste(Transform):
    """Objects on their places: ``(top, left, colours (h, w, 3) float32, alpha (h, w) float32)`` each."""

    def __init__(self, objects: Sequence[tuple[int, int, np.ndarray, np.ndarray]]) -> None:
        super().__init__()
        self.objects = objects

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        pasted = img.copy()
        for top, left, colours, alpha in self.objects:
            place = np.s_[top : top + len(alpha), left : left + alpha.shape[1]]
            mixed = pasted[place] + alpha[..., None] * (colours - pasted[place])
            pasted[place] = np.clip(mixed + 0.5, 0, 255)
        return pasted

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        pasted = segmentation.copy()
        for top, left, _, alpha in self.objects:
            pasted[top : top + len(alpha), left : left + alpha.shape[1]][alpha > 0.5] = OUTLIER_LABEL
        return pasted

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        raise NotImplementedError("Paste transforms images and label images only")


class PasteOutliers(T.Augmentation):
    """Pastes objects into a share of the images, none over another; light, colours and sharpness are brought
    nearer to those of the place, by chance more or less, and outlines are soft.

    Args:
        source: of the objects. share: of the images that get any. objects: fewest and most an image.
        heights: smallest and largest, in shares of the image's height; drawn log-uniformly.
        feet: highest and lowest place of their lower end, likewise; drawn uniformly, lower for what is tall.
        blending: 0 (objects as they are) to 1.
        image_format: "RGB" or "BGR".
    """

    def __init__(
        self,
        source: Source,
        *,
        share: float = 1.0,
        objects: Sequence[int] = (3, 8),
        heights: Sequence[float] = (0.03, 0.45),
        feet: Sequence[float] = (0.42, 1.0),
        blending: float = 1.0,
        image_format: str = "RGB",
    ) -> None:
        super().__init__()
        self.source, self.share, self.image_format = source, share, image_format
        self.objects, self.heights = tuple(objects), tuple(heights)
        self.feet, self.blending = tuple(feet), blending

    @classmethod
    def from_config(cls, cfg: CfgNode, **other: float) -> PasteOutliers:
        keys = cfg.INPUT.OUTLIERS
        options = {key: keys[key.upper()] for key in ("share", "objects", "heights", "feet", "blending")}
        return cls(get_source(keys.SOURCE), image_format=cfg.INPUT.FORMAT, **options | other)

    def get_transform(self, image: np.ndarray) -> Transform:
        # One number of the global generator, whatever the objects need.
        rng = np.random.default_rng(np.random.randint(2**31))
        if rng.random() >= self.share:
            return NoOpTransform()
        image = image if self.image_format == "RGB" else np.ascontiguousarray(image[..., ::-1])
        taken = np.zeros(image.shape[:2], bool)
        objects = []
        for _ in range(int(rng.integers(self.objects[0], self.objects[1] + 1))):
            for _ in range(_TRIES):
                if (placed := self._placed(rng, image, taken)) is not None:
                    objects.append(placed)
                    break
        if self.image_format == "BGR":
            objects = [(top, left, colours[..., ::-1], alpha) for top, left, colours, alpha in objects]
        return Paste(objects)

    def _placed(
        self, rng: np.random.Generator, image: np.ndarray, taken: np.ndarray
    ) -> tuple[int, int, np.ndarray, np.ndarray] | None:
        rows, columns = image.shape[:2]
        height = max(4, round(rows * np.exp(rng.uniform(*np.log(self.heights)))))
        cutout = self.source(rng, height, image)
        highest, lowest = self.feet
        # What is tall is near, and stands lower.
        foot = rows * (highest + (lowest - highest) * max(rng.random(), height / rows))
        top, left = int(foot - len(cutout)), int(rng.uniform(0.03, 0.97) * columns - cutout.shape[1] / 2)
        cutout = cutout[max(0, -top) : rows - top, max(0, -left) : columns - left]
        top, left = max(0, top), max(0, left)
        colours, alpha = cutout[..., :3], cutout[..., 3]
        place = np.s_[top : top + len(alpha), left : left + alpha.shape[1]]
        if alpha.sum() < 12 or (taken[place] & (alpha > 0)).any():
            return None
        taken[place] |= alpha > 0
        blended = _blended(rng, colours, alpha, image[place].mean(axis=(0, 1)), rows)
        parts = zip((colours, alpha), blended, strict=True)
        return top, left, *(own + self.blending * (other - own) for own, other in parts)


def _blended(
    rng: np.random.Generator, colours: np.ndarray, alpha: np.ndarray, around: np.ndarray, rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Colours and alpha of an object whose surroundings have the mean colour ``around`` (3,), in an image of
    so many rows: nothing but what it is should tell it."""
    match, weight = rng.uniform(0, 0.7), alpha[..., None] / alpha.sum()
    own = (colours * weight).sum(axis=(0, 1))
    gain = 1 - match + match * (around.mean() + 20) / (own.mean() + 20)
    tint = 1 - match / 2 + match / 2 * (around + 20) / (around.mean() + 20)
    colours = colours * (gain * tint)
    own = own * gain * tint
    colours = own + (colours - own) * rng.uniform(0.6, 1.1)
    # As far as it shows at the sizes that networks see.
    blur = rng.uniform(0.3, 1.6) * max(1.0, rows / 1024)
    colours = cv2.GaussianBlur(colours.astype(np.float32), (0, 0), 0.6 * blur)
    colours += rng.normal(0, rng.uniform(0, 4), colours.shape).astype(np.float32)
    # Outside there is nothing: an object that fills its cut-out has soft borders too.
    soft = cv2.GaussianBlur(alpha, (0, 0), blur, borderType=cv2.BORDER_CONSTANT)
    return np.clip(colours, 0, 255), soft

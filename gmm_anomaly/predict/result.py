"""What is predicted for one image: scores, classes, anomalies as objects, pictures and files of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pycocotools import mask as coco

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.visualization import (
    caption_bar,
    colorize_labels,
    heat_map,
    overlay,
    robust_range,
    side_by_side,
)

# Of a component, in pixels: the smallest that SegmentMeIfYouCan keeps on its obstacle track.
MIN_AREA = 50
# Weight of the heat map where the score is at the high end of the colour range. It grows with the square from
# nothing at the low end: the photo stays readable, also where something was found.
STRONGEST = 0.5
CONTOUR_COLOR = (0, 255, 255)
BOX_COLOR = (255, 255, 255)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True, eq=False)
class AnomalyComponent:
    """One region that is connected (8 neighbours) and whose scores all lie above the threshold.

    Attributes:
        box: (x, y, width, height) in pixels, as COCO has it: x and y of the top left pixel.
        area: pixels.
        mean_score, max_score: over its pixels.
        contour: (P, 2) int32, (x, y) of its outer border's corners, in order.
        rle: COCO's compressed run-length code of its mask, {"size": [H, W], "counts": str}.
    """

    box: tuple[int, int, int, int]
    area: int
    mean_score: float
    max_score: float
    contour: np.ndarray = field(repr=False)
    rle: dict[str, Any] = field(repr=False)

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, of the image's size."""
        return coco.decode(self.rle).astype(bool)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and strings, with the names of the attributes."""
        return asdict(self) | {"box": list(self.box), "contour": self.contour.tolist()}


def find_components(score: np.ndarray, threshold: float, min_area: int = MIN_AREA) -> list[AnomalyComponent]:
    """Components of the pixels whose score is above a threshold, largest first.

    The rule is SegmentMeIfYouCan's: score > threshold, 8-connectivity, components with fewer than
    ``min_area`` pixels dropped.

    Args:
        score: (H, W) float, higher = more anomalous.
        threshold: on the score; compared exactly.
        min_area: in pixels.
    """
    # In float64 a float32 score and the threshold are compared as they are, whatever NumPy's promotion.
    above = (score.astype(np.float64) > threshold).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    found = []
    for number in range(1, count):
        x, y, width, height, area = (int(value) for value in stats[number])
        if area < min_area:
            continue
        inside = np.s_[y : y + height, x : x + width]
        mask = np.zeros(score.shape, np.uint8, order="F")
        mask[inside] = labels[inside] == number
        values = score[mask == 1].astype(np.float64)
        # 8-connected, so there is one outer border.
        (contour, *_), _ = cv2.findContours(
            mask[inside].copy("C"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
        )
        rle = coco.encode(mask)
        component = AnomalyComponent(
            box=(x, y, width, height),
            area=area,
            mean_score=float(values.mean()),
            max_score=float(values.max()),
            contour=contour.reshape(-1, 2).astype(np.int32),
            rle={"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")},
        )
        found.append(component)
    return sorted(found, key=lambda component: -component.area)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The result of :class:`~gmm_anomaly.AnomalyPredictor` for an image of height H and width W.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        score: (H, W) float32, higher = more anomalous.
        segmentation: (H, W) uint8, class ids.
        score_name: as in ``TEST.SCORES``, with the post-processes after it.
        class_names, class_colors: by class id; colours are RGB, 0 to 255.
        threshold: a pixel is anomalous where its score is above it; None if none is known.
        color_range: scores of the overlay's darkest and brightest colours; None: the image's own.
        min_area: smallest component, in pixels.
        source: the image's file, or "".
    """

    image: np.ndarray = field(repr=False)
    score: np.ndarray = field(repr=False)
    segmentation: np.ndarray = field(repr=False)
    score_name: str
    class_names: tuple[str, ...] = field(repr=False)
    class_colors: tuple[tuple[int, int, int], ...] = field(repr=False)
    threshold: float | None = None
    color_range: tuple[float, float] | None = None
    min_area: int = MIN_AREA
    source: str = ""

    @cached_property
    def components(self) -> list[AnomalyComponent]:
        """Connected regions above the threshold, largest first.

        Raises:
            ValueError: no threshold is known.
        """
        if self.threshold is None:
            raise ValueError(
                "components need a threshold, and this predictor has none: call "
                'predictor.fit_threshold("DATASET", target_fpr=0.05) once, or give threshold=X or '
                'threshold="threshold.json" to AnomalyPredictor.from_config; one image: '
                "result.components_above(X)"
            )
        return self.components_above(self.threshold)

    def components_above(self, threshold: float, min_area: int | None = None) -> list[AnomalyComponent]:
        """Connected regions above another threshold, largest first; ``min_area`` in pixels."""
        return find_components(self.score, threshold, self.min_area if min_area is None else min_area)

    def overlay(self, color_range: tuple[float, float] | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the image under its scores, with contours and boxes of the components.

        Contours are drawn cyan, boxes white with the mean score, but for small ones whose number would cover
        another.

        Args:
            color_range: scores of the darkest and the brightest colour; the same one makes frames comparable.
                By default the predictor's, or the image's own 1st and 99.8th percentile.
        """
        low, high = self._range(color_range)
        components = () if self.threshold is None else self.components
        image, score = self.image, self.score
        # Without a range nothing stands out.
        level = np.clip((np.nan_to_num(score, nan=low) - low) / ((high - low) or np.inf), 0, 1)
        weight = (STRONGEST * level**2).astype(np.float32)
        picture = np.ascontiguousarray(overlay(image, heat_map(score, low, high), weight))
        # Lines that are seen at the picture's size on a screen: 1 pixel for each 600 of the longer side.
        line = max(1, round(max(image.shape[:2]) / 600))
        for component in components:
            cv2.drawContours(picture, [component.contour], -1, CONTOUR_COLOR, line, cv2.LINE_8)
            x, y, width, height = component.box
            cv2.rectangle(picture, (x, y), (x + width - 1, y + height - 1), BOX_COLOR, line, cv2.LINE_8)
        # Of the numbers drawn so far: left, top, right, bottom.
        drawn: list[tuple[int, int, int, int]] = []
        for component in components:
            text, size = f"{component.mean_score:.3g}", 0.36 * line + 0.04
            (width, height), below = cv2.getTextSize(text, _FONT, size, line)
            left = min(component.box[0], max(0, picture.shape[1] - width - 2))
            # Above the corner of the box, or inside where there is no room above.
            top = component.box[1] - height - below
            top = top if top >= 0 else component.box[1]
            right, bottom = left + width + 1, top + height + below - 1
            if not any(left <= r and x <= right and top <= b and y <= bottom for x, y, r, b in drawn):
                drawn.append((left, top, right, bottom))
                cv2.rectangle(picture, (left, top), (right, bottom), (0, 0, 0), cv2.FILLED)
                start = (left + 1, top + height)
                cv2.putText(picture, text, start, _FONT, size, BOX_COLOR, line, cv2.LINE_AA)
        return picture

    def _range(self, color_range: tuple[float, float] | None = None) -> tuple[float, float]:
        return color_range or self.color_range or robust_range(self.score)

    @property
    def legend(self) -> str:
        """What colours, contours and numbers of the overlay mean."""
        low, high = self._range()
        text = f"{self.score_name}, {low:.3g} (dark) to {high:.3g} (bright)"
        return (
            text if self.threshold is None else f"{text}; outlined: above {self.threshold:.3g}, number: mean"
        )

    def captioned_overlay(self) -> np.ndarray:
        """(H + B, W, 3) uint8 RGB: the overlay below a bar of B pixels with its legend."""
        picture = self.overlay()
        return np.concatenate([caption_bar(self.legend, picture.shape[1]), picture])

    def picture(self) -> np.ndarray:
        """(H', W', 3) uint8 RGB: overlay and segmentation side by side, with captions."""
        classes = colorize_labels(self.segmentation, self.class_colors)
        return side_by_side([self.overlay(), classes], [self.legend, "segmentation"])

    def show(self) -> None:
        """Show :meth:`picture` in a window, or below the cell of a notebook."""
        from matplotlib import pyplot

        pyplot.figure(frameon=False).figimage(self.picture(), resize=True)
        pyplot.show()


def extremes(prediction: Prediction) -> dict[str, float]:
    score = prediction.score
    return {"mean_score": float(score.mean(dtype=np.float64)), "max_score": float(score.max())}


def write_video(folder: Path, name: str, fps: float, predictions: Iterable[Prediction]) -> dict[str, Any]:
    """Write ``videos/NAME.mp4`` (MPEG-4: H.264 needs a library that OpenCV's wheels lack) and its lines; both
    appear when the last frame is there.

    Args:
        fps: frames per second. predictions: of the frames, at least one, of one size and colour range.

    Returns:
        What was written, as plain values.

    Raises:
        OSError: the video cannot be written.
    """
    video, lines = (folder / "videos" / f"{name}.{kind}" for kind in ("mp4", "jsonl"))
    writer, frames, anomalous = cv2.VideoWriter(), 0, None
    with replacing(video) as unfinished, replacing(lines) as temporary, temporary.open("w") as file:
        # OpenCV goes by the extension.
        growing = unfinished.with_suffix(".mp4")
        try:
            for prediction in predictions:
                line: dict[str, Any] = {"frame": frames, "seconds": round(frames / fps, 6)}
                line |= extremes(prediction)
                if prediction.threshold is not None:
                    line["components"] = [component.to_json() for component in prediction.components]
                    anomalous = (anomalous or 0) + bool(prediction.components)
                file.write(json.dumps(line) + "\n")
                picture = np.ascontiguousarray(prediction.overlay()[..., ::-1])
                if not frames:
                    writer.open(str(growing), cv2.VideoWriter.fourcc(*"mp4v"), fps, picture.shape[1::-1])
                if not writer.isOpened():
                    raise OSError(f"{video}: OpenCV cannot write an MPEG-4 video there")
                writer.write(picture)
                frames += 1
            writer.release()
            # OpenCV is silent about a full disk, and about frames of another size.
            written = int(cv2.VideoCapture(str(growing)).get(cv2.CAP_PROP_FRAME_COUNT))
            if written != frames:
                raise OSError(
                    f"{video}: {written} of {frames} frames could be written; is there room on the disk, "
                    "and are all frames of one size?"
                )
            growing.replace(unfinished)
        finally:
            writer.release()
            growing.unlink(missing_ok=True)
    found = {"frames": frames, "fps": fps, "frames_with_anomalies": anomalous}
    return found | {"overlay": str(video), "lines": str(lines)}


def save_score_png(target: Path, score: np.ndarray) -> None:
    """Write a score map, (H, W) float32, as 16-bit PNG whose text chunks say score = pixel · scale + offset.

    The map's own range is spread over the 65536 levels, so the error is at most half of ``scale``.

    Raises:
        ValueError: a score is infinite or NaN.
    """
    if not np.isfinite(score).all():
        raise ValueError(f"{target}: a 16-bit PNG holds finite scores only; save them as npy")
    values = score.astype(np.float64)
    offset = values.min()
    scale = (values.max() - offset) / 65535 or 1.0
    text = PngInfo()
    text.add_text("scale", repr(float(scale)))
    text.add_text("offset", repr(float(offset)))
    pixels = np.rint((values - offset) / scale).astype(np.uint16)
    with replacing(target) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=text)

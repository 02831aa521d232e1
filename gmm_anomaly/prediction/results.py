"""What is predicted for one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gmm_anomaly.visualization import colorize_labels, robust_range, side_by_side

from .components import MIN_AREA, AnomalyComponent, find_components
from .drawing import draw_overlay


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
                'predictor.calibrate("DATASET", target_fpr=0.05) once, or give threshold=X or '
                'threshold="threshold.json" to AnomalyPredictor.from_config; one image: '
                "result.components_above(X)"
            )
        return self.components_above(self.threshold)

    def components_above(self, threshold: float, min_area: int | None = None) -> list[AnomalyComponent]:
        """Connected regions above another threshold, largest first; ``min_area`` in pixels."""
        return find_components(self.score, threshold, self.min_area if min_area is None else min_area)

    def overlay(self, color_range: tuple[float, float] | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the image under its scores, with contours and boxes of the components.

        Args:
            color_range: scores of the darkest and the brightest colour; by default the predictor's, or the
                image's own 1st and 99.8th percentile.
        """
        chosen = color_range or self.color_range or robust_range(self.score)
        return draw_overlay(
            self.image, self.score, chosen, self.components if self.threshold is not None else ()
        )

    def segmentation_picture(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the classes in the data set's colours."""
        return colorize_labels(self.segmentation, self.class_colors)

    def picture(self) -> np.ndarray:
        """(H', W', 3) uint8 RGB: overlay and segmentation side by side, with captions."""
        return side_by_side([self.overlay(), self.segmentation_picture()], [self.score_name, "segmentation"])

    def show(self) -> None:
        """Show :meth:`picture` in a window, or below the cell of a notebook.

        Raises:
            RuntimeError: there is no display.
        """
        from matplotlib import pyplot

        if pyplot.get_backend().lower() == "agg":
            raise RuntimeError(
                "there is no display to show a picture on; save it: "
                "PIL.Image.fromarray(result.picture()).save('picture.png')"
            )
        picture = self.picture()
        height, width = picture.shape[:2]
        figure = pyplot.figure(figsize=(12, 12 * height / width), frameon=False)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture)
        axes.axis("off")
        pyplot.show()

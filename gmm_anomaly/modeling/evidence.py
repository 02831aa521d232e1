"""What the network says about one image, at the resolution of its features until somebody needs pixels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from .classifiers import Classified
from .inference_mode import FEATURES
from .restoration import Restoration


class PixelEvidence(NamedTuple):
    """Evidence at some resolution: logits and log_density (C, h, w) float32, feature_distance (h', w')."""

    logits: Tensor
    log_density: Tensor | None
    feature_distance: Tensor | None

    @property
    def classified(self) -> Classified:
        """As a batch of one, for a classifier."""
        return Classified(self.logits[None], None if self.log_density is None else self.log_density[None])

    def aligned(self) -> PixelEvidence:
        """With the distances at the resolution of the logits: a tile's may have another one."""
        distance, size = self.feature_distance, self.logits.shape[1:]
        if distance is None or distance.shape == size:
            return self
        resized = F.interpolate(distance[None, None], size=size, mode="bilinear", align_corners=False)
        return self._replace(feature_distance=resized[0, 0])


ScoreFunction = Callable[[PixelEvidence], Tensor]


@dataclass(frozen=True)
class ImageEvidence:
    """The tiles of one image, and their way to the output's pixels.

    Attributes:
        tiles: one for every window of every look. restoration: the geometry. score_on: see
            :class:`InferenceMode`.
    """

    tiles: Sequence[PixelEvidence]
    restoration: Restoration
    score_on: str

    def restore(
        self, score: ScoreFunction, *, keep: Collection[str] = ("logits",)
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Evidence and scores at the output's size.

        Everything is computed in strips of rows, so that at full resolution only the returned maps exist.

        Args:
            score: from :class:`PixelEvidence`, its maps all at one resolution, to (S, h, w) scores.
            keep: fields of :class:`PixelEvidence` to return.

        Returns:
            {field: (C, height, width), of feature_distance (height, width)}; (S, height, width) scores.
        """
        on_features = self.score_on == FEATURES
        scored = [score(tile.aligned()) for tile in self.tiles] if on_features else []
        kept: dict[str, Tensor] = {}
        scores: Tensor | None = None
        for rows in self.restoration.strips(len(self.tiles[0].logits)):
            fields = keep if on_features else PixelEvidence._fields
            strip: dict[str, Any] = {field: self._field_rows(field, rows) for field in fields}
            part = self.restoration.rows(scored, rows) if on_features else score(PixelEvidence(**strip))
            for field in keep:
                kept[field] = self._written(kept.get(field), strip[field], rows)
            scores = self._written(scores, part, rows)
        assert scores is not None
        return kept, scores

    def _field_rows(self, field: str, rows: range) -> Tensor | None:
        tiles = [getattr(tile, field) for tile in self.tiles]
        if tiles[0] is None:
            return None
        if field == "feature_distance":
            return self.restoration.rows([tile[None] for tile in tiles], rows)[0]
        return self.restoration.rows(tiles, rows)

    def _written(self, whole: Tensor | None, strip: Tensor, rows: range) -> Tensor:
        """``whole`` with a strip of rows in its place; the first strip makes room for all."""
        height = self.restoration.output_size[0]
        if len(rows) == height:
            return strip
        if whole is None:
            whole = strip.new_empty(*strip.shape[:-2], height, strip.shape[-1])
        whole[..., rows.start : rows.stop, :] = strip
        return whole

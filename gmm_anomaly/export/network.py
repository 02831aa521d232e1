"""A segmentor as one function of an image: normalisation, network and anomaly score."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import GaussianMixtures
from gmm_anomaly.gmm.density import EXCLUDED, DensityTable, class_log_density_of
from gmm_anomaly.modeling.classifiers import GMMClassifier, PrototypeClassifier
from gmm_anomaly.modeling.inference import FEATURES
from gmm_anomaly.modeling.restoration import COARSE
from gmm_anomaly.modeling.segmentor import AnomalySegmentor
from gmm_anomaly.postprocess.guided_filter import filter_by_guide
from gmm_anomaly.postprocess.picture_level import without_level
from gmm_anomaly.scores import PixelOutputs


class ExportableSegmentor(nn.Module):
    """Images to segmentation and anomaly score, as the evaluation of a trained segmentor gives them.

    A copy of the model, whose own state stays as it is, in which some parts are replaced by others that give
    the same numbers and that exporters can follow.

    Args:
        model: trained, a pixel classifier's (not a mask model), that looks at a whole image, at one or more
            scales.
        score: one of the model's scores; "guided_filter" and "picture_level" may follow it.
        image_format: the channel order the model was trained on, "RGB" or "BGR".

    Attributes:
        divisor: images are padded inside to multiples of it.
        min_side: the least height and width that a graph of open size takes.

    Raises:
        ValueError: a model, a way of inference or a score that cannot be exported; says what to change.
        UnfittedMixtureError, UnfittedPrototypesError, UnfittedMomentsError: a model that is not fitted.
    """

    def __init__(self, model: AnomalySegmentor, score: str, *, image_format: str = "RGB") -> None:
        super().__init__()
        _require_exportable(model, score)
        name, *chain = score.split("+")
        self.score, self.chain = model.scoring.scores[name], chain
        self.score_on_features = model.inference.score_on == FEATURES
        # Whole numbers, so that exporters can follow the sizes.
        self.scales = [Fraction(scale).limit_denominator(10000) for scale in model.inference.scales]
        self.reversed_channels = image_format == "BGR"
        self.divisor = max(1, int(model.backbone.size_divisibility))
        strides = [int(shape.stride) for shape in model.backbone.output_shape().values()]
        # torch.export holds a map of one row or column for a special case; 32: there may be one inside.
        largest = max(self.divisor, *strides, 32)
        self.min_side = largest + 1 if self.divisor >= largest else 2 * largest
        self.min_side = ceil(self.min_side / min(*self.scales, 1))
        model = copy.deepcopy(model).eval().cpu().float().requires_grad_(False)
        model.compiled = False
        # Whether a tensor of open size has another layout is not to be known.
        model.memory_format = torch.contiguous_format
        model.to(memory_format=torch.contiguous_format)
        # The model knows best whether all of it is fitted.
        model([{"image": torch.zeros(3, self.min_side, self.min_side)}])
        if model.frozen_backbone is not None:
            model.frozen_backbone.stop_sharing()
        # Images are padded to the largest stride, so that every stride divides what it meets.
        if self.divisor >= max(strides):
            for backbone in filter(None, (model.backbone, model.frozen_backbone)):
                _replace(backbone, Conv2dSame, _constant_padding)
        # One cell is a plain mean.
        by_products = lambda pool: pool if pool.output_size == 1 else PoolingByProducts(pool)  # noqa: E731
        _replace(model.decoder, nn.AdaptiveAvgPool2d, by_products)
        if isinstance(model.classifier, GMMClassifier):
            model.classifier = FrozenMixtures(model.classifier)
        elif isinstance(model.classifier, PrototypeClassifier):
            # While training, running means do not ask whether they are fitted; nothing else differs.
            model.classifier.predictor.train()
        # Those of outliers.
        _replace(model, GaussianMixtures, FrozenDensities)
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Segmentation and anomaly score.

        Args:
            image: (B, 3, H, W) RGB, 0 to 255, uint8 or floating point, of any height and width.

        Returns:
            Class ids (B, H, W) int64; scores (B, H, W) float32, higher = more anomalous.
        """
        model = self.model
        image = image.flip(1) if self.reversed_channels else image
        normal = model.normalised({"image": image})
        looks = [self._look(normal, scale) for scale in self.scales]
        outputs = looks[0]

        def mean(maps: list[Tensor | None]) -> Tensor | None:
            return None if maps[0] is None else sum(maps) / len(maps)

        logits = mean([look.logits for look in looks])
        coarse = {name: mean([getattr(look, name) for look in looks]) for name in COARSE}
        if self.score_on_features:
            # Each look's score is there instead of its distance.
            score = coarse["feature_distance"]
        else:
            density = mean([look.log_density for look in looks])
            score = self.score(replace(outputs, logits=logits, log_density=density, **coarse))
        for postprocess in self.chain:
            guided = postprocess == "guided_filter"
            score = filter_by_guide(score, image.float() / 255) if guided else without_level(score)
        return logits.argmax(dim=1), score.float()

    def _look(self, normal: Tensor, scale: Fraction) -> PixelOutputs:
        """normal: (B, 3, H, W) -> what the network says of it at a scale, maps of its height and width. Where
        scores are computed on features, the score is in the place of the distances."""
        full = normal.shape[-2:]
        height, width = full
        if scale != 1:
            up, down = scale.numerator, scale.denominator
            height, width = ((2 * length * up + down) // (2 * down) for length in full)
            normal = F.interpolate(normal, size=(height, width), mode="bilinear", align_corners=False)
        # Not -height % divisor: exporters see in this form that strides divide the padded size.
        padded_height = (height + self.divisor - 1) // self.divisor * self.divisor
        padded_width = (width + self.divisor - 1) // self.divisor * self.divisor
        outputs = self.model.score_inputs(F.pad(normal, (0, padded_width - width, 0, padded_height - height)))

        def restored(maps: Tensor | None) -> Tensor | None:
            if maps is None:
                return None
            size = (padded_height, padded_width)
            maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
            # Not a slice: exporters would ask how its layout compares with the padded one's.
            rows, columns = (torch.arange(length, device=maps.device) for length in (height, width))
            maps = maps.index_select(2, rows).index_select(3, columns)
            return (
                maps if scale == 1 else F.interpolate(maps, size=full, mode="bilinear", align_corners=False)
            )

        logits, density = outputs.logits, outputs.log_density
        coarse = {name: getattr(outputs, name) for name in COARSE}
        coarse = {name: None if maps is None else maps[:, None] for name, maps in coarse.items()}
        if self.score_on_features:
            for name, maps in coarse.items():
                if maps is not None:
                    size = logits.shape[-2:]
                    coarse[name] = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[:, 0]
            score = self.score(replace(outputs, **coarse))[:, None]
            coarse = {**dict.fromkeys(COARSE), "feature_distance": score}
        logits, density = restored(logits), restored(density)
        coarse = {name: restored(maps) for name, maps in coarse.items()}
        coarse = {name: None if maps is None else maps[:, 0] for name, maps in coarse.items()}
        return replace(outputs, logits=logits, log_density=density, **coarse)


def _require_exportable(model: nn.Module, score: str) -> None:
    """Raise ValueError, with what to change, for what has no form as one graph of one image."""
    wrong = None
    if not isinstance(model, AnomalySegmentor):
        wrong = (
            f"{type(model).__name__} cannot be exported; only pixel classifiers can "
            '(MODEL.META_ARCHITECTURE "AnomalySegmentor")'
        )
    elif not set(score.split("+")[1:]) <= {"guided_filter", "picture_level"}:
        wrong = (
            "of post-processes guided_filter and picture_level alone can be part of a network, found "
            f"{score!r}; export the score {score.split('+')[0]!r} and apply the others to its maps"
        )
    elif model.inference.window is not None:
        wrong = (
            "sliding windows are not part of a network; set TEST.SLIDING_WINDOW.ENABLED False, and cut "
            "images into windows outside"
        )
    elif model.inference.flip:
        wrong = "looks at mirrored images are not part of a network; set TEST.AUG.FLIP False"
    if wrong:
        raise ValueError(f"export: {wrong}")


def _replace(network: nn.Module, kind: type[nn.Module], by: Callable[[Any], nn.Module]) -> None:
    """Replace every module of a kind inside, in place."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, by(child))


def _constant_padding(convolution: Conv2dSame) -> nn.Module:
    """A convolution with TensorFlow's padding, whose width is a constant where the stride divides the
    input's height and width; timm computes it from the size of each input."""
    plain = nn.Conv2d(1, 1, 1)
    plain.__dict__.update(convolution.__dict__)
    sides: list[int] = []  # left, right, top, bottom: the odd one at the end
    for axis in (1, 0):
        reach = (convolution.kernel_size[axis] - 1) * convolution.dilation[axis] + 1
        total = max(reach - convolution.stride[axis], 0)
        sides += [total // 2, total - total // 2]
    return nn.Sequential(nn.ZeroPad2d(sides), plain)


class PoolingByProducts(nn.Module):
    """``nn.AdaptiveAvgPool2d`` to a square of cells as two products: no exporter has it for a size that
    is not known."""

    def __init__(self, pooling: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self.cells = pooling.output_size

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, F, h, w) -> (B, F, cells, cells)."""
        height, width = features.shape[-2:]
        across = F.linear(features, self._weights(width, features))
        return F.linear(across.transpose(2, 3), self._weights(height, features)).transpose(2, 3)

    def _weights(self, length: int, like: Tensor) -> Tensor:
        """(cells, length): the share of each position in the mean of each cell."""
        cell = torch.arange(self.cells, device=like.device)[:, None]
        position = torch.arange(length, device=like.device)
        start, stop = cell * length // self.cells, ((cell + 1) * length + self.cells - 1) // self.cells
        inside = ((position >= start) & (position < stop)).to(like.dtype)
        return inside / inside.sum(dim=1, keepdim=True)


class FrozenDensities(nn.Module):
    """Of fitted :class:`GaussianMixtures`, the log-densities of the classes that are fitted.

    These work in chunks of pixels, and ask at every call which components are fitted and whether the table is
    still theirs. All of that is settled here, so that a graph holds matrix products only.
    """

    constant: Tensor
    matrix: Tensor

    def __init__(self, mixtures: GaussianMixtures) -> None:
        super().__init__()
        self.reduction, self.components = mixtures.reduction, mixtures.num_components
        table = DensityTable(mixtures.unit_means, mixtures.scales)
        # A component that was never fitted takes no part.
        constant = table.constant.masked_fill(~mixtures.fitted.flatten(), -torch.inf)
        of_known = mixtures.known_classes.repeat_interleave(self.components)
        self.register_buffer("constant", constant[of_known])
        self.register_buffer("matrix", table.matrix[:, of_known])

    def class_log_density(self, x: Tensor) -> Tensor:
        """x: (N, D) float32 -> (N, classes that are fitted) float32."""
        return class_log_density_of(x, self.constant, self.matrix, self.components, self.reduction)


class FrozenMixtures(nn.Module):
    """A fitted :class:`GMMClassifier` at inference: pixel features to logits and class log-densities."""

    known: Tensor

    def __init__(self, classifier: GMMClassifier) -> None:
        super().__init__()
        bank, norm = classifier.bank, classifier.class_norm
        self.dim, self.classes = bank.dim, bank.num_classes
        self.densities = FrozenDensities(bank)
        self.project, self.feature_norm = classifier.project, classifier.feature_norm
        self.guide = classifier.guide if classifier.logits_from == "softmax" else None
        # A class that was never fitted keeps the constant EXCLUDED.
        known = bank.known_classes
        self.register_buffer("known", known.nonzero()[:, 0])
        self.class_norm = nn.LayerNorm(len(self.known), eps=norm.eps)
        self.class_norm.load_state_dict({"weight": norm.weight[known], "bias": norm.bias[known]})

    def forward(self, features: Tensor) -> PixelOutputs:
        """features: (B, F, h, w) -> maps (B, C, h, w) float32, and the embedding (B, D, h, w)."""
        projected = self.project(features).float()
        batch, _, height, width = projected.shape
        pixels = projected.permute(0, 2, 3, 1).reshape(-1, self.dim)
        pixels = F.normalize(self.feature_norm(pixels), dim=1)
        density = self.densities.class_log_density(pixels).contiguous()
        logits, log_density, embedding = (
            values.view(batch, height, width, -1).permute(0, 3, 1, 2)
            for values in (self._all_classes(self.class_norm(density)), self._all_classes(density), pixels)
        )
        logits = logits if self.guide is None else self.guide(features).logits
        return PixelOutputs(logits, log_density, embedding)

    def _all_classes(self, of_known: Tensor) -> Tensor:
        if len(self.known) == self.classes:
            return of_known
        index = self.known.expand(of_known.shape[0], -1)
        return of_known.new_full((of_known.shape[0], self.classes), EXCLUDED).scatter(1, index, of_known)

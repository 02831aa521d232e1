"""What all decoders have: features that they choose, and an auxiliary head with a loss of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..classifiers.prototype import CosinePrototypes
from ..losses import pixel_cross_entropy
from ..registry import DECODER_REGISTRY, look_up, usable_norm
from .blocks import conv_norm_relu, convolve_parts


class Decoded(NamedTuple):
    """Pixel features, and the losses of the decoder's own auxiliary heads.

    features: (B, F, h, w). losses: named, weighted scalars; empty at inference and for decoders without
    auxiliary heads.
    """

    features: Tensor
    losses: dict[str, Tensor]


class AuxiliaryHead(nn.Module):
    """A small classifier on an earlier feature, for its loss (PSPNet, section 3.3): convolution, norm, ReLU,
    channel dropout, and a 1x1 convolution or cosine prototypes (as PAnS has it) to logits.

    Args:
        in_channels: of the features together. num_classes: C.
        features: names of the backbone features that it reads; several are put together at the first one's
            resolution.
        channels: of the convolution, 3x3 over one feature and 1x1 over several (as OCRNet's over HRNet).
        weight: of its loss.
        cosine: prototypes instead of the 1x1 convolution.
        norm: a Detectron2 norm name.
        loss_average: see :func:`pixel_cross_entropy`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        features: Sequence[str],
        channels: int = 256,
        weight: float = 0.4,
        cosine: bool = False,
        norm: str = "BN",
        loss_average: str = "valid",
    ) -> None:
        super().__init__()
        self.features = list(features)
        self.weight = weight
        self.loss_average = loss_average
        self.conv = conv_norm_relu(in_channels, channels, 3 if len(self.features) == 1 else 1, norm)
        self.dropout = nn.Dropout2d(0.1)
        if cosine:
            self.predictor: nn.Module = CosinePrototypes(channels, num_classes)
        else:
            self.predictor = linear = nn.Conv2d(channels, num_classes, kernel_size=1)
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.zeros_(linear.bias)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, shapes: dict[str, ShapeSpec], features: Sequence[str]
    ) -> AuxiliaryHead:
        """The head on the named features of a backbone. ValueError: one that the backbone does not give."""
        keys = cfg.MODEL.DECODER
        if not set(features) <= set(shapes):
            raise ValueError(
                f"MODEL.DECODER.AUX_FEATURE: expected one of the backbone's features "
                f"({', '.join(shapes)}), found {keys.AUX_FEATURE!r}"
            )
        return cls(
            sum(shapes[name].channels for name in features),
            cfg.MODEL.CLASSIFIER.NUM_CLASSES,
            features=features,
            channels=keys.AUX_CHANNELS,
            cosine=cfg.MODEL.CLASSIFIER.NAME == "prototype",
            norm=usable_norm(keys.NORM, cfg.MODEL.DEVICE),
            loss_average=cfg.MODEL.CLASSIFIER.LOSS_AVERAGE,
        )

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """features: {name: (B, F, h, w)} -> logits (B, C, h, w) of its own (first) feature's size."""
        used = [features[name] for name in self.features]
        convolved = convolve_parts(self.conv, used, used[0].shape[-2:])
        return self.predictor(self.dropout(convolved))

    def losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """logits: (B, C, h, w); labels: (B, H, W) int64, 255 ignored -> the weighted loss."""
        loss = pixel_cross_entropy(logits, labels, average=self.loss_average)
        return {"loss_aux": self.weight * loss}


class Decoder(nn.Module):
    """Base of the decoders. A subclass says how many features it takes, and overrides :meth:`build` and
    :meth:`decode`.

    Args:
        input_shape: the features to use, by name, from high to low resolution.
        channels: of the output, and of what the decoder makes of each feature.
        norm: a Detectron2 norm name.
        auxiliary: head with a loss of its own, or None.
        options: of :meth:`build`.

    Attributes:
        in_features: names of the features. out_channels: of the output.
        out_stride: of the output, the smallest of the features'.
    """

    # How many features it takes.
    at_least = 1
    at_most: int | None = None

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        channels: int = 256,
        norm: str = "BN",
        auxiliary: AuxiliaryHead | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_features = list(input_shape)
        self.out_channels = channels
        self.out_stride = min(shape.stride for shape in input_shape.values())
        self.auxiliary = auxiliary
        self.build(input_shape, channels, norm, **options)

    def build(self, shapes: dict[str, ShapeSpec], channels: int, norm: str) -> None:
        """Make the layers."""
        raise NotImplementedError

    @staticmethod
    def default(names: list[str]) -> list[str]:
        """The features that it takes by itself of a backbone's, which come from high to low resolution."""
        return names

    @staticmethod
    def default_auxiliary(names: list[str], chosen: list[str]) -> list[str]:
        """The features of the auxiliary head where ``MODEL.DECODER.AUX_FEATURE`` is ""; empty: no head.

        Args:
            names: all of the backbone's features. chosen: those that the decoder takes.
        """
        return []

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """The arguments that all decoders have.

        Raises:
            ValueError: features that the backbone does not give, or more or fewer than the decoder takes.
        """
        keys = cfg.MODEL.DECODER
        chosen = list(dict.fromkeys(keys.IN_FEATURES or cls.default(list(input_shape))))
        most = len(chosen) if cls.at_most is None else cls.at_most
        if not set(chosen) <= set(input_shape) or not cls.at_least <= len(chosen) <= most:
            count = f"exactly {cls.at_least}" if cls.at_least == cls.at_most else f"at least {cls.at_least}"
            raise ValueError(
                f"MODEL.DECODER.IN_FEATURES: expected {count} of the backbone's features "
                f"({', '.join(input_shape)}), found {chosen}"
            )
        chosen.sort(key=lambda name: input_shape[name].stride)
        auxiliary = [keys.AUX_FEATURE] if keys.AUX_FEATURE else cls.default_auxiliary([*input_shape], chosen)
        return {
            "input_shape": {name: input_shape[name] for name in chosen},
            "channels": keys.CHANNELS,
            "norm": usable_norm(keys.NORM, cfg.MODEL.DEVICE),
            "auxiliary": AuxiliaryHead.from_config(cfg, input_shape, auxiliary) if auxiliary else None,
        }

    def forward(self, features: dict[str, Tensor], labels: Tensor | None = None) -> Decoded:
        """Pixel features of a backbone's features, and losses where there are labels.

        Args:
            features: {name: (B, F, h, w)}. labels: (B, H, W) int64, 255 ignored, while training.
        """
        decoded = self.decode(*(features[name] for name in self.in_features))
        if self.auxiliary is None or labels is None:
            return Decoded(decoded, {})
        return Decoded(decoded, self.auxiliary.losses(self.auxiliary(features), labels))

    def decode(self, *features: Tensor) -> Tensor:
        """features: (B, F, h, w), from high to low resolution -> (B, out_channels, h, w) at out_stride."""
        raise NotImplementedError


def build_decoder(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> Decoder:
    """The decoder that ``MODEL.DECODER.NAME`` names, on a backbone's ``output_shape()``.

    Raises:
        ValueError: an unknown name, or keys that do not fit it.
    """
    keys = cfg.MODEL.DECODER
    try:
        return look_up(DECODER_REGISTRY, keys.NAME, "MODEL.DECODER.NAME")(cfg, input_shape)
    except ValueError as error:
        if "num_groups" in str(error):
            raise ValueError(f"MODEL.DECODER.NORM: {keys.NAME} cannot have {keys.NORM!r}: {error}") from error
        raise

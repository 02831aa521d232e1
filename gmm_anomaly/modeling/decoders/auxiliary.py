"""The auxiliary head: a small classifier on an earlier feature, for its loss (PSPNet, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..cosine import CosinePrototypes
from ..losses import pixel_cross_entropy
from ..norm import usable_norm
from .blocks import conv_norm_relu, convolve_parts


class AuxiliaryHead(nn.Module):
    """Convolution, norm, ReLU, channel dropout, and a 1x1 convolution or cosine prototypes to logits.

    Args:
        in_channels: of the features together. num_classes: C.
        features: names of the backbone features that it reads; several are put together at the first one's
            resolution.
        channels, kernel_size: of the convolution.
        weight: of its loss.
        dropout: rate.
        classifier: "linear", or "cosine" (as PAnS has it).
        norm: a Detectron2 norm name.
        loss_average: see :func:`pixel_cross_entropy`.

    Raises:
        ValueError: unknown classifier.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        features: Sequence[str],
        channels: int = 256,
        kernel_size: int = 3,
        weight: float = 0.4,
        dropout: float = 0.1,
        classifier: str = "linear",
        norm: str = "BN",
        loss_average: str = "valid",
    ) -> None:
        super().__init__()
        self.features = list(features)
        self.weight = weight
        self.loss_average = loss_average
        self.conv = conv_norm_relu(in_channels, channels, kernel_size, norm)
        self.dropout = nn.Dropout2d(dropout)
        if classifier == "linear":
            self.predictor = nn.Conv2d(channels, num_classes, kernel_size=1)
            nn.init.normal_(self.predictor.weight, std=0.01)
            nn.init.zeros_(self.predictor.bias)
        elif classifier == "cosine":
            self.predictor = CosinePrototypes(channels, num_classes)
        else:
            raise ValueError(
                f'MODEL.DECODER.AUX_CLASSIFIER: expected "linear" or "cosine", found {classifier!r}'
            )

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], *, default: Sequence[str] = ()
    ) -> AuxiliaryHead | None:
        """The head on ``MODEL.DECODER.AUX_FEATURE``, else on ``default``; None if both are empty.

        Raises:
            ValueError: a feature that the backbone does not give, or an even kernel.
        """
        keys = cfg.MODEL.DECODER
        features = [keys.AUX_FEATURE] if keys.AUX_FEATURE else list(default)
        if not features:
            return None
        if keys.AUX_KERNEL < 1 or keys.AUX_KERNEL % 2 == 0:
            raise ValueError(f"MODEL.DECODER.AUX_KERNEL: expected an odd size, found {keys.AUX_KERNEL}")
        if not set(features) <= set(input_shape):
            raise ValueError(
                f"MODEL.DECODER.AUX_FEATURE: expected one of the backbone's features "
                f"({', '.join(input_shape)}), found {keys.AUX_FEATURE!r}"
            )
        return cls(
            sum(input_shape[name].channels for name in features),
            cfg.MODEL.CLASSIFIER.NUM_CLASSES,
            features=features,
            channels=keys.AUX_CHANNELS,
            kernel_size=keys.AUX_KERNEL,
            weight=keys.AUX_WEIGHT,
            dropout=keys.AUX_DROPOUT,
            classifier=keys.AUX_CLASSIFIER,
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


def auxiliary_losses(
    head: AuxiliaryHead | None, features: dict[str, Tensor], labels: Tensor | None
) -> dict[str, Tensor]:
    """The head's losses; none, and no computation, without a head or labels."""
    if head is None or labels is None:
        return {}
    return head.losses(head(features), labels)

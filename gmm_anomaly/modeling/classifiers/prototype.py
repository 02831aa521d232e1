"""The cosine classifier of PAnS (Fontanel et al., CVPR workshops 2021): nearest class prototype by angle.

Prototypes are learned with the features, or are running means of the classes' pixel directions.
"""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from gmm_anomaly.gmm import collectives
from gmm_anomaly.scores import PixelOutputs
from gmm_anomaly.scores.pixels import COSINE_SCALE

from ..losses import pixel_cross_entropy, resized_labels
from ..registry import CLASSIFIER_REGISTRY
from .softmax import PixelClassifier


def cosine_logits(features: Tensor, prototypes: Tensor) -> Tensor:
    """``10 * cos(feature, prototype)`` (PAnS; Fontanel et al., CVPR workshops 2021), in float32 or float64.

    The unit features never exist as a map: the dot products are divided by the features' lengths.

    Args:
        features: (B, F, h, w) floating point. A zero vector has cosine 0 with everything, and no gradient.
        prototypes: (C, F, 1, 1), of any length.

    Returns:
        (B, C, h, w) in [-10, 10], never in half precision: autocast is switched off.
    """
    with torch.autocast(device_type=features.device.type, enabled=False):
        if features.dtype not in (torch.float32, torch.float64):
            features = features.float()
        # Shorter vectors have no direction.
        length = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        inverse = torch.where(length > 1e-12, 1 / length.clamp(min=1e-12), 0.0)
        directions = F.normalize(prototypes, dim=1).to(features.dtype)
        return COSINE_SCALE * F.conv2d(features, directions) * inverse


class CosinePrototypes(nn.Module):
    """Learned prototypes, one a class: :func:`cosine_logits` as a layer.

    Args:
        in_channels: F. num_classes: C.

    Attributes:
        weight: (C, F, 1, 1), the prototypes; only their directions matter.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, in_channels, 1, 1))
        # As a 1x1 convolution without bias starts.
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, F, h, w) -> logits (B, C, h, w)."""
        return cosine_logits(features, self.weight)


class UnfittedPrototypesError(RuntimeError):
    """Running-mean prototypes that have seen no pixel were asked for logits outside training."""


class RunningMeanPrototypes(nn.Module):
    """One prototype a class: the running mean of its labelled pixels' directions, of unit length.

    ``record`` sums up a batch, ``update`` moves the prototypes: a forward pass never changes them. With
    several ranks ``update`` and ``broadcast`` are collective, and only sums and counts travel.

    Args:
        in_channels: F. num_classes: C.
        momentum: ``prototype <- m * prototype + (1 - m) * mean direction``, normalised again. The first mean
            direction of a class becomes its prototype as it is.

    Attributes:
        weight: (C, F, 1, 1) float32, unit vectors; zero where a class has no prototype yet.
        fitted: (C,) bool, the classes that have one.
    """

    weight: Tensor
    fitted: Tensor
    total: Tensor

    def __init__(self, in_channels: int, num_classes: int, *, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("weight", torch.zeros(num_classes, in_channels, 1, 1))
        self.register_buffer("fitted", torch.zeros(num_classes, dtype=torch.bool))
        # Recorded since the last update: sums of unit features, and the number of pixels.
        self.register_buffer("total", torch.zeros(num_classes, in_channels + 1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """features: (B, F, h, w) -> logits (B, C, h, w); -10 for a class without a prototype.

        Raises:
            UnfittedPrototypesError: outside training, when no class has a prototype.
        """
        if not self.training and not bool(self.fitted.any()):
            raise UnfittedPrototypesError(
                "the running-mean prototypes have never been fitted, so there is nothing to compare pixels "
                "with: load a checkpoint of a model trained so (MODEL.WEIGHTS, MODEL.PROTOTYPE.MOMENTUM "
                "above 0), or train first"
            )
        logits = cosine_logits(features, self.weight)
        return logits.masked_fill(~self.fitted[:, None, None], -COSINE_SCALE)

    @torch.no_grad()
    def record(self, features: Tensor, labels: Tensor) -> None:
        """Sum up the directions of the labelled pixels for the next ``update``.

        Args:
            features: (B, F, h, w) floating point; a pixel with NaN or infinity in it is ignored.
            labels: (B, H, W) integer, taken at the features' size by nearest sampling; anything outside
                ``0 .. C-1`` is ignored.
        """
        labels = resized_labels(labels, features.shape[-2:]).flatten()
        pixels = features.detach().float().permute(0, 2, 3, 1).flatten(0, 2)
        known = (labels >= 0) & (labels < len(self.total)) & pixels.isfinite().all(dim=1)
        # Masked, not selected: the number of labelled pixels never has to leave the device.
        entries = F.pad(F.normalize(pixels, dim=1), (0, 1), value=1.0)
        entries = torch.where(known[:, None], entries, 0.0)
        self.total.index_add_(0, torch.where(known, labels, 0), entries)

    def discard_recorded(self) -> None:
        """Forget what was recorded since the last ``update``: the batches of a step that is left out."""
        self.total.zero_()

    @torch.no_grad()
    def update(self) -> None:
        """Move the prototypes of the classes recorded on any rank since the last update."""
        total = collectives.sum_over_ranks(self.total)
        moved = total[:, -1] > 0
        direction = F.normalize(total[:, :-1], dim=1)[..., None, None]
        blended = self.momentum * self.weight + (1 - self.momentum) * direction
        moving = F.normalize(torch.where(self.fitted[:, None, None, None], blended, direction), dim=1)
        self.weight.copy_(torch.where(moved[:, None, None, None], moving, self.weight))
        self.fitted |= moved
        self.total.zero_()

    @torch.no_grad()
    def broadcast(self) -> None:
        """Give every rank the prototypes of rank 0; call it once the model is built, wrapped and loaded."""
        collectives.broadcast_from_first(self.weight)
        collectives.broadcast_from_first(self.fitted)
        self.total.zero_()


class PrototypeClassifier(PixelClassifier):
    """``10 * cos(feature, prototype)`` as logits; a pixel far from every prototype is anomalous.

    Args:
        predictor: the prototypes: :class:`CosinePrototypes` are learned with the features, as in PAnS;
            :class:`RunningMeanPrototypes` follow them. While training, a forward pass only *records* pixels
            in the latter; the prototype hook updates them.
        num_classes: C.
        dropout: rate of channel dropout before it.
        loss_average: see :func:`pixel_cross_entropy`.
    """

    def __init__(
        self,
        predictor: CosinePrototypes | RunningMeanPrototypes,
        num_classes: int,
        *,
        dropout: float = 0.1,
        loss_average: str = "valid",
    ) -> None:
        super().__init__(num_classes, predictor.weight.shape[1])
        self.dropout = nn.Dropout2d(dropout)
        self.predictor = predictor
        self.loss_average = loss_average

    def forward(self, features: Tensor) -> PixelOutputs:
        return PixelOutputs(self.predictor(self.dropout(features)), embedding=features)

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if isinstance(self.predictor, RunningMeanPrototypes):
            # Without dropout: the means of what the prototypes are compared with at inference.
            self.predictor.record(features, labels)
        return {"loss_ce": pixel_cross_entropy(self(features).logits, labels, average=self.loss_average)}


@CLASSIFIER_REGISTRY.register()
def prototype(cfg: CfgNode, in_channels: int) -> PrototypeClassifier:
    keys = cfg.MODEL.CLASSIFIER
    predictor: CosinePrototypes | RunningMeanPrototypes
    if cfg.MODEL.PROTOTYPE.MOMENTUM:
        predictor = RunningMeanPrototypes(
            in_channels, keys.NUM_CLASSES, momentum=cfg.MODEL.PROTOTYPE.MOMENTUM
        )
    else:
        predictor = CosinePrototypes(in_channels, keys.NUM_CLASSES)
    return PrototypeClassifier(
        predictor, keys.NUM_CLASSES, dropout=keys.DROPOUT, loss_average=keys.LOSS_AVERAGE
    )

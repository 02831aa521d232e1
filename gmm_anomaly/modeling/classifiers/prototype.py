"""The cosine classifier of PAnS (Fontanel et al., CVPR workshops 2021): nearest class prototype by angle."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor, nn

from ..cosine import COSINE_SCALE, CosinePrototypes
from ..losses import pixel_cross_entropy
from ..registry import CLASSIFIER_REGISTRY
from .base import Classified, PixelClassifier
from .running_prototypes import RunningMeanPrototypes


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

    def forward(self, features: Tensor) -> Classified:
        return Classified(self.predictor(self.dropout(features)), None, features)

    def losses(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if isinstance(self.predictor, RunningMeanPrototypes):
            # Without dropout: the means of what the prototypes are compared with at inference.
            self.predictor.record(features, labels)
        return {"loss_ce": pixel_cross_entropy(self(features).logits, labels, average=self.loss_average)}

    def anomaly_score(self, classified: Classified) -> Tensor:
        """``(1 - max_c cos) / 2``, in [0, 1]."""
        return 1 - (classified.logits.amax(1) + COSINE_SCALE) / (2 * COSINE_SCALE)


@CLASSIFIER_REGISTRY.register()
def prototype(cfg: CfgNode, in_channels: int) -> PrototypeClassifier:
    keys = cfg.MODEL.CLASSIFIER
    predictor: CosinePrototypes | RunningMeanPrototypes
    if cfg.MODEL.PROTOTYPE.RUNNING_MEAN:
        predictor = RunningMeanPrototypes(
            in_channels, keys.NUM_CLASSES, momentum=cfg.MODEL.PROTOTYPE.MOMENTUM
        )
    else:
        predictor = CosinePrototypes(in_channels, keys.NUM_CLASSES)
    return PrototypeClassifier(
        predictor, keys.NUM_CLASSES, dropout=keys.DROPOUT, loss_average=keys.LOSS_AVERAGE
    )

"""The schedule of the contrast with vectors drawn from the mixtures."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from gmm_anomaly.modeling.sampled_contrast import SampledContrast


class SampledContrastHook(HookBase):
    """Switches the loss on every few iterations, with a weight that grows linearly from ``start`` on.

    Args:
        contrast: the loss; its ``factor`` is set before each step.
        start: first iteration with the loss.
        ramp: iterations over which its weight grows; 0: it is whole at once.
        interval: iterations from one with the loss to the next.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self, contrast: SampledContrast, *, start: int = 1500, ramp: int = 5000, interval: int = 5
    ) -> None:
        for key, value, least in (("START", start, 0), ("RAMP", ramp, 0), ("INTERVAL", interval, 1)):
            if value < least:
                raise ValueError(
                    f"MODEL.GMM.SAMPLED_CONTRAST.{key}: expected at least {least}, found {value}"
                )
        self.contrast = contrast
        self.start = start
        self.ramp = ramp
        self.interval = interval

    def before_step(self) -> None:
        self.contrast.factor = self.factor(self.trainer.iter)

    def factor(self, iteration: int) -> float:
        """Of the loss's weight, 0 to 1."""
        since = iteration - self.start
        if since < 0 or since % self.interval:
            return 0.0
        return min((since + 1) / (self.ramp + 1), 1.0)


def sampled_contrast_hooks(cfg: CfgNode, model: nn.Module) -> list[HookBase]:
    """The hook of the model's classifier, if that contrasts with drawn vectors; else none."""
    contrast = getattr(getattr(model, "classifier", None), "sampled_contrast", None)
    if contrast is None:
        return []
    keys = cfg.MODEL.GMM.SAMPLED_CONTRAST
    return [SampledContrastHook(contrast, start=keys.START, ramp=keys.RAMP, interval=keys.INTERVAL)]

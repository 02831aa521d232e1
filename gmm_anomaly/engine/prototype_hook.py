"""Running-mean prototypes, between the optimiser's steps."""

from __future__ import annotations

from detectron2.engine import HookBase
from torch import nn

from gmm_anomaly.modeling.classifiers import RunningMeanPrototypes


class PrototypeHook(HookBase):
    """Moves the prototypes by what the forward pass recorded, after each step.

    Args:
        prototypes: the classifier's prototypes.
    """

    def __init__(self, prototypes: RunningMeanPrototypes) -> None:
        self.prototypes = prototypes

    def before_train(self) -> None:
        self.prototypes.broadcast()

    def after_step(self) -> None:
        self.prototypes.update()


def prototype_hooks(model: nn.Module) -> list[HookBase]:
    """The hooks of all running-mean prototypes in a model; none for other classifiers."""
    return [PrototypeHook(module) for module in model.modules() if isinstance(module, RunningMeanPrototypes)]

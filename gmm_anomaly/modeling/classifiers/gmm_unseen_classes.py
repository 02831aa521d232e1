"""What inference does with classes whose mixture was never fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from gmm_anomaly.gmm import UnfittedMixtureError

RULES = ("refuse", "exclude")
# So many classes are named in an error.
LISTED = 10


def check_rule(rule: str) -> str:
    if rule not in RULES:
        raise ValueError(f"MODEL.GMM.UNSEEN_CLASSES: expected one of {', '.join(RULES)}, found {rule!r}")
    return rule


def refuse_unseen(known: Tensor, class_names: Sequence[str] | None) -> None:
    """Raise UnfittedMixtureError, with the classes' names, where some classes were fitted and others not.

    Args:
        known: (C,) bool, classes that were fitted. Without any, the bank itself refuses.
        class_names: of the C classes; None: they are called by their indices.
    """
    if bool(known.all()) or not bool(known.any()):
        return
    unseen = (~known).nonzero()[:, 0].tolist()
    names = [class_names[index] if class_names else str(index) for index in unseen[:LISTED]]
    if len(unseen) > LISTED:
        names.append(f"and {len(unseen) - LISTED} more")
    raise UnfittedMixtureError(
        f"the mixtures of {len(unseen)} of {len(known)} classes were never fitted, for too few of their "
        f"pixels were seen ({', '.join(names)}): train longer or with images that have them, lower "
        "MODEL.GMM.WARM_START_FEATURES, or leave them out of predictions and scores with "
        "MODEL.GMM.UNSEEN_CLASSES exclude"
    )


def training_class_names(cfg: CfgNode) -> list[str] | None:
    """The classes of the training set, where it is registered and has as many as the model."""
    name = cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else None
    names = MetadataCatalog.get(name).get("stuff_classes") if name in MetadataCatalog else None
    return list(names) if names and len(names) == cfg.MODEL.CLASSIFIER.NUM_CLASSES else None


@contextmanager
def excluding_unseen_classes(model: nn.Module) -> Iterator[None]:
    """Inside, inference leaves out classes that were never fitted, whatever MODEL.GMM.UNSEEN_CLASSES says."""
    found = [module for module in model.modules() if hasattr(module, "unseen_classes")]
    rules = [module.unseen_classes for module in found]
    try:
        for module in found:
            module.unseen_classes = "exclude"
        yield
    finally:
        for module, rule in zip(found, rules, strict=True):
            module.unseen_classes = rule

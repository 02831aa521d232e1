"""Names of MMSegmentation's segmentors, the released GMMSeg's among them -> names in this project's."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.modeling import AnomalySegmentor, decoders
from gmm_anomaly.modeling.backbones.weight_names import own_names
from gmm_anomaly.modeling.classifiers.gmm import GMMClassifier
from gmm_anomaly.modeling.classifiers.softmax import SoftmaxClassifier

BANK = "classifier.bank."
# What the tensors of MMSegmentation's segmentors begin with.
PARTS = ("backbone.", "decode_head.", "auxiliary_head.")
# Heads in sequence (OCRNet): the first one is the auxiliary head of other decoders.
CASCADE = {"decode_head.0.": "auxiliary_head.", "decode_head.1.": "decode_head."}
# The released head's mixtures: means and standard deviations (C, M, D), stored features (C * M, D, K), next
# slots (C * M,).
MIXTURE = ("means", "diagonal", "queue", "queue_ptr")
# Names of MMSegmentation's heads, without MMCV's ConvModule -> names in the decoder and the classifier.
Table = tuple[tuple[str, str], ...]
PYRAMID: Table = (
    (r"decode_head\.psp_modules\.(\d)\.1", r"pyramid.branches.\1.conv"),
    (r"decode_head\.bottleneck", "pyramid.bottleneck"),
)
DECODERS: dict[type[nn.Module], Table] = {
    decoders.SeparableDeepLabV3PlusDecoder: (
        (r"decode_head\.image_pool\.1", "image_pool.conv"),
        (r"decode_head\.aspp_modules\.0", "branches.0"),
        (r"decode_head\.aspp_modules\.([1-9])\.(depthwise|pointwise)_conv", r"branches.\1.\2"),
        (r"decode_head\.bottleneck", "bottleneck"),
        (r"decode_head\.c1_bottleneck", "project"),
        (r"decode_head\.sep_bottleneck\.(\d)\.(depthwise|pointwise)_conv", r"refine.\1.\2"),
    ),
    decoders.OCRNetDecoder: (
        (r"decode_head\.bottleneck", "bottleneck"),
        (r"decode_head\.object_context_block\.(query|key)_project\.(\d)", r"attention.\1.\2"),
        (r"decode_head\.object_context_block\.(value|out)_project", r"attention.\1"),
        (r"decode_head\.object_context_block\.bottleneck", "attention.fuse"),
    ),
    decoders.UPerNetDecoder: (
        *PYRAMID,
        (r"decode_head\.lateral_convs\.(\d)", r"lateral.\1"),
        (r"decode_head\.fpn_convs\.(\d)", r"smooth.\1"),
        (r"decode_head\.fpn_bottleneck", "fuse"),
    ),
    decoders.SegFormerDecoder: (
        (r"decode_head\.convs\.(\d)", r"project.\1"),
        (r"decode_head\.fusion_conv", "fuse"),
    ),
    decoders.PSPDecoder: PYRAMID,
}
AUXILIARY: Table = (
    (r"auxiliary_head\.convs\.0", "auxiliary.conv"),
    (r"auxiliary_head\.conv_seg", "auxiliary.predictor"),
)
# The released head's projection is a ConvModule; here a convolution and a norm in a Sequential.
CLASSIFIERS: dict[type[nn.Module], Table] = {
    SoftmaxClassifier: ((r"decode_head\.conv_seg", "predictor"),),
    GMMClassifier: (
        (r"decode_head\.projection\.norm", "project.2"),
        (r"decode_head\.projection", "project.1"),
        (r"decode_head\.feat_norm", "feature_norm"),
        (r"decode_head\.mask_norm", "class_norm"),
    ),
}


def renamed(model: AnomalySegmentor, source: dict[str, Tensor]) -> dict[str, Tensor]:
    """All tensors, under the model's names where they have a translation."""
    if not any(name.startswith(PARTS) for name in source):
        source = {f"backbone.{name}": value for name, value in source.items()}
    start = "backbone."
    backbone = {name[len(start) :]: value for name, value in source.items() if name.startswith(start)}
    found = {start + name: value for name, value in own_names(model.backbone, backbone).items()}
    heads = {_plain(name, source): value for name, value in source.items() if not name.startswith(start)}
    if not heads:
        return found
    tables = (
        ("decoder.", AUXILIARY + _table(DECODERS, model.decoder, "MODEL.DECODER.NAME")),
        ("classifier.", _table(CLASSIFIERS, model.classifier, "MODEL.CLASSIFIER.NAME")),
    )
    mixture = {part: heads[f"decode_head.{part}"] for part in MIXTURE if f"decode_head.{part}" in heads}
    if isinstance(model.classifier, GMMClassifier) and len(mixture) == len(MIXTURE):
        for part in MIXTURE:
            del heads[f"decode_head.{part}"]
        tensors = mixture_tensors(**mixture, bank=model.classifier.bank)
        found |= {BANK + name: value for name, value in tensors.items()}
    for name, value in heads.items():
        new = (prefix + ours for prefix, table in tables if (ours := _by_table(name, table)))
        found[next(new, name)] = value
    return found


def _table(tables: dict[type[nn.Module], Table], module: nn.Module, key: str) -> Table:
    """ValueError: a module that MMSegmentation does not have."""
    if type(module) not in tables:
        known = ", ".join(kind.__name__ for kind in tables)
        raise ValueError(f"{key}: checkpoints can be converted for {known}, found {type(module).__name__}")
    return tables[type(module)]


def _by_table(name: str, table: Table) -> str | None:
    """The new name by the first line of the table that fits, or None."""
    for theirs, ours in table:
        if match := re.match(rf"{theirs}(?=\.)", name):
            return match.expand(ours) + name[match.end() :]
    return None


def _plain(name: str, all_names: Iterable[str]) -> str:
    """A head's name without MMCV's ConvModule (``x.conv.weight`` is ``x.weight``, ``x.bn`` is ``x.norm``)
    and, in a cascade, with the parts' names of a single head."""
    if any(other.startswith("decode_head.0.") for other in all_names):
        for numbered, single in CASCADE.items():
            if name.startswith(numbered):
                name = single + name.removeprefix(numbered)
    return re.sub(r"\.conv\.(weight|bias)$", r".\1", name.replace(".bn.", ".norm."))


def mixture_tensors(
    means: Tensor, diagonal: Tensor, queue: Tensor, queue_ptr: Tensor, bank: GaussianMixtureBank
) -> dict[str, Tensor]:
    """The tensors of ``bank.state_dict()`` in the released head's state, its memory full.

    One class at a time: the queue of the paper's size on ADE20K is 10 GB.

    Args:
        means, diagonal, queue, queue_ptr: see :meth:`GaussianMixtureBank.from_reference_state`.
        bank: what it is for; says whether the stored features are kept, and of what type they are.

    Raises:
        ValueError: shapes that do not fit each other, or stored features to be kept that are more or fewer
            than the memory has slots.
    """
    classes, components = means.shape[:2]
    slots, memory = queue.shape[-1], bank.memory
    if not len(queue) == len(queue_ptr) == classes * components:
        raise ValueError(
            f"INPUT: expected queue and queue_ptr of {classes} x {components} components as means has them, "
            f"found {len(queue)} and {len(queue_ptr)}"
        )
    if memory.save_ring and slots != memory.slots:
        raise ValueError(
            f"MODEL.GMM.MEMORY_SIZE: the checkpoint's memory has {slots} slots, found {memory.slots}; set it "
            "to that, or MODEL.GMM.SAVE_MEMORY to False (its statistics are enough)"
        )
    states = []
    for index in range(classes):
        own, rings = slice(index, index + 1), slice(index * components, (index + 1) * components)
        one = GaussianMixtureBank.from_reference_state(
            means[own].float(),
            diagonal[own].float(),
            queue[rings],
            queue_ptr[rings],
            samples_per_update=1,
            memory_dtype=memory.ring.dtype,
            save_memory=memory.save_ring,
        )
        states.append(one.state_dict())
    tensors = {name: torch.cat([state[name] for state in states]) for name in states[0]}
    # A class that has started collects nothing for its warm start.
    waiting = {name: value for name, value in bank.state_dict().items() if name.startswith("warm_start.")}
    return tensors | {name: torch.zeros_like(value) for name, value in waiting.items()}

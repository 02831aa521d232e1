"""Checkpoints of MMSegmentation, the released GMMSeg's among them, and files of a backbone alone, converted
to this project's segmentors (``gmm-anomaly convert``)."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.backbone import ResNet
from tabulate import tabulate
from torch import Tensor, nn

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.modeling import AnomalySegmentor
from gmm_anomaly.modeling.backbones.weight_names import COUNTER
from gmm_anomaly.modeling.backbones.weights import load_weight_file, tensors_of
from gmm_anomaly.modeling.classifiers.gmm import GMMClassifier

from .belonging import BELONGS_TO, belongings
from .weight_names import renamed

logger = logging.getLogger(__name__)

# Tensors that need no place: what is computed from the architecture, counters, and leftovers of the released
# head (its base class has a linear classifier that nothing uses).
_SPARE = re.compile(
    rf".*\.(relative_position_index|attn_mask|{COUNTER})|decode_head\.(eye_matrix|iteration_counter)"
)
_SPARE_IN_GMM = re.compile(r"decode_head\.conv_seg\.(weight|bias)")


class Conversion(NamedTuple):
    """What became of a checkpoint.

    tensors: by the model's names; only those that fit. lacking: the model's other names -> why.
    unused: names that should have a place in the model and have none, the checkpoint's or what they would be
    called here.
    """

    tensors: dict[str, Tensor]
    lacking: dict[str, str]
    unused: list[str]


def convert(model: AnomalySegmentor, source: dict[str, Tensor]) -> Conversion:
    """The tensors of ``source`` under the names of ``model``.

    Args:
        model: a segmentor of this project (backbone, decoder, classifier), on the CPU.
        source: names of MMSegmentation; or of a backbone alone, in one of the ways that
            :func:`~gmm_anomaly.modeling.backbones.weight_names.own_names` knows.

    Raises:
        ValueError: a decoder or classifier that has no counterpart there, or mixtures whose shapes contradict
            each other.
    """
    found = renamed(model, source)
    tensors, lacking = {}, {}
    for name, expected in model.state_dict().items():
        # Older files have no counters; only a cumulative average would read them.
        value = found.pop(name, torch.zeros_like(expected) if name.endswith(COUNTER) else None)
        if value is None:
            lacking[name] = "missing"
        elif value.shape != expected.shape:
            lacking[name] = f"{tuple(value.shape)} in the checkpoint, {tuple(expected.shape)} in the model"
        else:
            # Contiguous, and its own: a view would write the whole tensor that it shows a part of.
            tensors[name] = value.to(expected.dtype).clone(memory_format=torch.contiguous_format)
    has_mixtures = isinstance(model.classifier, GMMClassifier)
    unused = [
        name
        for name in found
        if not _SPARE.fullmatch(name) and not (has_mixtures and _SPARE_IN_GMM.fullmatch(name))
    ]
    return Conversion(tensors, lacking, unused)


def report(model: nn.Module, result: Conversion) -> str:
    """A table of the tensors of each part, every name that does not fit, and what a user should know."""
    rows = []
    for part in dict.fromkeys(name.partition(".")[0] for name in model.state_dict()):
        wanted, matched = (
            [value for name, value in names.items() if name.partition(".")[0] == part]
            for names in (model.state_dict(), result.tensors)
        )
        rows.append([part, len(matched), len(wanted), sum(value.numel() for value in matched)])
    lines = [tabulate(rows, ["part", "matched", "tensors", "values"], tablefmt="github", intfmt=",")]
    if result.lacking:
        lines.append(f"not filled: {len(result.lacking)}")
        lines += [f"  {name}: {reason}" for name, reason in result.lacking.items()]
    if result.unused:
        lines.append(f"unused (in the checkpoint, not in the model): {len(result.unused)}")
        lines += [f"  {name}" for name in result.unused]
    return "\n".join([*lines, *(f"note: {note}" for note in _notes(model, result))])


def _notes(model: nn.Module, result: Conversion) -> list[str]:
    notes = []
    if isinstance(model.backbone, ResNet) and any(
        getattr(stage[0], "conv2", stage[0].conv1).dilation != (1, 1) for stage in model.backbone.stages
    ):
        notes.append(
            "MMSegmentation gives the first block of a dilated stage the dilation of the stage before, "
            "Detectron2's ResNets do not: outputs will differ from the original's. For the same outputs use "
            'timm\'s ResNets (MODEL.BACKBONE.NAME build_timm_backbone, MODEL.TIMM.NAME "resnet101c", '
            "MODEL.TIMM.OUTPUT_STRIDE 8)"
        )
    if any(name.startswith("classifier.project.") for name in result.lacking):
        notes.append("the released head's projection is MODEL.GMM.PROJECTION released, or RULES released")
    if any(name.startswith("classifier.guide.") for name in result.lacking):
        notes.append(
            "the released head has no softmax classifier beside it: MODEL.GMM.WARM_START False, or "
            "--allow-missing classifier.guide."
        )
    return notes


def run(args: argparse.Namespace) -> None:
    """``gmm-anomaly convert``.

    Raises:
        ValueError: tensors of the model that the input does not fill; nothing is written.
    """
    if args.output is None:
        raise ValueError("--out: expected the checkpoint to write, found nothing")
    if args.output.exists() and args.output.samefile(args.input):
        raise ValueError(f"OUTPUT: {args.output} is INPUT itself, which would be lost; give another name")
    if "" in args.allow_missing:
        raise ValueError('--allow-missing: expected the beginning of names, found ""')
    source = tensors_of(load_weight_file(args.input, "INPUT"), args.input, "INPUT")
    cfg = _config(args.config_file, args.opts)
    model = build_model(cfg)
    result = convert(model, source)
    print(report(model, result))
    lacking = [name for name in result.lacking if not name.startswith(tuple(args.allow_missing))]
    if lacking:
        raise ValueError(
            f"{args.input} does not fill {len(lacking)} tensors of the model, nothing is written: "
            f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}. Use the config of the same "
            "architecture, or --allow-missing PREFIX for what may stay as it is initialised"
        )
    with replacing(args.output) as temporary:
        torch.save({"model": result.tensors, BELONGS_TO: belongings(cfg)}, temporary)
    print(f"written to {args.output}")


def _config(config_file: str, overrides: Sequence[str]) -> CfgNode:
    from . import build_config

    # Everything comes from the input.
    overrides = [*overrides, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.WEIGHTS", ""]
    cfg = build_config(config_file, overrides)
    if cfg.MODEL.META_ARCHITECTURE != "AnomalySegmentor":
        raise ValueError(
            "MODEL.META_ARCHITECTURE: checkpoints can be converted for AnomalySegmentor, found "
            f"{cfg.MODEL.META_ARCHITECTURE!r}"
        )
    if cfg.MODEL.CLASSIFIER.NAME == "gmm" and not cfg.MODEL.GMM.SAVE_MEMORY:
        # The memory itself is not written, and at the paper's sizes is gigabytes.
        small = ["MODEL.GMM.MEMORY_SIZE", cfg.MODEL.GMM.SAMPLES_PER_UPDATE]
        return build_config(config_file, [*overrides, *small])
    return cfg

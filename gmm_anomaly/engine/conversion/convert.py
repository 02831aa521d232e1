"""A checkpoint of another code base under the names of a model of this one."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gmm_anomaly.modeling import AnomalySegmentor
from gmm_anomaly.modeling.classifiers.gmm import GMMClassifier
from gmm_anomaly.modeling.classifiers.softmax import SoftmaxClassifier

from .backbone_names import backbone_renaming, dilates_otherwise
from .head_names import GMM, SOFTMAX, decoder_table, renamed
from .mixtures import TENSORS, mixture_tensors
from .source import is_cascade, plain_name

BANK = "classifier.bank."
COUNTER = "num_batches_tracked"
# Tensors that need no place: what is computed from the architecture, counters, and leftovers of the released
# head (its base class has a linear classifier that nothing uses).
_SPARE = re.compile(
    rf".*\.(relative_position_index|attn_mask|{COUNTER})|decode_head\.(eye_matrix|iteration_counter)"
)
_SPARE_IN_GMM = re.compile(r"decode_head\.conv_seg\.(weight|bias)")


@dataclass
class Conversion:
    """What became of a checkpoint.

    Attributes:
        tensors: by the model's names; only those that fit.
        missing: names of the model that the checkpoint does not fill.
        misshapen: name of the model -> shape in the checkpoint, shape in the model.
        unused: names of the checkpoint that have no place in the model.
        spare: names that need none.
        notes: what a user should know about the result.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    spare: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lacking(self, allowed: tuple[str, ...] = ()) -> list[str]:
        """Names of the model without a tensor that fits, but for those that begin with one of ``allowed``."""
        return [name for name in [*self.missing, *self.misshapen] if not name.startswith(allowed or ("\0",))]


def convert(model: AnomalySegmentor, source: dict[str, Tensor]) -> Conversion:
    """The tensors of ``source`` under the names of ``model``.

    Args:
        model: a segmentor of this project (backbone, decoder, classifier), on the CPU.
        source: names of MMSegmentation, from :func:`read_source`.

    Raises:
        ValueError: a decoder or classifier that has no counterpart there, mixtures whose shapes contradict
            each other, or two tensors for one place.
    """
    found = _renamed_tensors(model, source)
    result = Conversion()
    wanted = model.state_dict()
    used: set[str] = set()
    for name, expected in wanted.items():
        if name in found:
            origins, value = found[name]
            used.update(origins)
            if value.shape == expected.shape:
                # Contiguous, and its own: a view would write the whole tensor that it shows a part of.
                result.tensors[name] = value.to(expected.dtype).clone(memory_format=torch.contiguous_format)
            else:
                result.misshapen[name] = (tuple(value.shape), tuple(expected.shape))
        elif name.endswith(COUNTER):
            # Older files have no counters; only a cumulative average would read them.
            result.tensors[name] = torch.zeros_like(expected)
        else:
            result.missing.append(name)
    spare_here = _SPARE_IN_GMM if isinstance(model.classifier, GMMClassifier) else _SPARE
    cascade = is_cascade(list(source))
    for origin in source:
        if origin not in used:
            plain = plain_name(origin, cascade=cascade)
            spare = _SPARE.fullmatch(plain) or spare_here.fullmatch(plain)
            (result.spare if spare else result.unused).append(origin)
    result.notes = _notes(model, source, result)
    return result


def _renamed_tensors(
    model: AnomalySegmentor, source: dict[str, Tensor]
) -> dict[str, tuple[tuple[str, ...], Tensor]]:
    """New name -> names it comes from, and the tensor. Names nobody translates are left out."""
    heads = any(not name.startswith("backbone.") for name in source)
    decoder = decoder_table(model.decoder) if heads else ()
    classifier = _classifier_table(model.classifier) if heads else ()
    rename_backbone = backbone_renaming(model.backbone)
    cascade = is_cascade(list(source))
    found: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    mixture: dict[str, str] = {}
    for origin, value in source.items():
        name = plain_name(origin, cascade=cascade)
        pairs: list[tuple[str, Tensor]] = []
        if name.startswith("backbone."):
            pairs = [
                (f"backbone.{new}", part)
                for new, part in rename_backbone(name.removeprefix("backbone."), value)
            ]
        elif (new := renamed(name, classifier)) is not None:
            pairs = [(f"classifier.{new}", value)]
        elif (new := renamed(name, decoder)) is not None:
            pairs = [(f"decoder.{new}", value)]
        elif name.removeprefix("decode_head.") in TENSORS:
            mixture[name.removeprefix("decode_head.")] = origin
        for new, part in pairs:
            if new in found:
                raise ValueError(f"INPUT: both {found[new][0][0]} and {origin} would become {new}")
            found[new] = ((origin,), part)
    if isinstance(model.classifier, GMMClassifier) and len(mixture) == len(TENSORS):
        parts = {name: source[origin] for name, origin in mixture.items()}
        for name, value in mixture_tensors(**parts, bank=model.classifier.bank).items():
            found[BANK + name] = (tuple(mixture.values()), value)
    return found


def _classifier_table(classifier: nn.Module) -> tuple[tuple[str, str], ...]:
    if isinstance(classifier, GMMClassifier):
        return GMM
    if isinstance(classifier, SoftmaxClassifier):
        return SOFTMAX
    raise ValueError(
        'MODEL.CLASSIFIER.NAME: checkpoints can be converted for "gmm" and "softmax", found '
        f"{type(classifier).__name__}"
    )


def _notes(model: AnomalySegmentor, source: dict[str, Tensor], result: Conversion) -> list[str]:
    notes = []
    lacking = result.lacking()
    if any("decode_head." in name for name in source) and dilates_otherwise(model.backbone):
        notes.append(
            "MMSegmentation gives the first block of a dilated stage the dilation of the stage before, "
            "Detectron2's ResNets do not: outputs will differ from the original's. For the same outputs use "
            'timm\'s ResNets (MODEL.BACKBONE.NAME build_timm_backbone, MODEL.TIMM.NAME "resnet101c", '
            "MODEL.TIMM.OUTPUT_STRIDE 8)"
        )
    if any(name.startswith("classifier.project.") for name in lacking):
        notes.append("the released head's projection is MODEL.GMM.PROJECTION released")
    if any(name.startswith("classifier.guide.") for name in lacking):
        notes.append(
            "the released head has no softmax classifier beside it: MODEL.GMM.WARM_START False, or "
            "--allow-missing classifier.guide."
        )
    return notes

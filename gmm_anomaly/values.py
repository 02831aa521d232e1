"""What the values of keys may be, and which keys nothing reads under the values of others: two tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from operator import getitem
from typing import Any

import torch
from detectron2.config import CfgNode

Test = Callable[[Any], bool]


def _is_number(value: Any, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def _numbers(test: Test, values: Any, count: int | None = None, *, whole: bool = False) -> bool:
    """Whether ``test`` holds for each number of a list, of ``count`` if that is given."""
    return count in (None, len(values)) and all(_is_number(v, whole) and test(v) for v in values)


def _names(values: Any) -> bool:
    return all(isinstance(value, str) and value for value in values)


def _is_range(values: Any) -> bool:
    return len(values) == 2 and all(map(_is_number, values)) and 0 < values[0] <= values[1]


def _one_of(*known: str) -> tuple[str, Test]:
    return f"one of {', '.join(map(repr, known))}", known.__contains__


def _is_device(name: str) -> bool:
    # Without any GPU the CPU does.
    return (torch.device(name).index or 0) < (torch.cuda.device_count() or math.inf)


def _is_expectation(entry: Any) -> bool:
    return len(entry) == 4 and _names(entry[:2]) and _numbers(math.isfinite, entry[2:])


NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
RESNET = ("res2", "res3", "res4", "res5")
# What is expected, whether a value is that, and the keys: "SECTION: KEY KEY".
VALUES: tuple[tuple[str, Test, tuple[str, ...]], ...] = (
    ("1 or more", lambda x: x >= 1, (
        "MODEL.GMM: NUM_COMPONENTS EMBED_DIM MEMORY_SIZE SAMPLES_PER_UPDATE UPDATE_INTERVAL FIT_PASSES "
        "SINKHORN_ITERATIONS WARM_START_FEATURES",
        "MODEL.DECODER: CHANNELS AUX_CHANNELS", "MODEL.VIT: OUT_CHANNELS", "MODEL.FPN: OUT_CHANNELS",
        "MODEL.RESNETS: NUM_GROUPS WIDTH_PER_GROUP RES2_OUT_CHANNELS STEM_OUT_CHANNELS",
        "MODEL.FEATURE_DISTANCE: NUM_IMAGES PIXELS_PER_IMAGE", "INPUT: MAX_SIZE_TEST",
        "SOLVER: IMS_PER_BATCH MAX_ITER CHECKPOINT_PERIOD",
    )),
    ("0 or more", lambda x: x >= 0, (
        "MODEL.GMM: HEALTH_PERIOD CONTRAST_WEIGHT GUIDE_WEIGHT",
        "MODEL.GMM.SAMPLED_CONTRAST: WEIGHT START RAMP", "MODEL.FEATURE_DISTANCE: COMPONENTS",
        "INPUT: MIN_SIZE_TEST", "DATALOADER: NUM_WORKERS",
        "TEST: NUM_VISUALIZATIONS MAX_WHOLE_PIXELS",
        "SOLVER: BASE_LR BASE_LR_END BIAS_LR_FACTOR HEAD_LR_FACTOR WEIGHT_DECAY WEIGHT_DECAY_NORM GAMMA",
        "SOLVER: WARMUP_ITERS NUM_DECAYS CHECKPOINT_KEEP REFERENCE_WORLD_SIZE POLY_LR_POWER",
    )),
    ("a number above 0", lambda x: x > 0, (
        "MODEL.GMM: SINKHORN_EPSILON",
        "SOLVER.CLIP_GRADIENTS: CLIP_VALUE NORM_TYPE",
    )),
    ("a number from 0 to 1", lambda x: 0 <= x <= 1, (
        "MODEL.GMM: MOMENTUM_MEAN MOMENTUM_SCALE FEATURE_GRADIENT",
        "MODEL.GMM.SAMPLED_CONTRAST: MIN_FILL", "INPUT: COLOR_JITTER", "INPUT.OUTLIERS: SHARE BLENDING",
        "SOLVER: WARMUP_FACTOR",
    )),
    ("0 or more and below 1", lambda x: 0 <= x < 1, (
        "MODEL.CLASSIFIER: DROPOUT", "MODEL.PROTOTYPE: MOMENTUM", "SOLVER: MOMENTUM",
    )),
    ("a number below 1", lambda x: x < 1, ("MODEL.BACKBONE: DROP_PATH",)),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, ("INPUT.CROP: SINGLE_CATEGORY_MAX_AREA",)),
    ("1e-6 or more", lambda x: x >= 1e-6, ("MODEL.GMM: VARIANCE_FLOOR",)),
    ("None, or 0 or more", lambda x: x is None or _is_number(x) and x >= 0, ("SOLVER: WEIGHT_DECAY_BIAS",)),
    ("1 to 253", lambda x: 1 <= x <= 253, ("MODEL.CLASSIFIER: NUM_CLASSES",)),
    ("0 (nothing) to 5 (everything)", lambda x: 0 <= x <= 5, ("MODEL.BACKBONE: FREEZE_AT",)),
    ("8, 16 or 32", (8, 16, 32).__contains__, ("MODEL.TIMM: OUTPUT_STRIDE",)),
    ("1, 2 or 4", (1, 2, 4).__contains__, ("MODEL.RESNETS: RES4_DILATION RES5_DILATION",)),
    ("below 4294967296", lambda x: x < 2**32, (": SEED",)),
    # Lists.
    ("three finite numbers", partial(_numbers, math.isfinite, count=3), ("MODEL: PIXEL_MEAN",)),
    ("three numbers above 0", partial(_numbers, lambda x: x > 0, count=3), ("MODEL: PIXEL_STD",)),
    ("three whole numbers from 1", partial(_numbers, lambda x: x >= 1, count=3, whole=True), (
        "MODEL.DECODER: ASPP_DILATIONS", "MODEL.RESNETS: RES5_MULTI_GRID",
    )),
    ("height and width, above 0", partial(_numbers, lambda x: x > 0, count=2), ("INPUT.CROP: SIZE",)),
    ("height and width in pixels, 1 or more", partial(_numbers, lambda x: x >= 1, count=2, whole=True), (
        "TEST.SLIDING_WINDOW: SIZE STRIDE",
    )),
    ("one or more numbers above 0", lambda v: len(v) > 0 and _numbers(lambda x: x > 0, v), (
        "TEST.AUG: SCALES",
    )),
    ("0 < low <= high", _is_range, ("INPUT: SCALE_RANGE", "INPUT.OUTLIERS: HEIGHTS")),
    ("0 < highest <= lowest <= 1", lambda v: _is_range(v) and v[1] <= 1, ("INPUT.OUTLIERS: FEET",)),
    ("whole numbers, 1 <= fewest <= most", lambda v: _is_range(v) and _numbers(bool, v, whole=True), (
        "INPUT.OUTLIERS: OBJECTS",
    )),
    ("[], or a shorter and a longer side", lambda v: not v or _is_range(v), ("INPUT: SCALE_BASE",)),
    ("numbers above 0", partial(_numbers, lambda x: x > 0), ("MODEL.FEATURE_DISTANCE: WEIGHTS",)),
    ("whole numbers from 0", partial(_numbers, lambda x: x >= 0, whole=True), (
        "MODEL.MASK2FORMER: ANOMALY_QUERIES ROAD_QUERIES",
    )),
    ("whole numbers from 0 that ascend",
     lambda v: _numbers(lambda x: x >= 0, v, whole=True) and [*v] == sorted({*v}),
     ("MODEL.TIMM: OUT_INDICES", "SOLVER: STEPS")),
    ("names", _names, ("DATASETS: TRAIN", "TEST: POSTPROCESS")),
    ("names, each once", lambda v: _names(v) and len({*v}) == len(v), (
        "DATASETS: TEST", "MODEL.DECODER: IN_FEATURES", "MODEL.FEATURE_DISTANCE: FEATURES",
        "MODEL.FPN: IN_FEATURES", "TEST: SCORES",
    )),
    ("some of 'stem', 'res2', 'res3', 'res4', 'res5'", lambda v: {*v} <= {"stem", *RESNET} and len(v) > 0, (
        "MODEL.RESNETS: OUT_FEATURES",
    )),
    ("four times True or False", lambda v: len(v) == 4 and {*map(type, v)} == {bool}, (
        "MODEL.RESNETS: DEFORM_ON_PER_STAGE",
    )),
    ("lists of TASK, METRIC, number, tolerance", lambda v: all(map(_is_expectation, v)), (
        "TEST: EXPECTED_RESULTS",
    )),
    # Words.
    ("'cpu', 'cuda', or 'cuda:N' of a GPU that is there", _is_device, ("MODEL: DEVICE",)),
    ("a folder", bool, (": OUTPUT_DIR",)),
    (*_one_of(*NORMS), ("MODEL.DECODER: NORM", "MODEL.RESNETS: NORM", "MODEL.FPN: NORM")),
    (*_one_of("basic", "deeplab"), ("MODEL.RESNETS: STEM_TYPE",)),
    (*_one_of("sum", "avg"), ("MODEL.FPN: FUSE_TYPE",)),
    (*_one_of("valid", "all"), ("MODEL.CLASSIFIER: LOSS_AVERAGE",)),
    (*_one_of("ours", "released"), ("MODEL.GMM: RULES",)),
    (*_one_of("mlp", "linear", "released", "none"), ("MODEL.GMM: PROJECTION",)),
    (*_one_of("auto", "float32", "float16"), ("MODEL.GMM: MEMORY_DTYPE",)),
    (*_one_of("auto", "float16", "bfloat16"), ("SOLVER.AMP: DTYPE",)),
    (*_one_of("max", "logsumexp"), ("MODEL.GMM: REDUCTION",)),
    (*_one_of("density", "softmax"), ("MODEL.GMM: LOGITS",)),
    (*_one_of("sinkhorn", "em"), ("MODEL.GMM: ASSIGNMENT",)),
    (*_one_of("frozen", "trained"), ("MODEL.FEATURE_DISTANCE: BACKBONE",)),
    (*_one_of("density", "energy"), ("MODEL.FEATURE_DISTANCE: HYBRID_WITH",)),
    (*_one_of("RGB", "BGR"), ("INPUT: FORMAT",)),
    (*_one_of("horizontal", "vertical", "none"), ("INPUT: RANDOM_FLIP",)),
    (*_one_of("TrainingSampler", "ClassBalancedSampler"), ("DATALOADER: SAMPLER_TRAIN",)),
    (*_one_of("SGD", "ADAMW"), ("SOLVER: OPTIMIZER",)),
    (*_one_of("", "gmm", "linear"), ("MODEL.OUTLIER: NAME",)),
    (*_one_of("", "rba", "pebal"), ("MODEL.OUTLIER: LOSS",)),
    (*_one_of("WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
     ("SOLVER: LR_SCHEDULER_NAME",)),
    (*_one_of("linear", "constant"), ("SOLVER: WARMUP_METHOD",)),
    (*_one_of("value", "norm"), ("SOLVER.CLIP_GRADIENTS: CLIP_TYPE",)),
    (*_one_of("stop", "skip"), ("SOLVER: NON_FINITE",)),
    (*_one_of("tensorboard", "wandb", "mlflow"), ("SOLVER: LOGGER",)),
    (*_one_of("stop", "anomalous"), ("TEST: NON_FINITE_SCORES",)),
    (*_one_of("", "anomaly", "obstacle", "none"), ("TEST: COMPONENT_TRACK",)),
    (*_one_of("logits", "features"), ("TEST: SCORE_ON",)),
    (*_one_of("", "highest", "high", "medium"), (": FLOAT32_PRECISION",)),
)  # fmt: skip
# Infinite as a rule, or a norm.
_MAY_BE_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE",)

# Keys, or beginnings of keys, that are read only if another key has one of some values (none: any but empty).
READ_WITH: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("SOLVER.STEPS", "SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR",)),
    ("SOLVER.GAMMA", "SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR")),
    ("SOLVER.NUM_DECAYS", "SOLVER.LR_SCHEDULER_NAME", ("WarmupStepWithFixedGammaLR",)),
    ("SOLVER.BASE_LR_END", "SOLVER.LR_SCHEDULER_NAME", ("WarmupCosineLR",)),
    ("SOLVER.POLY_LR_POWER", "SOLVER.LR_SCHEDULER_NAME", ("WarmupPolyLR",)),
    ("SOLVER.MOMENTUM", "SOLVER.OPTIMIZER", ("SGD",)),
    ("SOLVER.NESTEROV", "SOLVER.OPTIMIZER", ("SGD",)),
    ("SOLVER.CLIP_GRADIENTS.CLIP_", "SOLVER.CLIP_GRADIENTS.ENABLED", (True,)),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ("norm",)),
    ("INPUT.CROP.S", "INPUT.CROP.ENABLED", (True,)),
    ("TEST.SLIDING_WINDOW.S", "TEST.SLIDING_WINDOW.ENABLED", (True,)),
    ("TEST.AUG.FLIP", "TEST.AUG.ENABLED", (True,)),
    ("TEST.AUG.SCALES", "TEST.AUG.ENABLED", (True,)),
    ("MODEL.BACKBONE.DROP_PATH", "MODEL.BACKBONE.NAME",
     ("build_timm_backbone", "build_mit_backbone", "build_vit_backbone")),
    ("MODEL.TIMM.", "MODEL.BACKBONE.NAME", ("build_timm_backbone",)),
    ("MODEL.MIT.", "MODEL.BACKBONE.NAME", ("build_mit_backbone",)),
    ("MODEL.VIT.", "MODEL.BACKBONE.NAME", ("build_vit_backbone",)),
    ("MODEL.GMM.", "MODEL.CLASSIFIER.NAME", ("gmm",)),
    ("MODEL.GMM.WARM_START_", "MODEL.GMM.WARM_START", (True,)),
    ("MODEL.GMM.GUIDE_WEIGHT", "MODEL.GMM.WARM_START", (True,)),
    ("MODEL.GMM.SINKHORN_", "MODEL.GMM.ASSIGNMENT", ("sinkhorn",)),
    ("MODEL.PROTOTYPE.", "MODEL.CLASSIFIER.NAME", ("prototype",)),
    ("MODEL.MASK2FORMER.", "MODEL.META_ARCHITECTURE", ("MaskAnomalySegmentor",)),
    *((key, "MODEL.META_ARCHITECTURE", ("AnomalySegmentor",)) for key in (
        "MODEL.DECODER.", "MODEL.CLASSIFIER.D", "MODEL.FEATURE_DISTANCE.", "MODEL.BACKBONE.FREEZE_AT",
        "MODEL.BACKBONE.DROP_PATH", "MODEL.BACKBONE.GRAD", "MODEL.CHANNELS_LAST", "TEST.MAX_WHOLE_PIXELS",
    )),
    *((f"MODEL.FEATURE_DISTANCE.{key}", "MODEL.FEATURE_DISTANCE.FEATURES", ()) for key in (
        "BACKBONE", "COMPONENTS", "HYBRID_WITH", "PIXELS_PER_IMAGE", "WEIGHTS",
    )),
    ("MODEL.GMM.SAMPLED_CONTRAST.", "MODEL.GMM.SAMPLED_CONTRAST.WEIGHT", ()),
)  # fmt: skip


def rules() -> Iterator[tuple[str, str, Test]]:
    """Each key with a rule: its name, what is expected, and whether a value is that."""
    for expected, test, groups in VALUES:
        for group in groups:
            section, _, keys = group.partition(": ")
            for key in keys.split():
                yield f"{section}.{key}".lstrip("."), expected, test


def check_sections(cfg: CfgNode, *sections: str) -> None:
    """The rules of single keys alone, for parts that are built from a config of no :func:`build_config`.

    Args:
        cfg: Detectron2's config with the project's keys.
        sections: beginnings of keys, such as "MODEL.".

    Raises:
        ValueError: names the key, what was expected and what was found.
    """
    for key, expected, test in rules():
        if key.startswith(sections):
            value = reduce(getitem, key.split("."), cfg)
            _check(key, expected, test, value)


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse what no part of the program could work with, before anything is built.

    Args:
        values: of all keys, by dotted names.

    Raises:
        ValueError: names the key, what was expected and what was found.
    """
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value) and key not in _MAY_BE_INFINITE:
            raise ValueError(f"{key}: expected a finite number, found {value!r}")
    for key, expected, test in rules():
        if key in values:
            _check(key, expected, test, values[key])
    batch, processes = values["SOLVER.IMS_PER_BATCH"], values["SOLVER.REFERENCE_WORLD_SIZE"]
    together = [
        ("INPUT.CROP.TYPE", "'absolute'",
         not values["INPUT.CROP.ENABLED"] or values["INPUT.CROP.TYPE"] == "absolute"),
        ("SOLVER.REFERENCE_WORLD_SIZE", f"a divisor of SOLVER.IMS_PER_BATCH, {batch}",
         not processes or batch % processes == 0),
        ("SOLVER.BASE_LR_END", "at most SOLVER.BASE_LR, which is above 0",
         values["SOLVER.LR_SCHEDULER_NAME"] != "WarmupCosineLR"
         or values["SOLVER.BASE_LR"] > 0 and values["SOLVER.BASE_LR_END"] <= values["SOLVER.BASE_LR"]),
        ("MODEL.DECODER.CHANNELS", "a multiple of 32, the groups of MODEL.DECODER.NORM 'GN'",
         values["MODEL.DECODER.NORM"] != "GN" or values["MODEL.DECODER.CHANNELS"] % 32 == 0),
    ]  # fmt: skip
    for key, expected, holds in together:
        if not holds:
            raise ValueError(f"{key}: expected {expected}, found {values[key]!r}")


def _check(key: str, expected: str, test: Test, value: Any) -> None:
    try:
        holds = test(value)
    except (TypeError, RuntimeError):  # of another type; no device of torch's
        holds = False
    if not holds:
        raise ValueError(f"{key}: expected {expected}, found {value!r}")


def unread(key: str, values: Mapping[str, Any]) -> str:
    """Why nothing reads a key, such as "SOLVER.OPTIMIZER is 'ADAMW'"; "" if something does."""
    for beginning, other, needed in READ_WITH:
        if key.startswith(beginning) and key != other:
            found = values[other]
            if found not in needed if needed else not found:
                return f"{other} is {found!r}"
    return ""

"""Every config of the tree reads and builds; one of each kind, made small, trains a step and predicts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.trainer import build_optimizer, build_scheduler

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.yaml")
    # Detectors are not trained: tests/engine/test_fit_detector.py.
    if path.parent.name not in ("base", "detector")
)
# Every backbone, decoder and classifier, and the options that only some configs have.
KINDS = [
    "camvid/effnetlite0_deeplabv3plus_gmm_best", "camvid/effnetlite0_deeplabv3plus_prototype",
    "camvid/effnetlite0_deeplabv3plus_softmax_best", "camvid/effnetlite0_psp_pans",
    "cityscapes/hrnet_w48_ocrnet_gmm", "cityscapes/mit_b5_segformer_softmax",
    "cityscapes/r101_deeplabv3plus_softmax", "cityscapes/r101_ocrnet_gmm",
    "cityscapes/r50_deeplabv3plus_gmm4anomaly", "cityscapes/swin_b_upernet_gmm",
    "coco_stuff10k/mit_b5_segformer_gmm_released", "streethazards/r50_psp_pans",
    "synthetic/mask2former_tiny_maskomaly",
]  # fmt: skip
NO_WEIGHTS = ["MODEL.WEIGHTS", "", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.MASK2FORMER.WEIGHTS", ""]
# The same architectures, small enough for a test.
SMALL = [
    *("MODEL.MIT.NAME", "mit_b0", "MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 4),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 16, "MODEL.DECODER.CHANNELS", 16),
    *("MODEL.DECODER.AUX_CHANNELS", 16),
    *("MODEL.GMM.EMBED_DIM", 8, "MODEL.GMM.MEMORY_SIZE", 40, "MODEL.GMM.WARM_START_FEATURES", 40),
    # One step shows a model few of its classes.
    *("MODEL.FEATURE_DISTANCE.FEATURES", [], "TEST.SCORES", ["msp"]),
]
MASKS = {
    "num_queries": 5, "encoder_layers": 1, "decoder_layers": 2, "train_num_points": 64,
    "backbone_config": {
        "model_type": "swin", "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]
    },
}  # fmt: skip
SIZE = (64, 96)
ODD = (75, 101)
# Millions of parameters: Swin's and SegFormer's papers for ADE20K's 150 classes, OCRNet's for Cityscapes.
PAPER = {
    "ade20k/swin_b_upernet_softmax.yaml": 121,
    "ade20k/mit_b5_segformer_softmax.yaml": 84.7,
    "cityscapes/hrnet_w48_ocrnet_softmax.yaml": 70.4,
}


def chain(path):
    """The files that a config is read from, itself first."""
    files = [path]
    while (base := yaml.safe_load(files[-1].read_text()).get("_BASE_")) is not None:
        files.append((files[-1].parent / base).resolve())
        assert len(files) < 10, f"{path}: endless chain"
    return files


def keys(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def built(name):
    """The whole model, without memory or numbers."""
    if "mask2former" in name:
        pytest.importorskip("transformers")
    with torch.device("meta"):
        return build_model(build_config(str(ROOT / name), [*NO_WEIGHTS, "MODEL.DEVICE", "meta"]))


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def small_config(name):
    cfg = build_config(str(ROOT / name), NO_WEIGHTS)
    overrides = [*SMALL, "MODEL.DEVICE", "cpu"]
    if cfg.MODEL.TIMM.NAME.startswith("swin"):
        overrides += ["MODEL.TIMM.NAME", "swin_tiny_patch4_window7_224"]
    if cfg.MODEL.TIMM.NAME.startswith("hrnet"):
        overrides += ["MODEL.TIMM.NAME", "hrnet_w18_small"]
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        overrides += ["TEST.SLIDING_WINDOW.SIZE", [64, 64], "TEST.SLIDING_WINDOW.STRIDE", [48, 48]]
    if cfg.TEST.AUG.ENABLED:
        overrides += ["TEST.AUG.SCALES", [0.5, 1.0]]
    cfg = build_config(str(ROOT / name), [*NO_WEIGHTS, *overrides])
    cfg.defrost()
    cfg.MODEL.MASK2FORMER.ARCHITECTURE = CfgNode(MASKS)
    cfg.freeze()
    return cfg


def images(classes, shape=SIZE):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator),
            "sem_seg": torch.randint(0, min(classes, 3), shape, generator=generator),
        }
        for _ in range(2)
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_completely(name):
    """Every key arrives, bases are at most two files away, data sets exist and schedules are whole."""
    files = chain(ROOT / name)
    assert len(files) <= 3, f"{name}: {len(files)} files deep"
    cfg = build_config(str(ROOT / name))
    own = yaml.safe_load(files[0].read_text())
    own.pop("_BASE_", None)
    for key in keys(own):
        node, given = cfg, own
        for part in key.split("."):
            node, given = node[part], given[part]
        if isinstance(given, list):
            given, node = list(given), list(node)
        if given != "SyncBN" and "." in key:
            assert node == given or float(node) == float(given), key
    training = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    assert len(training.stuff_classes) == cfg.MODEL.CLASSIFIER.NUM_CLASSES
    for tested in cfg.DATASETS.TEST:
        assert MetadataCatalog.get(tested).evaluator_type in ("closed_set", "anomaly")
    assert cfg.SOLVER.WARMUP_ITERS < cfg.SOLVER.MAX_ITER
    # Two runs never share a folder.
    assert cfg.OUTPUT_DIR == "output/" + name.removesuffix(".yaml")


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_at_the_sizes_of_the_papers(name):
    found = size(built(name)) / 1e6
    assert found == pytest.approx(PAPER[name], abs=0.6) if name in PAPER else found > 3


@pytest.mark.parametrize("name", KINDS)
def test_trains_a_step_and_predicts_at_an_odd_size(name):
    if "mask2former" in name:
        pytest.importorskip("transformers")
    cfg = small_config(f"{name}.yaml")
    classes = cfg.MODEL.CLASSIFIER.NUM_CLASSES
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_scheduler(cfg, optimizer)
    bank = getattr(model, "bank", None)
    if bank is not None:
        bank.em_attached = True
    with EventStorage():
        losses = model(images(classes))
    assert all(torch.isfinite(loss) for loss in losses.values())
    total = sum(losses.values())
    total.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained), "an unused parameter breaks DDP"
    optimizer.step()
    scheduler.step()
    if bank is not None:
        bank.update()
    model.eval()
    with torch.no_grad():
        (result,) = model([{**images(classes, ODD)[0], "height": ODD[0], "width": ODD[1]}])
    assert result["sem_seg"].shape == (classes, *ODD) and result["anomaly_score"].shape == ODD
    assert torch.isfinite(result["anomaly_score"]).all()


@pytest.mark.parametrize("name", ["r101_deeplabv3plus_gmm", "r101_ocrnet_gmm"])
def test_full_resnets_are_torchvisions(name):
    """At output stride 8 and without its classifier."""
    from torchvision.models import resnet101

    backbone = built(f"cityscapes/{name}.yaml").backbone
    with torch.device("meta"):
        theirs = resnet101()
    assert size(backbone) == size(theirs) - size(theirs.fc)
    assert backbone.output_shape()["res5"].stride == 8


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.endswith("_softmax.yaml")])
def test_twins_differ_in_the_classifier_only(name):
    twin, own = (
        build_config(str(ROOT / file), NO_WEIGHTS)
        for file in (re.sub("_softmax.yaml$", "_gmm.yaml", name), name)
    )
    differing = {key for key in keys(own) if _at(own, key) != _at(twin, key)}
    assert differing <= {"MODEL.CLASSIFIER.NAME", "TEST.SCORES", "OUTPUT_DIR"}


def _at(node, key):
    for part in key.split("."):
        node = node[part]
    return node

"""Every config of the tree builds, trains a step and predicts; small networks stand in for large ones."""

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
from gmm_anomaly.engine.optimizer import build_optimizer, build_scheduler
from gmm_anomaly.modeling import build_backbone

ROOT = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.yaml")
    # Detectors are not trained: tests/engine/test_fit_detector.py.
    if path.parent.name not in ("base", "detector")
)
NO_WEIGHTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.WEIGHTS", ""),
    *("MODEL.MASK2FORMER.WEIGHTS", ""),
]
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


def small_config(name):
    cfg = build_config(str(ROOT / name), NO_WEIGHTS)
    overrides = list(SMALL)
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


def images(classes, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator),
            "sem_seg": torch.randint(0, min(classes, 3), size, generator=generator),
        }
        for _ in range(2)
    ]


def test_every_folder_has_configs():
    assert {"ade20k", "camvid", "cityscapes", "coco_stuff10k", "streethazards", "synthetic"} <= {
        name.split("/")[0] for name in CONFIGS
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_reads_completely(name):
    """Every key arrives, bases are at most two files away, data sets exist and schedules are whole."""
    files = chain(ROOT / name)
    assert len(files) <= 3, f"{name}: {len(files)} files deep"
    cfg = build_config(str(ROOT / name), ["MODEL.DEVICE", "cpu"])
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
def test_trains_a_step_and_predicts_at_an_odd_size(name):
    if "mask2former" in name:
        pytest.importorskip("transformers")
    cfg = small_config(name)
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


@pytest.mark.parametrize("name", PAPER)
def test_full_sizes_are_those_of_the_papers(name):
    model = build_model(build_config(str(ROOT / name), NO_WEIGHTS))
    found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert found == pytest.approx(PAPER[name], abs=0.6)


@pytest.mark.parametrize(
    "name", ["cityscapes/r101_deeplabv3plus_gmm.yaml", "cityscapes/r101_ocrnet_gmm.yaml"]
)
def test_full_resnets_are_torchvisions(name):
    """At output stride 8 and without its classifier."""
    from torchvision.models import resnet101

    backbone = build_backbone(build_config(str(ROOT / name), NO_WEIGHTS))
    theirs = resnet101()
    counts = [
        sum(parameter.numel() for parameter in net.parameters()) for net in (backbone, theirs, theirs.fc)
    ]
    assert counts[0] == counts[1] - counts[2]
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

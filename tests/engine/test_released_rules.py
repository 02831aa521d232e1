"""``MODEL.GMM.RULES`` "released": a stream of the released GMMSeg head, through the bank and the hook."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine import EMHook, build_config
from gmm_anomaly.engine.trainer import build_optimizer
from gmm_anomaly.gmm import (
    GaussianMixtureBank,
    class_log_density,
    own_class_log_prob,
    sinkhorn_assign_all,
)
from gmm_anomaly.modeling.classifiers import build_classifier
from gmm_anomaly.modeling.losses import component_contrast

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "gmmseg_stream.npz")
CLASSES, COMPONENTS, DIM, SLOTS, SAMPLES, INTERVAL, STEPS, *_ = GOLDEN["cfg"].tolist()
TINY = [
    *("MODEL.GMM.RULES", "released", "MODEL.CLASSIFIER.NUM_CLASSES", CLASSES, "MODEL.GMM.EMBED_DIM", DIM),
    *("MODEL.GMM.NUM_COMPONENTS", COMPONENTS, "MODEL.GMM.MEMORY_SIZE", SLOTS, "MODEL.DEVICE", "cpu"),
    *("MODEL.GMM.SAMPLES_PER_UPDATE", SAMPLES, "MODEL.GMM.MOMENTUM_MEAN", float(GOLDEN["gamma"][0])),
    *("MODEL.GMM.CONTRAST_WEIGHT", 1.0, "DATASETS.TRAIN", (), "DATASETS.TEST", ()),
]


def golden(name: str) -> torch.Tensor:
    return torch.from_numpy(GOLDEN[name])


def through_the_bank():
    """Each step's features and labels -> the loss and where the pixels went; then the step is over."""
    bank = GaussianMixtureBank.from_reference_state(
        golden("init_means"), golden("init_scales"), golden("init_queue"), golden("init_queue_ptr"),
        samples_per_update=SAMPLES, momentum_mean=float(GOLDEN["gamma"][0]),
        initial_memory="random", update_classes="batch",
    )  # fmt: skip

    def step(k, maps, labels):
        pixels, flat = maps.permute(0, 2, 3, 1).reshape(-1, DIM), labels.flatten()
        features = F.normalize(F.layer_norm(pixels, (DIM,)), dim=1)
        log_prob = bank.log_prob(features)
        own = own_class_log_prob(log_prob, flat.clamp(max=CLASSES - 1))
        assignment, _ = sinkhorn_assign_all(own, flat, CLASSES)
        correct = F.layer_norm(class_log_density(log_prob), (CLASSES,)).argmax(1) == flat
        target = torch.where(flat == 255, -100, flat * COMPONENTS + assignment)
        bank.record(features, flat, assignment, correct)
        stored = bank._recorded[-1][2]
        bank.update() if k % INTERVAL == 0 else bank.commit()
        return component_contrast(log_prob, target), stored

    return bank, step


def through_the_hook():
    cfg = build_config("", TINY)
    classifier = build_classifier(cfg, DIM).train()
    bank, hook = classifier.bank, EMHook.from_config(cfg, classifier.bank)
    assert bank.memory.count.tolist() == [SLOTS] * CLASSES * COMPONENTS
    bank.means.copy_(golden("init_means"))
    bank.memory.fill(golden("init_queue").transpose(1, 2), golden("init_queue_ptr"))
    hook.trainer = SimpleNamespace(iter=0, max_iter=STEPS, storage=EventStorage())
    hook.before_train()
    classifier.project[0].p = 0.0

    def step(k, maps, labels):
        loss = classifier.losses(maps, labels)["loss_contrast"]
        stored = bank._recorded[-1][2]
        hook.trainer.iter = k
        hook.after_step()
        return loss, stored

    return bank, step


@pytest.mark.parametrize("way", [through_the_bank, through_the_hook])
def test_sixty_steps_are_those_of_the_released_head(way):
    bank, step = way()
    updates = GOLDEN["after_steps"].tolist()
    for k in range(STEPS):
        loss, stored = step(k, golden("base_feature")[k], golden("gt")[k].long())
        target = golden("target")[k].long()
        assert torch.equal(stored, torch.where(golden("correct")[k] & (target != 255), target, -1))
        assert torch.equal(bank.memory.pointer, golden("queue_ptr_after")[k].long())
        assert float(loss.detach()) == pytest.approx(float(GOLDEN["loss_contrast"][k]), abs=1e-4)
        if k in updates:
            expected = F.normalize(golden("means_after")[updates.index(k)], dim=-1)
            torch.testing.assert_close(bank.unit_means, expected, rtol=0, atol=1e-4)
            scales = golden("scales_after")[updates.index(k)]
            torch.testing.assert_close(bank.scales, scales, rtol=0, atol=1e-4)
    ring = bank.memory.ring[:, :SLOTS].transpose(1, 2)
    torch.testing.assert_close(ring, golden("queue_final"), rtol=0, atol=1e-4)


def test_the_memory_starts_full_of_unit_vectors_and_the_newest_batch_moves():
    bank = GaussianMixtureBank(
        3, 2, 4, 50, samples_per_update=5, initial_memory="random", update_classes="batch"
    )
    ring = bank.memory.ring[:, :50].double()
    torch.testing.assert_close(ring.norm(dim=2), torch.ones(6, 50).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(bank.memory.total_square, ring.square().sum(1))
    assert ring.mean().abs() < 0.1 and ring[0].ne(ring[1]).all()
    nothing = torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.bool)
    for label in (0, 2):
        bank.record(torch.rand(4, 4), torch.full((4,), label), *nothing)
    bank.update()
    # Not the class before, though no EM step came between; a class without a stored pixel moves too.
    assert bank.known_classes.tolist() == [False, False, True]
    with pytest.raises(ValueError, match="initial_memory: expected .*'full'"):
        GaussianMixtureBank(3, 2, 4, initial_memory="full")


def test_all_that_the_rules_set():
    mit = ["MODEL.BACKBONE.NAME", "build_mit_backbone", "MODEL.DECODER.NAME", "SegFormerDecoder"]
    cfg = build_config("", [*TINY, *mit, "MODEL.DECODER.CHANNELS", 24, "SOLVER.WEIGHT_DECAY", 0.01])
    model = build_model(cfg)
    classifier = model.classifier
    assert classifier.loss_average == "all" and not hasattr(classifier, "guide")
    assert classifier.class_norm.weight.eq(1).all() and classifier.class_norm.eps == 1e-5
    # He's normal numbers by the outputs, of a standard deviation of sqrt(2 / D).
    assert float(classifier.project[1].weight.detach().std()) == pytest.approx((2 / DIM) ** 0.5, rel=0.15)
    names = {value: name for name, value in model.named_parameters()}
    spared = [
        names[p]
        for g in build_optimizer(cfg, model).param_groups
        if not g["weight_decay"]
        for p in g["params"]
    ]
    assert "backbone.block1.0.norm1.weight" in spared and "backbone.patch_embed2.norm.bias" in spared
    assert not [name for name in spared if not name.startswith("backbone.") or "backbone.norm" in name]


@pytest.mark.parametrize("key, value", [("WARM_START", True), ("PROJECTION", "mlp"), ("ASSIGNMENT", "em")])
def test_contradictions_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"MODEL\.GMM\.{key}: MODEL\.GMM\.RULES released asks for "):
        build_config("", [*TINY, f"MODEL.GMM.{key}", value])
    resolved = build_config("", TINY)
    assert (resolved.MODEL.GMM.WARM_START, resolved.MODEL.CLASSIFIER.LOSS_AVERAGE) == (False, "all")


def test_other_programs_configs_follow_the_rules_too(caplog):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list(TINY)
    assert build_model(cfg).bank.memory.count.eq(SLOTS).all()
    assert "MODEL.GMM.RULES released sets MODEL.CLASSIFIER.LOSS_AVERAGE all" in caplog.text

"""The mixtures' health in TensorBoard: when, on which images, and what the picture shows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from gmm_anomaly.engine import Trainer, build_config
from gmm_anomaly.engine.health_hook import HealthHook, health_hooks
from gmm_anomaly.engine.labelled_embedding import labelled_embedding
from gmm_anomaly.engine.probe_images import ProbeImages, probe_images, read_reduced
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.health import pixel_health
from gmm_anomaly.modeling.classifiers import GMMClassifier

RED, GREEN, BLUE = (220, 30, 30), (20, 160, 20), (30, 60, 220)
NAMES, COLORS = ["road", "car", "sky"], [RED, GREEN, BLUE]


# The hook.


class Segmentor(nn.Module):
    """The parts of a segmentor that give an embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.bank = GaussianMixtureBank(3, 2, 8)
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.classifier = GMMClassifier(4, self.bank, projection="linear")
        self.decoder = lambda pyramid: SimpleNamespace(features=pyramid)

    def preprocess(self, items):
        return SimpleNamespace(tensor=torch.stack([item["image"].float() / 255 for item in items]))


def images(held_out: bool = True) -> ProbeImages:
    generator = torch.Generator().manual_seed(4)
    items = [
        {
            "image": torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=generator),
            # Class 2 is in no image.
            "sem_seg": torch.tensor([0, 1, 255])[torch.randint(0, 3, (16, 24), generator=generator)],
        }
        for _ in range(2)
    ]
    return ProbeImages(items, "val", held_out)


def run(hook: HealthHook, iterations: int) -> dict[int, dict[str, float]]:
    """Scalars by the iteration that wrote them, and the pictures as "pictures"."""
    written: dict[int, dict[str, float]] = {}
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, max_iter=iterations, storage=storage)
        for iteration in range(iterations):
            storage.iter = hook.trainer.iter = iteration
            hook.after_step()
            found = {name: value for name, (value, at) in storage.latest().items() if at == iteration}
            if found:
                written[iteration] = found | {"pictures": storage._vis_data[-1]}
    return written


def test_hook_writes_every_period_and_at_the_end_and_changes_nothing():
    model = Segmentor().train()
    hook = HealthHook(model, images(), period=3, names=NAMES, colors=COLORS)
    assert run(hook, 4) == {}, "nothing was fitted yet"
    model.bank.fitted[:, 0] = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    written = run(hook, 7)
    assert list(written) == [2, 5, 6] and model.training and model.backbone[1].training
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    parts = [labelled_embedding(model.eval(), item) for item in images().items]
    expected = pixel_health(model.bank, *(torch.cat(part) for part in zip(*parts, strict=True)))
    found = written[6]
    assert found["gmm/held_out_log_likelihood"] == pytest.approx(expected.log_likelihood)
    assert found["gmm/assignment_entropy"] == pytest.approx(expected.assignment_entropy)
    assert found["gmm/effective_components/car"] == pytest.approx(1.0)
    assert found["gmm/effective_components"] == pytest.approx(1.0)
    assert "gmm/effective_components/sky" not in found, "no pixel, no number"
    name, picture, iteration = found["pictures"]
    assert (name, iteration) == ("gmm/embedding", 6)
    picture = np.asarray(picture).transpose(1, 2, 0)
    for color in (RED, GREEN):
        # Dots and ellipses.
        assert (picture[:, :640] == color).all(2).sum() > 500


def test_training_images_have_another_name():
    model = Segmentor()
    model.bank.fitted.fill_(True)
    hook = HealthHook(model, images(held_out=False), period=1, names=NAMES, colors=COLORS)
    found = run(hook, 1)[0]
    assert "gmm/train_log_likelihood" in found and "gmm/held_out_log_likelihood" not in found
    with pytest.raises(ValueError, match=r"MODEL\.GMM\.HEALTH_PERIOD: expected at least 1, found -1"):
        HealthHook(model, images(), period=-1, names=NAMES, colors=COLORS)


# The images, and a whole training.


def config(tmp_path, *overrides):
    tiny = [
        "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('synthetic_street_train',)",
        "DATASETS.TEST", "('synthetic_street_anomaly', 'synthetic_street_val')",
        "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.NUM_TRAIN", 3,
        "DATASETS.SYNTHETIC.NUM_VAL", 4, "DATASETS.SYNTHETIC.NUM_ANOMALY", 1, "INPUT.CROP.ENABLED", True,
        "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[64, 64]", "MODEL.CLASSIFIER.NUM_CLASSES", 10,
        "DATALOADER.NUM_WORKERS", 0,
    ]  # fmt: skip
    return build_config("", list(map(str, [*tiny, *overrides])))


def test_images_are_those_of_the_first_closed_test_set(tmp_path):
    found = probe_images(config(tmp_path), 3)
    assert (found.dataset, found.held_out, len(found.items)) == ("synthetic_street_val", True, 3)
    assert all(item["image"].shape == (3, 64, 128) for item in found.items)
    again = probe_images(config(tmp_path), 3)
    for item, other in zip(found.items, again.items, strict=True):
        assert torch.equal(item["image"], other["image"]) and torch.equal(item["sem_seg"], other["sem_seg"])
    without = probe_images(config(tmp_path, "DATASETS.TEST", "('synthetic_street_anomaly',)"), 9)
    assert (without.dataset, without.held_out) == ("synthetic_street_train", False)
    assert len(without.items) == 3


def test_large_images_are_reduced():
    label = torch.zeros(40, 80, dtype=torch.int64)
    label[:, 40:] = 255
    image = torch.full((3, 40, 80), 7, dtype=torch.uint8)
    [item] = read_reduced(lambda record: {"image": image, "sem_seg": label}, [{}], max_pixels=800)
    assert item["image"].shape == (3, 20, 40) and item["image"].dtype == torch.uint8
    assert (item["image"] == 7).all() and torch.equal(item["sem_seg"], label[::2, ::2])


def test_keys_switch_the_hook(tmp_path):
    model = Segmentor()
    assert health_hooks(config(tmp_path, "MODEL.GMM.HEALTH_PERIOD", 0), model) == []
    assert health_hooks(config(tmp_path), nn.Identity()) == []
    [hook] = health_hooks(config(tmp_path, "MODEL.GMM.HEALTH_PERIOD", 7), model)
    assert (hook.period, len(hook.images.items), len(hook.names)) == (7, 4, 10)


def test_training_writes_health_and_counts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = config(
        tmp_path, "DATASETS.TEST", "()", "MODEL.BACKBONE.NAME", "build_timm_backbone",
        "MODEL.GMM.EMBED_DIM", 8, "MODEL.GMM.MEMORY_SIZE", 100, "MODEL.GMM.WARM_START_FEATURES", 20,
        "MODEL.DECODER.CHANNELS", 16,
        "SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.NON_FINITE", "skip",
        "SOLVER.NON_FINITE_LIMIT", 4,
    )  # fmt: skip
    trainer = Trainer(cfg)
    assert trainer._trainer.non_finite_limit == 4
    trainer.train()
    events = EventAccumulator(str(tmp_path)).Reload()
    wanted = {
        "gmm/assignment_entropy", "gmm/effective_components", "gmm/train_log_likelihood", "gmm/mean_scale",
        "gmm/memory_fill", "gmm/empty_components", "solver/skipped_steps",
    }  # fmt: skip
    assert wanted <= set(events.Tags()["scalars"])
    assert "gmm/embedding" in events.Tags()["images"]
    assert [event.step for event in events.Images("gmm/embedding")] == [2]
    assert 1 <= events.Scalars("gmm/effective_components")[-1].value <= 5
    assert events.Scalars("solver/skipped_steps")[-1].value == 0

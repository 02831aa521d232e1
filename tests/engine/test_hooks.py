"""Hooks: when EM runs, and the mixtures' health in TensorBoard: when, of which images, changing nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from gmm_anomaly.engine import EMHook, build_config
from gmm_anomaly.engine.config import read_config
from gmm_anomaly.engine.health_hook import HealthHook, health_hooks, labelled_embedding
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.health import pixel_health
from gmm_anomaly.modeling.classifiers import GMMClassifier

RED, GREEN = (220, 30, 30), (20, 160, 20)


def run_hook(hook, bank, iterations):
    """Iterations after which the means have moved."""
    moved = []
    generator = torch.Generator().manual_seed(0)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, max_iter=iterations, storage=storage)
        hook.before_train()
        for iteration in range(iterations):
            hook.trainer.iter = iteration
            features = nn.functional.normalize(torch.randn(30, 4, generator=generator), dim=1)
            before = bank.means.clone()
            index, everywhere = torch.zeros(30, dtype=torch.int64), torch.ones(30, dtype=torch.bool)
            bank.record(features, torch.arange(30) % 2, index, everywhere)
            assert torch.equal(bank.means, before)
            hook.after_step()
            if not torch.equal(bank.means, before):
                moved.append(iteration)
    return moved


def test_em_runs_after_the_first_and_every_nth_iteration():
    bank = GaussianMixtureBank(2, 1, 4, memory_size=50)
    assert run_hook(EMHook(bank, interval=5), bank, 12) == [0, 5, 10]
    # Between EM steps the memory fills all the same: 12 batches of 15 a class, 50 slots.
    assert bank.memory.count.tolist() == [50, 50]


def test_momentum_ramps_from_start_to_final():
    bank = GaussianMixtureBank(2, 1, 4, momentum_mean=0.999)
    hook = EMHook(bank, start_momentum=0.5)
    assert hook.momentum(0.0) == pytest.approx(0.5)
    # Half-way in the ramp: geometric mean of 0.5 and 0.001.
    assert hook.momentum(0.25) == pytest.approx(1 - (0.5 * 0.001) ** 0.5)
    assert hook.momentum(0.5) == hook.momentum(1.0) == 0.999
    assert EMHook(bank).momentum(0.0) == 0.999


def test_hook_follows_the_config():
    bank = GaussianMixtureBank(2, 1, 4)
    assert not bank.em_attached
    hook = EMHook.from_config(read_config("", ["MODEL.GMM.UPDATE_INTERVAL", 7]), bank)
    assert (hook.interval, hook.momentum(0.0), bank.em_attached) == (7, 0.5, True)
    plain = EMHook.from_config(read_config("", ["MODEL.GMM.WARM_START", False]), bank)
    assert plain.momentum(0.0) == bank.momentum_mean


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


def images():
    generator = torch.Generator().manual_seed(4)
    return [
        {
            "image": torch.randint(0, 256, (3, 16, 24), dtype=torch.uint8, generator=generator),
            # Class 2 is in no image.
            "sem_seg": torch.tensor([0, 1, 255])[torch.randint(0, 3, (16, 24), generator=generator)],
        }
        for _ in range(2)
    ]


@pytest.fixture
def dataset():
    name = "health_of_a_test"
    MetadataCatalog.get(name).set(stuff_classes=["road", "car", "sky"], stuff_colors=[RED, GREEN, (0, 0, 9)])
    yield name
    MetadataCatalog.remove(name)


def run(hook, iterations):
    """Scalars by the iteration that wrote them, and the pictures as "pictures"."""
    written = {}
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(iter=0, max_iter=iterations, storage=storage)
        for iteration in range(iterations):
            storage.iter = hook.trainer.iter = iteration
            hook.after_step()
            found = {name: value for name, (value, at) in storage.latest().items() if at == iteration}
            if found:
                written[iteration] = found | {"pictures": storage._vis_data[-1]}
    return written


def test_hook_writes_every_period_and_at_the_end_and_changes_nothing(dataset):
    model = Segmentor().train()
    hook = HealthHook(model, images(), dataset, held_out=True, period=3)
    assert run(hook, 4) == {}, "nothing was fitted yet"
    model.bank.fitted[:, 0] = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    written = run(hook, 7)
    assert list(written) == [2, 5, 6] and model.training and model.backbone[1].training
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name

    parts = [labelled_embedding(model.eval(), item) for item in images()]
    expected = pixel_health(model.bank, *(torch.cat(part) for part in zip(*parts, strict=True)))
    found = written[6]
    assert found["gmm/held_out_log_likelihood"] == pytest.approx(expected.log_likelihood)
    assert found["gmm/assignment_entropy"] == pytest.approx(expected.assignment_entropy)
    assert found["gmm/effective_components/car"] == pytest.approx(1.0)
    assert found["gmm/effective_components"] == pytest.approx(1.0)
    assert "gmm/effective_components/sky" not in found, "no pixel, no number"
    name, picture, iteration = found["pictures"]
    assert (name, iteration) == ("gmm/embedding", 6)
    for color in (RED, GREEN):
        assert (np.asarray(picture).transpose(1, 2, 0) == color).all(2).any()
    # Of training pixels it says less: another name.
    trained = run(HealthHook(model, images(), dataset, held_out=False, period=1), 1)[0]
    assert "gmm/train_log_likelihood" in trained and "gmm/held_out_log_likelihood" not in trained


def config(tmp_path, *overrides):
    tiny = [
        "OUTPUT_DIR", str(tmp_path), "MODEL.DEVICE", "cpu", "DATASETS.TRAIN", "('synthetic_street_train',)",
        "DATASETS.TEST", "('synthetic_street_anomaly', 'synthetic_street_val')",
        "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.NUM_TRAIN", 3,
        "DATASETS.SYNTHETIC.NUM_VAL", 5, "DATASETS.SYNTHETIC.NUM_ANOMALY", 1, "INPUT.CROP.ENABLED", True,
        "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", "[64, 64]", "MODEL.CLASSIFIER.NUM_CLASSES", 10,
        "DATALOADER.NUM_WORKERS", 0,
    ]  # fmt: skip
    return build_config("", list(map(str, [*tiny, *overrides])))


def test_images_are_evenly_spaced_ones_of_the_first_closed_test_set(tmp_path):
    (hook,) = health_hooks(config(tmp_path), Segmentor())
    assert (hook.dataset, hook.held_out, hook.period) == ("synthetic_street_val", True, 500)
    assert [item["image"].shape for item in hook.images] == [(3, 64, 128)] * 4
    (other,) = health_hooks(config(tmp_path, "DATASETS.TEST", "('synthetic_street_anomaly',)"), Segmentor())
    assert (other.dataset, other.held_out, len(other.images)) == ("synthetic_street_train", False, 3)
    assert health_hooks(config(tmp_path, "MODEL.GMM.HEALTH_PERIOD", 0), Segmentor()) == []
    assert health_hooks(config(tmp_path), nn.Identity()) == []

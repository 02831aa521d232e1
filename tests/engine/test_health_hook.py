"""The mixtures' health in TensorBoard: when, on which images, and that looking changes nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from gmm_anomaly.engine import Trainer, build_config
from gmm_anomaly.engine.health_hook import HealthHook, health_hooks, labelled_embedding
from gmm_anomaly.gmm import GaussianMixtureBank
from gmm_anomaly.gmm.health import pixel_health
from gmm_anomaly.modeling.classifiers import GMMClassifier

RED, GREEN = (220, 30, 30), (20, 160, 20)


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


def test_keys_switch_the_hook(tmp_path):
    assert health_hooks(config(tmp_path, "MODEL.GMM.HEALTH_PERIOD", 0), Segmentor()) == []
    assert health_hooks(config(tmp_path), nn.Identity()) == []
    with pytest.raises(ValueError, match=r"MODEL\.GMM\.HEALTH_PERIOD: expected at least 1, found -1"):
        health_hooks(config(tmp_path, "MODEL.GMM.HEALTH_PERIOD", -1), Segmentor())


def test_training_writes_health_and_counts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    cfg = config(
        tmp_path, "DATASETS.TEST", "()", "MODEL.BACKBONE.NAME", "build_timm_backbone",
        "MODEL.TIMM.NAME", "test_efficientnet",
        "MODEL.GMM.EMBED_DIM", 8, "MODEL.GMM.MEMORY_SIZE", 100, "MODEL.GMM.WARM_START_FEATURES", 20,
        "MODEL.DECODER.CHANNELS", 16,
        "SOLVER.MAX_ITER", 3, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.NON_FINITE", "skip",
    )  # fmt: skip
    Trainer(cfg).train()
    events = EventAccumulator(str(tmp_path)).Reload()
    wanted = {
        "gmm/assignment_entropy", "gmm/effective_components", "gmm/train_log_likelihood", "gmm/mean_scale",
        "gmm/memory_fill", "gmm/empty_components", "solver/skipped_steps",
    }  # fmt: skip
    assert wanted <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("gmm/embedding")] == [2]
    assert 1 <= events.Scalars("gmm/effective_components")[-1].value <= 5
    assert events.Scalars("solver/skipped_steps")[-1].value == 0

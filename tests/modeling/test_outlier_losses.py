"""RbA's and PEBAL's losses on pasted objects: formulas, two processes, and a training."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from detectron2.modeling import build_model
from sklearn.metrics import roc_auc_score

import train_net
from gmm_anomaly.compat import wrap_distributed
from gmm_anomaly.data import SegmentationMapper
from gmm_anomaly.data.build import train_records
from gmm_anomaly.data.stream import seeded
from gmm_anomaly.engine import Checkpointer, build_config
from gmm_anomaly.modeling.outlier_losses import pebal_losses, rba_loss
from tests.modeling.conftest import SMALL, batch, config_of
from tests.test_train_net import command_line

CLASSES = 4


@pytest.fixture
def maps():
    """Logits (2, 4, 3, 5) and an abstaining one, float64; labels and outliers of twice the size."""
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(2, CLASSES + 1, 3, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, CLASSES, (2, 6, 10), generator=generator)
    outliers = torch.rand(2, 6, 10, generator=generator) < 0.3
    labels[outliers | (torch.rand(2, 6, 10, generator=generator) < 0.2)] = 255
    return logits, labels, outliers


def enlarged(image):
    """(n, 3, 5) -> (n, 6, 10), by OpenCV."""
    return np.stack([cv2.resize(channel, (10, 6), interpolation=cv2.INTER_LINEAR) for channel in image])


def rba_of(logits, labels, outliers):
    return rba_loss(-logits[:, :-1].tanh().sum(1), labels, outliers)


def pebal_of(logits, labels, outliers):
    found = pebal_losses(logits[:, :-1], logits[:, -1:], labels, outliers)
    return found["loss_abstention"] + found["loss_energy"]


def naive_rba(logits, labels, outliers):
    known, strange = [], []
    for image, label, outlier in zip(logits, labels, outliers, strict=True):
        score = enlarged(-np.tanh(image[:-1]).sum(0, keepdims=True))[0]
        known += [max(0.0, s) ** 2 for s in score[label != 255]]
        strange += [max(0.0, 5 - s) ** 2 for s in score[outlier]]
    return (np.mean(known) + np.mean(strange)) / 2


def naive_pebal(logits, labels, outliers):
    known, strange, low, high = [], [], [], []
    for image, label, outlier in zip(logits, labels, outliers, strict=True):
        large = enlarged(image)
        for row, column in np.ndindex(6, 10):
            z = large[:, row, column]
            p, energy = np.exp(z) / np.exp(z).sum(), -np.log(np.exp(z[:-1]).sum())
            gains = [-np.log(p[c] + p[-1] / max(energy**2, 1)) for c in range(CLASSES)]
            if label[row, column] != 255:
                known.append(gains[label[row, column]])
                low.append(max(0, energy + 12) ** 2)
            elif outlier[row, column]:
                strange.append(np.mean(gains))
                high.append(max(0, -6 - energy) ** 2)
    energies = 0.1 * (np.mean(low) + np.mean(high)) / 2
    return np.mean(known) + 0.1 * np.mean(strange) + energies


@pytest.mark.parametrize(("loss", "naive"), [(rba_of, naive_rba), (pebal_of, naive_pebal)])
def test_losses_are_their_formulas(maps, loss, naive):
    logits, labels, outliers = maps
    logits = logits * torch.tensor([1, 2.5], dtype=torch.float64).view(2, 1, 1, 1)  # some margins are kept
    found = loss(logits, labels, outliers)
    expected = naive(logits.numpy(), labels.numpy(), outliers.numpy())
    assert float(found) == pytest.approx(expected, rel=1e-10)
    assert float(loss(logits.float(), labels, outliers)) == pytest.approx(expected, rel=1e-5)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels, outliers), logits.requires_grad_())
    # Nothing pasted: nothing, not even a gradient; nothing else than that: finite.
    none = loss(logits, labels, torch.zeros_like(outliers))
    (gradient,) = torch.autograd.grad(none, logits)
    assert none == 0 and not gradient.any()
    every = loss(logits, torch.full_like(labels, 255), torch.ones_like(outliers))
    assert every.isfinite() and torch.autograd.grad(every, logits)[0].isfinite().all()
    # Tensors without values: whatever asked a GPU for one would fail here.
    loss(maps[0].to("meta").requires_grad_(), labels.to("meta"), outliers.to("meta")).backward()


def pasted_batch(name="rank 0"):
    inputs = batch((64, 96), (64, 96))
    for item in inputs:
        item["outliers"] = torch.zeros(64, 96, dtype=torch.bool)
        if name == "rank 0":
            item["outliers"][10:40, 20:60] = True
            item["sem_seg"][item["outliers"]] = 255
        else:
            item["image"] = 255 - item["image"]
    return inputs


def segmentor(loss):
    torch.manual_seed(0)
    names = ("MODEL.CLASSIFIER.NAME", "softmax", "MODEL.CLASSIFIER.DROPOUT", 0.0, "MODEL.OUTLIER.LOSS", loss)
    return build_model(config_of(*SMALL, *names, "MODEL.DECODER.NORM", "BN")).train()


def gradients(model, inputs):
    model.zero_grad()
    sum(model(inputs).values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if "backbone" not in name}


def rank_trains(rank, meeting, results):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for loss in ("rba", "pebal"):
        model = segmentor(loss)
        wrapped = wrap_distributed(model)
        sum(wrapped(pasted_batch(f"rank {rank}")).values()).backward()
        found = {name: p.grad for name, p in model.named_parameters() if "backbone" not in name}
        torch.save(found, f"{results}/{loss}{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_of_which_one_has_no_object(tmp_path):
    """The mean of the gradients that each has alone, in both."""
    multiprocessing.start_processes(
        rank_trains, (tmp_path / "meeting", tmp_path), nprocs=2, start_method="fork"
    )
    for loss in ("rba", "pebal"):
        alone = [gradients(segmentor(loss), pasted_batch(name)) for name in ("rank 0", "rank 1")]
        for rank in range(2):
            for name, found in torch.load(tmp_path / f"{loss}{rank}.pth").items():
                expected = (alone[0][name] + alone[1][name]) / 2
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=name)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match=r"MODEL\.OUTLIER\.LOSS: .*found 'gmm'"):
        build_model(config_of(*SMALL, "MODEL.CLASSIFIER.NAME", "gmm", "MODEL.OUTLIER.LOSS", "rba"))
    with pytest.raises(ValueError, match=r"MODEL\.OUTLIER\.LOSS: .*INPUT\.OUTLIERS\.SHARE"):
        segmentor("pebal")(batch())


def test_a_training_tells_objects_that_it_did_not_see(tmp_path):
    """Pasted into other images than those of the training, by the score that each loss is for."""
    found = {}
    for loss in ("", "rba", "pebal"):
        more = [
            "MODEL.OUTLIER.LOSS", loss, "INPUT.OUTLIERS.SHARE", 1.0, "INPUT.OUTLIERS.HEIGHTS", [0.2, 0.6],
            "INPUT.OUTLIERS.OBJECTS", [1, 2], "MODEL.FEATURE_DISTANCE.FEATURES", [], "DATASETS.TEST", [],
            "TEST.SCORES", ["rba", "energy"], "SOLVER.MAX_ITER", 40, "SOLVER.WARMUP_ITERS", 0,
            "SOLVER.BASE_LR", 0.01, "MODEL.BACKBONE.FREEZE_AT", 0,
        ]  # fmt: skip
        arguments = command_line(tmp_path / "run", *more, classifier="softmax", flags=("--num-gpus", 0))
        train_net.main(train_net.parser().parse_args(arguments))
        # No score needs the layer that abstains: networks without it are evaluated too.
        held_out = ["MODEL.OUTLIER.LOSS", "pebal", "DATASETS.TRAIN", "('synthetic_street_val',)"]
        cfg = build_config(arguments[1], [*arguments[4:], *held_out])
        model = build_model(cfg).eval()
        Checkpointer(model).load_for_evaluation(str(tmp_path / "run/model_final.pth"))
        mapper, (records,) = SegmentationMapper(cfg, True), train_records(cfg).values()
        scores, strange = {"rba": [], "energy": []}, []
        for index, record in enumerate(4 * records):
            with seeded(9, index):
                item = mapper(record)
            with torch.no_grad():
                maps = model([{"image": item["image"]}])[0]["anomaly_scores"]
            known = item["outliers"] | (item["sem_seg"] != 255)
            strange.append(item["outliers"][known])
            for name, part in scores.items():
                part.append(maps[name][known])
        for name, part in scores.items():
            found[loss, name] = roc_auc_score(torch.cat(strange), torch.cat(part))
    assert found["rba", "rba"] > found["", "rba"] + 0.05
    assert found["pebal", "energy"] > found["", "energy"] + 0.05

"""Mixtures on a frozen network: what is fitted, what is kept, and that the result is a whole model."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from torch.nn import functional as F

import train_net
from gmm_anomaly.data import get_records, read_image, read_label
from gmm_anomaly.engine import Checkpointer, build_config, evaluate, fitting_config
from gmm_anomaly.engine.fit_mixture import MixtureFitter, batch_order, check_output_dir
from gmm_anomaly.engine.health_hook import labelled_embedding
from gmm_anomaly.engine.launch import Interrupted
from gmm_anomaly.engine.trained_model import trained_classifier

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = str(ROOT / "configs/synthetic/effnetlite0_deeplabv3plus_{}.yaml")
CLASSES = 10
TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "test_efficientnet", "MODEL.BACKBONE.WEIGHTS", "",
    "MODEL.CHANNELS_LAST", False, "MODEL.DECODER.CHANNELS", 12,
    "MODEL.FEATURE_DISTANCE.FEATURES", [],
    "MODEL.GMM.WARM_START_FEATURES", 40, "MODEL.GMM.HEALTH_PERIOD", 0, "INPUT.MIN_SIZE_TEST", 0,
    "DATASETS.SYNTHETIC.HEIGHT", 64, "DATASETS.SYNTHETIC.WIDTH", 128, "DATASETS.SYNTHETIC.CACHE_DIR", "",
    "DATASETS.SYNTHETIC.NUM_TRAIN", 3, "DATASETS.SYNTHETIC.NUM_VAL", 1, "DATASETS.SYNTHETIC.NUM_ANOMALY", 1,
    "DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "TEST.NUM_VISUALIZATIONS", 0,
]  # fmt: skip


def config(output, *overrides, classifier="softmax"):
    keys = ["MODEL.CLASSIFIER.NAME", classifier, "TEST.SCORES", [], "OUTPUT_DIR", str(output)]
    return build_config(CONFIGS.format("gmm"), [*TINY, *keys, *overrides])


def saved_network(folder, *overrides, classifier="softmax"):
    torch.manual_seed(0)
    model = build_model(config(folder, *overrides, classifier=classifier))
    # Statistics that a frozen network must keep.
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    path = folder / f"{classifier}.pth"
    torch.save({"model": model.state_dict(), "iteration": 77}, path)
    return str(path)


def fitter_of(cfg, *, resume=False):
    fitter = MixtureFitter(cfg)
    fitter.resume_or_load(resume=resume)
    return fitter


class CtrlC(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def softmax(tmp_path_factory):
    return saved_network(tmp_path_factory.mktemp("softmax"))


@pytest.fixture(scope="module")
def fitted(softmax, tmp_path_factory):
    """A fit by the command line, from a softmax config, with scores of mixtures."""
    output = tmp_path_factory.mktemp("fitted")
    keys = [
        *TINY, "MODEL.WEIGHTS", softmax, "OUTPUT_DIR", output, "MODEL.GMM.NUM_COMPONENTS", 3,
        "MODEL.GMM.FIT_PASSES", 2, "MODEL.GMM.LOGITS", "softmax",
        "TEST.SCORES", ["gmm_density", "msp", "sml"], "TEST.POSTPROCESS", ["boundary_suppression"],
    ]  # fmt: skip
    arguments = ["--num-gpus", "0", "--config-file", CONFIGS.format("softmax"), "--fit-mixture"]
    results = train_net.main(train_net.parser().parse_args([*arguments, *map(str, keys)]))
    return SimpleNamespace(output=output, results=results, cfg=build_config(str(output / "config.yaml")))


@torch.no_grad()
def labelled_features(model, cfg):
    """Unit LayerNormed decoder features of all labelled training pixels, float64, image after image."""
    metadata = MetadataCatalog.get("synthetic_street_train")
    features, labels = [], []
    for record in get_records("synthetic_street_train"):
        image = torch.from_numpy(read_image(record, cfg.INPUT.FORMAT).transpose(2, 0, 1).copy())
        feature = model.decoder(model.backbone(model.preprocess([{"image": image}]).tensor)).features[0]
        step = image.shape[1] // feature.shape[1]
        label = read_label(record, metadata)[::step, ::step]
        pixels = feature.double().permute(1, 2, 0).numpy()[label < CLASSES]
        pixels = pixels - pixels.mean(1, keepdims=True)
        pixels /= np.sqrt(pixels.var(1, keepdims=True) + 1e-5)
        features.append(pixels / np.linalg.norm(pixels, axis=1, keepdims=True))
        labels.append(label[label < CLASSES])
    return np.concatenate(features), np.concatenate(labels)


@pytest.mark.parametrize("assignment", ["sinkhorn", "em"])
def test_one_component_is_the_direct_computation(softmax, tmp_path, assignment):
    """All pixels in the memory and no momentum: mean direction and variance around it, in float64."""
    cfg = fitting_config(
        config(
            tmp_path, "MODEL.WEIGHTS", softmax, "MODEL.GMM.NUM_COMPONENTS", 1, "MODEL.GMM.FIT_PASSES", 1,
            "MODEL.GMM.WARM_START", False, "MODEL.GMM.MEMORY_SIZE", 4000, "MODEL.GMM.MOMENTUM_MEAN", 0.0,
            "MODEL.GMM.SAMPLES_PER_UPDATE", 4000, "MODEL.GMM.ASSIGNMENT", assignment,
        )
    )  # fmt: skip
    fitter = fitter_of(cfg)
    before = {name: value.clone() for name, value in fitter.model.state_dict().items()}
    fitter.train()
    for name, value in fitter.model.state_dict().items():
        if not name.startswith("classifier.bank."):
            assert torch.equal(value, before[name]), f"{name} is frozen"
    features, labels = labelled_features(fitter.model, cfg)
    bank = fitter.bank
    assert bank.memory.count.tolist() == np.bincount(labels, minlength=CLASSES).tolist()
    assert bank.fitted[:, 0].tolist() == (np.bincount(labels, minlength=CLASSES) > 0).tolist()
    for label in np.unique(labels):
        own = features[labels == label]
        direction = own.mean(0) / np.linalg.norm(own.mean(0))
        scale = np.sqrt(((own - direction) ** 2).mean(0) + cfg.MODEL.GMM.VARIANCE_FLOOR)
        np.testing.assert_allclose(bank.means[label, 0].numpy(), direction, atol=2e-5)
        np.testing.assert_allclose(bank.scales[label, 0].numpy(), scale, rtol=1e-4)


def test_evaluation_after_reload_is_identical(fitted):
    cfg = fitted.cfg
    assert cfg.MODEL.CLASSIFIER.NAME == "gmm" and cfg.MODEL.GMM.PROJECTION == "none"
    model = build_model(cfg)
    Checkpointer(model, cfg.OUTPUT_DIR).load_for_evaluation(cfg.MODEL.WEIGHTS)
    again = evaluate(cfg, model)
    assert again == fitted.results
    names = {"gmm_density", "msp", "sml"}
    tasks = {task.split("/")[-1] for task in again["synthetic_street_anomaly"] if task.startswith("anomaly/")}
    assert tasks == names | {f"{name}+boundary_suppression" for name in names}
    stored = json.loads((fitted.output / "results.json").read_text())["datasets"]
    assert stored["synthetic_street_anomaly"]["anomaly"]["gmm_density+boundary_suppression"]["AP"] > 0


def test_closed_set_logits_stay_those_of_the_frozen_network(fitted, softmax):
    network = build_model(config(fitted.output, "MODEL.WEIGHTS", softmax))
    Checkpointer(network).load_for_evaluation(softmax)
    generative = build_model(fitted.cfg)
    Checkpointer(generative).load_for_evaluation(fitted.cfg.MODEL.WEIGHTS)
    image = torch.randint(0, 256, (3, 64, 128), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval()([{"image": image}])[0]["sem_seg"]
        found = generative.eval()([{"image": image}])[0]
        generative.classifier.logits_from = "density"
        density = generative([{"image": image}])[0]
    torch.testing.assert_close(found["sem_seg"], expected)
    torch.testing.assert_close(
        found["anomaly_scores"]["gmm_density"], density["anomaly_scores"]["gmm_density"]
    )
    assert not torch.equal(density["sem_seg"], expected)


def test_fit_resumes_where_it_was_interrupted(softmax, tmp_path):
    """Ctrl-C in the middle of a pass, and resumed: it ends as the uninterrupted fit (the memory is kept)."""
    keys = ["MODEL.WEIGHTS", softmax, "MODEL.GMM.NUM_COMPONENTS", 2, "MODEL.GMM.FIT_PASSES", 2,
            "MODEL.GMM.SAVE_MEMORY", True, "MODEL.GMM.MEMORY_SIZE", 200]  # fmt: skip
    whole, parts = (fitting_config(config(tmp_path / name, *keys)) for name in ("whole", "parts"))
    uninterrupted = fitter_of(whole)
    uninterrupted.train()
    first = fitter_of(parts)
    first.register_hooks([CtrlC(first.per_pass)])
    with pytest.raises(Interrupted):
        first.train()
    second = fitter_of(parts, resume=True)
    assert second.start_iter == second.per_pass + 1
    second.train()
    expected = uninterrupted.model.state_dict()
    for name, value in second.model.state_dict().items():
        # The slots that a started class leaves behind mean nothing any more.
        if not name.endswith("warm_start.features"):
            torch.testing.assert_close(value, expected[name], msg=name)


def test_mixtures_of_a_trained_gmm_network_are_fine_tuned(tmp_path):
    path = saved_network(tmp_path, "MODEL.GMM.EMBED_DIM", 6, classifier="gmm")
    state = torch.load(path, weights_only=True)
    state["model"]["classifier.bank.fitted"].fill_(True)
    state["model"]["classifier.bank.started"].fill_(True)
    torch.save(state, path)
    keys = ["MODEL.WEIGHTS", path, "MODEL.GMM.EMBED_DIM", 6]
    same = fitting_config(config(tmp_path / "same", *keys, classifier="gmm"))
    assert same.MODEL.GMM.PROJECTION == "mlp"
    loaded = fitter_of(same).model.state_dict()
    for name, value in state["model"].items():
        assert torch.equal(loaded[name], value), name
    # Another number of components starts anew on the same embedding.
    keys += ["MODEL.GMM.NUM_COMPONENTS", 2]
    other = fitter_of(fitting_config(config(tmp_path / "other", *keys, classifier="gmm")))
    assert not other.bank.fitted.any()
    name = "classifier.project.1.weight"
    assert torch.equal(other.model.state_dict()[name], state["model"][name])


def test_every_pass_takes_every_image_once():
    order = batch_order(7, 3, passes=2, seed=1)
    assert [len(batch) for batch in order] == [3, 3, 1, 3, 3, 1]
    first, second = (sum(part, []) for part in (order[:3], order[3:]))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert order == batch_order(7, 3, passes=2, seed=1)


def test_prototype_network_has_no_softmax_to_keep(tmp_path):
    path = saved_network(tmp_path, classifier="prototype")
    assert trained_classifier(path) == ("prototype", CLASSES)
    cfg = fitting_config(config(tmp_path, "MODEL.WEIGHTS", path))
    assert not hasattr(fitter_of(cfg).model.classifier, "guide")
    with pytest.raises(ValueError, match="LOGITS: .*has no softmax classifier"):
        fitting_config(config(tmp_path, "MODEL.WEIGHTS", path, "MODEL.GMM.LOGITS", "softmax"))


def test_bad_input_is_named(softmax, tmp_path):
    def fit(*overrides):
        return fitting_config(config(tmp_path, *overrides))

    with pytest.raises(ValueError, match="MODEL.WEIGHTS: --fit-mixture needs a trained network"):
        fit()
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS: no file nowhere.pth"):
        fit("MODEL.WEIGHTS", "nowhere.pth")
    backbone = tmp_path / "backbone.pth"
    torch.save({"model": {"backbone.weight": torch.zeros(2)}}, backbone)
    with pytest.raises(ValueError, match="expected a network with a trained classifier, found none"):
        fit("MODEL.WEIGHTS", str(backbone))
    eleven = tmp_path / "eleven.pth"
    torch.save({"model": {"classifier.predictor.weight": torch.zeros(11, 12, 1, 1)}}, eleven)
    with pytest.raises(ValueError, match="trained with 11 classes, MODEL.CLASSIFIER.NUM_CLASSES is 10"):
        fit("MODEL.WEIGHTS", str(eleven))
    with pytest.raises(ValueError, match="the checkpoint does not fit the model"):
        fitter_of(fit("MODEL.WEIGHTS", softmax, "MODEL.DECODER.CHANNELS", 16))
    with pytest.raises(ValueError, match="MODEL.GMM.FIT_PASSES: expected 1 or more, found 0"):
        MixtureFitter(fit("MODEL.WEIGHTS", softmax, "MODEL.GMM.FIT_PASSES", 0))
    cfg, last = config(tmp_path), tmp_path / "last_checkpoint"
    last.write_text("mixtures_0000007.pth")
    check_output_dir(cfg)
    last.write_text("model_final.pth")
    with pytest.raises(ValueError, match=r"OUTPUT_DIR: .*checkpoints of a training \(model_final.pth\); "):
        check_output_dir(cfg)


def test_logits_without_their_softmax_are_refused(fitted, tmp_path):
    state = torch.load(fitted.cfg.MODEL.WEIGHTS, weights_only=True)
    bare = {name: value for name, value in state["model"].items() if not name.startswith("classifier.guide.")}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    model = build_model(fitted.cfg)
    with pytest.raises(ValueError, match=r"lacks 2 tensors of the model \(classifier\.guide"):
        Checkpointer(model).load_for_evaluation(str(tmp_path / "bare.pth"))
    model.classifier.logits_from = "density"
    Checkpointer(model).load_for_evaluation(str(tmp_path / "bare.pth"))


def test_unlabelled_pixels_and_padding_take_no_part(softmax, tmp_path):
    model = build_model(fitting_config(config(tmp_path, "MODEL.WEIGHTS", softmax))).eval()
    # 50 x 70 is padded to 64 x 96, 16 x 24 features of which 13 x 18 begin inside the image.
    label = torch.randint(0, CLASSES, (50, 70))
    label[:, 30:] = 255
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    features, labels = labelled_embedding(model, {"image": image, "sem_seg": label})
    assert features.shape == (13 * 8, 12)
    assert torch.equal(labels, label[::4, :30:4].flatten())
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    assert F.cosine_similarity(features[:-1], features[1:]).min() < 0.9999

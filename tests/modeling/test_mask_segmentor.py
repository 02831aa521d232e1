"""The mask segmentor's contract with Detectron2, on a tiny Mask2Former with random weights."""

from __future__ import annotations

import sys

import pytest
import torch
from detectron2.modeling import build_model

from gmm_anomaly.engine import Checkpointer
from gmm_anomaly.scores import mask_void_score, maskomaly_score, rba_score, semantic_map
from tests.modeling.conftest import batch, config_of

pytest.importorskip("transformers")

CLASSES, QUERIES = 5, 10

SWIN = {"model_type": "swin", "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
        "drop_path_rate": 0.0}  # fmt: skip
ARCHITECTURE = {
    "num_queries": QUERIES, "feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32,
    "encoder_layers": 1, "encoder_feedforward_dim": 128, "decoder_layers": 3, "dim_feedforward": 256,
    "num_attention_heads": 2, "train_num_points": 64, "backbone_config": SWIN,
}  # fmt: skip
TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "MaskAnomalySegmentor",
    "MODEL.CLASSIFIER.NUM_CLASSES", CLASSES, "MODEL.MASK2FORMER.ARCHITECTURE", ARCHITECTURE,
]  # fmt: skip


def build(*overrides):
    torch.manual_seed(0)
    return build_model(config_of(*TINY, *overrides))


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    model.network.save_pretrained(folder)
    return folder


def test_inference_gives_maps_of_the_images_size_and_every_score():
    queries = ["MODEL.MASK2FORMER.ANOMALY_QUERIES", [3, 1], "MODEL.MASK2FORMER.ROAD_QUERIES", [0]]
    model = build(*queries, "TEST.SCORES", ["maskomaly", "rba", "mask_void", "energy"]).eval()
    first, second = batch()
    with torch.no_grad():
        small, resized = model([second, {**first, "height": 33, "width": 47}])
    for result, size in ((small, (70, 90)), (resized, (33, 47))):
        pair, found = (result["mask_logits"], result["class_logits"]), result["anomaly_scores"]
        assert pair[0].shape == (QUERIES, *size) and pair[1].shape == (QUERIES, CLASSES + 1)
        # What the pure package computes from the masks.
        torch.testing.assert_close(result["sem_seg"], semantic_map(*pair))
        torch.testing.assert_close(found["maskomaly"], maskomaly_score(*pair, (3, 1), (0,)))
        torch.testing.assert_close(found["rba"], rba_score(*pair))
        torch.testing.assert_close(found["mask_void"], mask_void_score(*pair))
        torch.testing.assert_close(found["energy"], -result["sem_seg"].logsumexp(0))
        assert result["anomaly_score"] is found["maskomaly"]
    with pytest.raises(ValueError, match="'gmm_density' needs class densities"):
        build("TEST.SCORES", ["gmm_density"])


def test_masks_are_those_of_the_network_without_the_padding(model):
    model.eval()
    (item,) = batch((70, 90))
    pixels = (item["image"].float() - model.pixel_mean) / model.pixel_std
    padded = torch.zeros(1, 3, 96, 96)
    padded[0, :, :70, :90] = pixels
    with torch.no_grad():
        outputs = model.network(padded)
        found = model([item])[0]
    masks = torch.nn.functional.interpolate(
        outputs.masks_queries_logits, scale_factor=4, mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(found["mask_logits"], masks[0, :, :70, :90], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["class_logits"], outputs.class_queries_logits[0], rtol=1e-4, atol=1e-5)


def test_losses_are_mask2formers_own(model):
    """The total of transformers' forward pass with the masks made by hand, with the same random points."""
    model.train()
    inputs = batch()
    inputs[1]["sem_seg"][:, :30] = 255
    padded = torch.full((2, 96, 96), 255)
    for row, item in zip(padded, inputs, strict=True):
        row[: item["sem_seg"].shape[0], : item["sem_seg"].shape[1]] = item["sem_seg"]
    masks = torch.stack([padded == index for index in range(CLASSES)], 1).float()
    torch.manual_seed(1)
    losses = model(inputs)
    assert set(losses) == {"loss_class", "loss_mask", "loss_dice"}
    torch.manual_seed(1)
    expected = model.network(
        model.preprocess(inputs).tensor,
        mask_labels=list(masks),
        class_labels=[torch.arange(CLASSES)] * 2,
    ).loss
    total = sum(losses.values())
    torch.testing.assert_close(total, expected.squeeze())
    model.zero_grad()
    total.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, "an unused parameter breaks data parallelism"


def test_rbas_loss_is_that_of_the_score_at_each_layer():
    """float64, with the masks brought to the size of the labels by torch; known pixels lose nothing."""
    model = build("MODEL.OUTLIER.LOSS", "rba").train()
    inputs = batch()
    for item, objects in zip(inputs, (True, False), strict=True):
        item["outliers"] = torch.zeros(item["sem_seg"].shape, dtype=torch.bool)
        item["outliers"][20:50, 30:70] = objects
        item["sem_seg"][item["outliers"]] = 255
    found = model(inputs)["loss_rba"]
    outputs = model.network(model.preprocess(inputs).tensor, output_auxiliary_logits=True)
    expected = 0
    for layer in (outputs, *outputs.auxiliary_logits):
        masks, classes = layer["masks_queries_logits"][0].double(), layer["class_queries_logits"][0].double()
        maps = torch.einsum("qc,qhw->chw", classes.softmax(1)[:, :-1], masks.sigmoid())
        score = torch.nn.functional.interpolate(
            -maps.tanh().sum(0)[None, None], size=(96, 96), mode="bilinear"
        )
        expected += 0.5 * (5 - score[0, 0, 20:50, 30:70]).square().mean()
    assert len(outputs.auxiliary_logits) > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    found.backward()
    inputs[0]["outliers"][:] = False
    assert model(inputs)["loss_rba"] == 0
    with pytest.raises(ValueError, match=r"MODEL\.OUTLIER\.LOSS: expected \"rba\" or \"\""):
        build("MODEL.OUTLIER.LOSS", "pebal")


def test_images_without_a_label_still_give_losses(model):
    model.train()
    inputs = batch()
    for item, none_left in zip(inputs, (False, True), strict=True):
        item["sem_seg"][:] = 255
        losses = model(inputs)
        assert all(torch.isfinite(loss) and loss.requires_grad for loss in losses.values())
        assert (float(losses["loss_mask"].detach()) == 0) == none_left


def test_half_precision_losses_and_evidence_are_float32(model):
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch())
        model.eval()
        result = model(batch())[0]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {result[key].dtype for key in ("sem_seg", "anomaly_score", "mask_logits")} == {torch.float32}


def test_what_would_be_ignored_is_refused():
    for key, value in (
        ("TEST.AUG.ENABLED", True), ("TEST.SLIDING_WINDOW.ENABLED", True), ("TEST.SCORE_ON", "features"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{key}: .*mask model"):
            build(key, value)


def test_weights_of_a_folder_are_loaded_whole(model, weights):
    loaded = build("MODEL.MASK2FORMER.WEIGHTS", str(weights), "MODEL.MASK2FORMER.ARCHITECTURE", {})
    for (name, own), other in zip(
        model.network.state_dict().items(), loaded.network.state_dict().values(), strict=True
    ):
        assert torch.equal(own, other), name
    assert loaded.pretrained and not model.pretrained
    # Such a model can be evaluated without a checkpoint; one of random weights cannot.
    Checkpointer(loaded).load_for_evaluation("")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS: evaluation needs the weights"):
        Checkpointer(model).load_for_evaluation("")


def test_other_classes_are_an_error_or_a_new_class_layer(model, weights, caplog):
    keys = ["MODEL.MASK2FORMER.WEIGHTS", str(weights), "MODEL.CLASSIFIER.NUM_CLASSES", 7]
    with pytest.raises(ValueError, match="has 5 classes, MODEL.CLASSIFIER.NUM_CLASSES is 7; set it to 5"):
        build(*keys)
    with caplog.at_level("WARNING", logger="gmm_anomaly"):
        replaced = build(*keys, "MODEL.MASK2FORMER.REPLACE_CLASSES", True)
    assert "the class layer for 7 is untrained" in caplog.text and not replaced.pretrained
    assert replaced.network.class_predictor.weight.shape == (8, 32)
    kept, own = (net.network.model.state_dict() for net in (replaced, model))
    assert all(torch.equal(kept[name], own[name]) for name in own)
    assert replaced.network.criterion.empty_weight.tolist() == pytest.approx([1.0] * 7 + [0.1])
    assert torch.isfinite(sum(replaced.train()(batch()).values()))


def test_timm_backbone_brings_its_weights(tmp_path):
    import timm

    state = timm.create_model("test_efficientnet", pretrained=False).state_dict()
    torch.save(state, tmp_path / "file.pth")
    weights = ["MODEL.BACKBONE.WEIGHTS", str(tmp_path / "file.pth")]

    def build_on_timm(indices):
        backbone = {"model_type": "timm_backbone", "backbone": "test_efficientnet", "out_indices": indices}
        architecture = ARCHITECTURE | {"backbone_config": backbone}
        return build("MODEL.MASK2FORMER.ARCHITECTURE", architecture, *weights)

    model = build_on_timm([1, 2, 3, 4])
    stem = model.network.model.pixel_level_module.encoder.state_dict()["_backbone.conv_stem.weight"]
    assert torch.equal(stem, state["conv_stem.weight"])
    sum(model(batch((64, 64))).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(
        ValueError, match=r"MASK2FORMER\.ARCHITECTURE: .*strides 4, 8, 16 and 32, .* 4, 16, 32"
    ):
        build_on_timm([1, 3, 4])
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.WEIGHTS: .* timm_backbone only"):
        build(*weights)


def test_weights_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"MODEL\.MASK2FORMER\.WEIGHTS: .*/none' is neither a folder"):
        build("MODEL.MASK2FORMER.WEIGHTS", str(tmp_path / "none"))


@pytest.mark.parametrize("package", ["transformers", "scipy"])
def test_missing_packages_are_named_with_their_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"needs the package {package} \(extra \"mask\"\): pip install .*mask"
    ):
        build()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("ANOMALY_QUERIES", [4, 10], r"ANOMALY_QUERIES: the network has 10 queries, 0 to 9; found \[10\]"),
        ("ARCHITECTURE", {"queries": 3}, "ARCHITECTURE: Mask2FormerConfig has no queries"),
        ("ARCHITECTURE", {"backbone_config": {"model_type": "swin", "dim": 8}}, "SwinConfig has no dim"),
        ("ARCHITECTURE", {"backbone_config": {"model_type": "x"}}, "transformers has no model_type 'x'"),
        ("ARCHITECTURE", ARCHITECTURE | {"feature_size": 48}, "transformers cannot build it: .*divisible"),
    ],
)
def test_wrong_keys_are_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        build(f"MODEL.MASK2FORMER.{key}", value)

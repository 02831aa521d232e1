"""Options of the GMM classifier: assignment, embedding, where logits come from, contrast with draws."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.train_loop import amp_dtype
from gmm_anomaly.gmm import GaussianMixtureBank, sinkhorn_assign_all
from gmm_anomaly.modeling import GMMClassifier
from gmm_anomaly.modeling.classifiers import gmm as gmm_module

CLASSES, COMPONENTS, DIM = 3, 2, 6


def classifier(in_channels=DIM, **options):
    torch.manual_seed(0)
    bank = GaussianMixtureBank(CLASSES, COMPONENTS, DIM, memory_size=60, samples_per_update=30)
    bank.em_attached = True
    made = GMMClassifier(in_channels, bank, dropout=0.0, **options)
    made(torch.randn(1, in_channels, 4, 4))
    return made


def batch(in_channels=DIM):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(2, in_channels, 8, 9, generator=generator)
    labels = torch.randint(0, CLASSES, (2, 16, 18), generator=generator)
    labels[:, :4] = 255
    return features, labels


def fitted(**options):
    made = classifier(**options)
    made.losses(*batch())
    made.bank.update()
    return made


def test_plain_em_takes_the_largest_responsibility():
    own = torch.randn(50, COMPONENTS, generator=torch.Generator().manual_seed(0)) * 5
    labels = torch.arange(50) % CLASSES
    responsibility = own.double().softmax(dim=1)
    assert torch.equal(classifier(assignment="em").assign(own, labels), responsibility.argmax(1))
    balanced, _ = sinkhorn_assign_all(own, labels, CLASSES)
    assert torch.equal(classifier(assignment="sinkhorn").assign(own, labels), balanced)
    # All pixels nearer to the first component: EM leaves the second one empty, Sinkhorn does not.
    near = torch.stack([torch.zeros(40), -torch.linspace(1, 2, 40)], 1)
    labels = torch.zeros(40, dtype=torch.long)
    assert classifier(assignment="em").assign(near, labels).unique().tolist() == [0]
    assert classifier(assignment="sinkhorn").assign(near, labels).unique().tolist() == [0, 1]


def test_without_projection_the_embedding_is_the_normalised_feature():
    made = classifier(projection="none")
    assert not [name for name, _ in made.named_parameters() if name.startswith("project")]
    features, _ = batch()
    expected = F.normalize(F.layer_norm(features.permute(0, 2, 3, 1).reshape(-1, DIM), (DIM,)), dim=1)
    torch.testing.assert_close(made.embed(features), expected)


def test_logits_of_the_softmax_beside_the_mixtures():
    made = fitted(projection="none", logits_from="softmax").eval()
    features, _ = batch()
    with torch.no_grad():
        found = made(features)
        expected = made.guide.predictor(features)
        made.logits_from = "density"
        density = made(features)
    torch.testing.assert_close(found.logits, expected)
    torch.testing.assert_close(found.log_density, density.log_density)
    # It learns with a weight only, and data parallelism never waits for it.
    assert not any(p.requires_grad for p in made.guide.parameters())
    learning = classifier(logits_from="softmax", guide_weight=1.0).guide
    assert all(p.requires_grad for p in learning.parameters())


@pytest.mark.parametrize("factor", [1.0, 0.25, 0.0])
def test_how_much_of_the_mixtures_gradient_reaches_the_features(factor):
    def gradients(**options):
        made = classifier(guide_weight=1.0, **options)
        # Without the mixtures' gradient the first weights are drawn in another order.
        made.load_state_dict(start)
        made.losses(*batch())
        made.bank.update()
        found, labels = batch()
        losses = made.losses(found.requires_grad_(), labels)
        of_guide = torch.autograd.grad(losses["loss_guide"], found, retain_graph=True)[0]
        sum(losses.values()).backward()
        values = {name: value.item() for name, value in losses.items()}
        return values, of_guide, found.grad, [p.grad for p in made.project.parameters()]

    start = classifier(guide_weight=1.0).state_dict()
    losses, guide, whole, projection = gradients()
    scaled_losses, scaled_guide, scaled, scaled_projection = gradients(feature_gradient=factor)
    # The mixtures' part is scaled where it enters the features; nothing else changes.
    assert scaled_losses == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(scaled_guide, guide)
    torch.testing.assert_close(scaled, guide + factor * (whole - guide))
    for found, expected in zip(scaled_projection, projection, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "device, asked, expected",
    [
        ("cpu", "auto", torch.bfloat16),
        ("cuda", "auto", torch.float16),
        ("cuda", "bfloat16", torch.bfloat16),
        ("cpu", "float16", torch.float16),
    ],
)
def test_type_of_mixed_precision(device, asked, expected):
    cfg = build_config(None, ["MODEL.DEVICE", "cpu", "SOLVER.AMP.DTYPE", asked]).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    assert amp_dtype(cfg) is None
    cfg.SOLVER.AMP.ENABLED = True
    assert amp_dtype(cfg) is expected


@pytest.mark.parametrize(
    "classes, asked, expected",
    [(19, "auto", torch.float32), (150, "auto", torch.float16), (150, "float32", torch.float32)],
)
def test_a_large_memory_is_in_half_precision(monkeypatch, classes, asked, expected):
    """A thousandth of the paper's 32 000 slots, and of the limit: 0.78 and 6.1 MB in single precision."""
    monkeypatch.setattr(gmm_module, "LARGE_MEMORY", gmm_module.LARGE_MEMORY / 1000)
    keys = ["MODEL.GMM.MEMORY_SIZE", 32, "MODEL.GMM.MEMORY_DTYPE", asked]
    cfg = build_config(None, ["MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NUM_CLASSES", classes, *keys])
    assert gmm_module.gmm(cfg, 96).bank.memory.ring.dtype is expected


def test_a_network_without_a_loss_is_refused():
    with pytest.raises(ValueError, match="FEATURE_GRADIENT 0 leaves backbone and decoder without a loss"):
        classifier(feature_gradient=0.0)

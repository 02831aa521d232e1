"""MODEL.COMPILE: the same losses, gradients and outputs as without, and clear words where it cannot work."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.train_loop import FeatureWatch
from gmm_anomaly.modeling import AnomalySegmentor, SoftmaxClassifier, segmentor
from gmm_anomaly.modeling.decoders.base import Decoded
from gmm_anomaly.modeling.segmentor import compiled_pixel_features
from tests.modeling.conftest import batch

CLASSES = 3
# Of graphs, in place of torch's 8.
LIMIT = 4


class Backbone(nn.Module):
    size_divisibility = 4

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU())

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"level1": ShapeSpec(channels=8, stride=4)}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"level1": self.stem(images)}


class Decoder(nn.Module):
    """With dropout and an auxiliary loss."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(8, 6, 1)
        self.dropout = nn.Dropout2d(0.3)

    def forward(self, pyramid: dict[str, torch.Tensor], labels: torch.Tensor | None = None) -> Decoded:
        features = self.dropout(self.mix(pyramid["level1"]))
        return Decoded(features, {} if labels is None else {"loss_aux": features.square().mean()})


def network(*, compiled: bool) -> AnomalySegmentor:
    torch.manual_seed(0)
    return AnomalySegmentor(
        backbone=Backbone(), decoder=Decoder(), classifier=SoftmaxClassifier(6, CLASSES),
        pixel_mean=[127.0] * 3, pixel_std=[64.0] * 3, compiled=compiled,
    )  # fmt: skip


@pytest.fixture
def captured(monkeypatch):
    """Compile through the same path without a C++ compiler; lists the graphs that were captured."""
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(segmentor, "compiled_pixel_features", lambda: compiled_pixel_features(backend))
    with torch._dynamo.config.patch(recompile_limit=LIMIT):
        yield graphs
    torch._dynamo.reset()


def test_same_losses_gradients_and_outputs_of_any_size(captured):
    plain, compiled = network(compiled=False), network(compiled=True)
    assert list(compiled.state_dict()) == list(plain.state_dict()), "checkpoints fit both"
    watch = FeatureWatch(compiled)
    compiled = compiled.to(memory_format=torch.channels_last)
    captures = []
    for count, height, width in ((2, 16, 24), (3, 24, 16), (4, 20, 32), (5, 28, 12)):
        inputs = batch(*[(height, width)] * count, classes=CLASSES)
        losses = []
        for model in (plain, compiled):
            model.train().zero_grad()
            torch.manual_seed(1)
            losses.append(model(inputs))
            sum(losses[-1].values()).backward()
        assert set(losses[0]) == {"loss_ce", "loss_aux"}
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-4)
        for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4, msg=name)
        torch.testing.assert_close(
            compiled.backbone.stem[1].running_var, plain.backbone.stem[1].running_var, rtol=1e-4, atol=1e-4
        )
        with torch.no_grad():
            found = compiled.eval()(inputs)
            for one, other in zip(plain.eval()(inputs), found, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)
        assert watch.take(torch.device("cpu")).isfinite().all(), "hooks run as they do without"
        captures.append(len(captured))
    # One graph for training and one for inference, of each size up to the limit.
    assert captures == [2, 4, 4, 4]


def test_a_feature_that_is_not_finite_is_noticed(captured):
    model = network(compiled=True).train()
    watch = FeatureWatch(model)
    with torch.no_grad():
        model.decoder.mix.bias[0] = float("nan")
    model(batch(*[(16, 24)] * 2, classes=CLASSES))
    assert watch.take(torch.device("cpu")).isfinite().tolist() == [True, False]


def test_config_asks_for_it_and_only_where_it_works(config, monkeypatch, tmp_path):
    assert config().MODEL.COMPILE is False
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    with pytest.raises(ValueError, match=r"MODEL.COMPILE: .* C\+\+ compiler .*no-compiler.*; install it"):
        build_model(config("MODEL.COMPILE", True))
    with pytest.raises(ValueError, match="MODEL.COMPILE: expected False"):
        build_config("", ["MODEL.META_ARCHITECTURE", "MaskAnomalySegmentor", "MODEL.COMPILE", True])

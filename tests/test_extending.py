"""The parts that docs/extending.md registers are found by their names and work in a model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, build_model

from gmm_anomaly.data import get_records
from gmm_anomaly.data.registration import registered_specs
from gmm_anomaly.engine import EMHook, build_config
from gmm_anomaly.modeling import CLASSIFIER_REGISTRY, DECODER_REGISTRY
from gmm_anomaly.scores import SCORE_REGISTRY, PixelOutputs, get_scores, registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def parts(monkeypatch):
    """What the page's blocks define, run as one file; registries are as before afterwards."""
    for known in (SCORE_REGISTRY, CLASSIFIER_REGISTRY, DECODER_REGISTRY, BACKBONE_REGISTRY):
        monkeypatch.setattr(known, "_obj_map", dict(known._obj_map))
    monkeypatch.setattr(registry, "_NEEDS", dict(registry._NEEDS))
    names: dict[str, object] = {"__name__": "my_parts"}
    exec("\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.S)), names)
    return names


@pytest.fixture
def config(parts, tmp_path, monkeypatch):
    """The page's command line as a config, with small frames and random weights."""
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:4] == ["python", "train_net.py", "--register", "my_parts.py"]
    overrides = words[words.index("--config-file") + 2 :]
    tiny = ["MODEL.DEVICE", "cpu", "MODEL.GMM.WARM_START_FEATURES", "20", "OUTPUT_DIR", str(tmp_path)]
    return build_config(words[words.index("--config-file") + 1], [*overrides, *tiny])


def test_backbone_and_decoder_train_and_predict_with_the_score(config):
    model = build_model(config)
    EMHook(model.bank)
    assert type(model.backbone).__name__ == "PlainBackbone" and type(model.decoder).__name__ == "SumDecoder"
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 80, 80), dtype=torch.uint8, generator=generator)
    label = torch.arange(80)[:, None].expand(80, 80) // 8
    sum(model([{"image": image, "sem_seg": label}]).values()).backward()
    for part in (model.backbone, model.decoder):
        assert all(parameter.grad.abs().sum() > 0 for parameter in part.parameters())
    model.bank.update()
    # Neither side is a multiple of the backbone's stride.
    with torch.no_grad():
        (output,) = model.eval()([{"image": image[:, :61, :51], "height": 61, "width": 51}])
    assert output["sem_seg"].shape == (10, 61, 51)
    score = get_scores(["margin"], given={"logits"})["margin"](PixelOutputs(output["sem_seg"]))
    ordered = np.sort(output["sem_seg"].numpy(), axis=0)
    np.testing.assert_array_equal(score.numpy(), ordered[-2] - ordered[-1])


def test_the_loss_is_added_to_its_classifiers(config):
    config.defrost()
    config.merge_from_list(["MODEL.CLASSIFIER.NAME", "logit_norm", "TEST.SCORES", []])
    model = build_model(config)
    image, label = torch.full((3, 64, 64), 9.0), torch.zeros(64, 64, dtype=torch.int64)
    label[:, 32:] = 255
    losses = model([{"image": image, "sem_seg": label}])
    assert set(losses) == {"loss_ce", "loss_length"} and float(losses["loss_length"].detach()) > 0
    losses["loss_length"].backward()
    assert model.classifier.predictor.weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert list(model.eval()([{"image": image}])[0]["anomaly_scores"])[0] == "msp"


def test_data_sets_are_registered_and_read(parts, tmp_path, monkeypatch):
    import cv2

    monkeypatch.chdir(tmp_path)
    for folder, suffix in (("images", ""), ("labels", "_ids")):
        (tmp_path / "courtyard" / folder).mkdir(parents=True)
        cv2.imwrite(f"courtyard/{folder}/a{suffix}.png", np.zeros((4, 4), np.uint8))
    (record,) = get_records("courtyard_train")
    assert record["file_name"] == str(tmp_path / "courtyard" / "images" / "a.png")
    assert record["sem_seg_file_name"] == str(tmp_path / "courtyard" / "labels" / "a_ids.png")
    assert registered_specs()["courtyard_anomalies"].protocol == "per_image"

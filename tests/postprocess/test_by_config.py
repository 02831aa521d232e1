"""Post-processes by config: names, data sets, and scores with and without them."""

from __future__ import annotations

import pytest
import torch

from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.evaluation import reported_scores
from gmm_anomaly.modeling.scoring import Scoring
from gmm_anomaly.postprocess import apply_chain, get_postprocesses
from gmm_anomaly.scores import PixelOutputs

CHAIN = ["boundary_suppression", "dilated_smoothing"]
CONFIG = "configs/synthetic/effnetlite0_deeplabv3plus_softmax.yaml"


def config(tmp_path, overrides="", *pairs):
    file = tmp_path / "own.yaml"
    file.write_text(
        "TEST:\n  SCORES: [msp, energy]\n  POSTPROCESS: [boundary_suppression, dilated_smoothing]\n"
        + overrides
    )
    return build_config(str(file), ["MODEL.CLASSIFIER.NAME", "softmax", *pairs])


def test_each_score_is_reported_without_and_with_them(tmp_path):
    cfg = config(
        tmp_path,
        "  POSTPROCESS_OVERRIDES:\n    road_anomaly: []\n    camvid_ood_test: [gaussian_smoothing]\n",
    )
    assert reported_scores(cfg, "synthetic_street_anomaly") == [
        "msp",
        "energy",
        "msp+boundary_suppression+dilated_smoothing",
        "energy+boundary_suppression+dilated_smoothing",
    ]
    assert reported_scores(cfg, "road_anomaly") == ["msp", "energy"]
    assert reported_scores(cfg, "camvid_ood_test")[2:] == [
        "msp+gaussian_smoothing",
        "energy+gaussian_smoothing",
    ]
    # The config that a run writes can be read again.
    again = tmp_path / "config.yaml"
    again.write_text(cfg.dump())
    assert reported_scores(build_config(str(again)), "road_anomaly") == ["msp", "energy"]
    assert not any("+" in name for name in reported_scores(build_config(), "road_anomaly"))


@pytest.mark.parametrize(
    "overrides, pairs, message",
    [
        ("", ("TEST.POSTPROCESS", ["smooth"]), r"TEST\.POSTPROCESS: unknown post-process 'smooth'"),
        ("  POSTPROCESS_OVERRIDES: {raod_anomaly: []}\n", (),
         r"POSTPROCESS_OVERRIDES\.raod_anomaly: unknown data set .*Did you mean 'road_anomaly'"),
        ("  POSTPROCESS_OVERRIDES: {road_anomaly: [smooth]}\n", (),
         r"POSTPROCESS_OVERRIDES\.road_anomaly: unknown post-process 'smooth'"),
        ("  POSTPROCESS_OVERRIDES: {road_anomaly: gaussian_smoothing}\n", (), "expected a list of post-proc"),
    ],
)  # fmt: skip
def test_wrong_names_are_found_before_training(tmp_path, overrides, pairs, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, overrides, *pairs)


def test_a_model_gives_both_and_uses_its_own_prediction():
    names = ["msp", "energy"]
    logits = torch.rand(4, 40, 50, generator=torch.Generator().manual_seed(0))
    plain = Scoring(names, given={"logits"})
    both = Scoring(names, given={"logits"}, chains=[CHAIN, ["gaussian_smoothing"]])
    maps = plain.stacked(PixelOutputs(logits))
    item = {"image": torch.zeros(3, 20, 25, dtype=torch.uint8)}
    plain, both = plain.result(item, logits, maps), both.result(item, logits, maps)
    chains = [get_postprocesses(CHAIN), get_postprocesses(["gaussian_smoothing"])]
    assert list(both["anomaly_scores"]) == names + [
        "+".join([name, *chain]) for chain in chains for name in names
    ]
    assert torch.equal(both["anomaly_score"], plain["anomaly_score"])
    for name, score in plain["anomaly_scores"].items():
        assert torch.equal(both["anomaly_scores"][name], score)
        for chain in chains:
            expected = apply_chain(score, logits.argmax(0), item["image"], chain)
            torch.testing.assert_close(both["anomaly_scores"]["+".join([name, *chain])], expected)


def test_scores_that_are_not_finite_stop_or_count_as_anomalous():
    logits = torch.rand(3, 4, 5)
    logits[:, 1, 2] = torch.nan
    logits[:, 2, 2] = torch.inf
    options = {"given": {"logits"}, "non_finite": "anomalous"}
    scoring = Scoring(["max_logit"], **options)
    maps = scoring.stacked(PixelOutputs(logits))
    found = scoring.result({}, logits, maps)["anomaly_score"]
    finite = maps[0].isfinite()
    assert torch.equal(found[finite], maps[0][finite])
    assert found[~finite].tolist() == [float(maps[0][finite].max())] * 2
    with pytest.raises(FloatingPointError, match=r"image 'a'.*'max_logit' .* at 2 of 20 pixels; .*anomalous"):
        Scoring(["max_logit"], given={"logits"}).result({"image_id": "a"}, logits, maps)

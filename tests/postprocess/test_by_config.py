"""Post-processes by config: names, data sets, and scores with and without them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gmm_anomaly.engine import build_config
from gmm_anomaly.evaluation.postprocessing import postprocesses_for, reported_scores
from gmm_anomaly.evaluation.scoring import AnomalyScorer
from gmm_anomaly.postprocess import apply_chain, get_postprocesses

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
    assert postprocesses_for(cfg, "synthetic_street_anomaly") == CHAIN
    assert reported_scores(cfg, "synthetic_street_anomaly") == [
        "msp",
        "energy",
        "msp+boundary_suppression+dilated_smoothing",
        "energy+boundary_suppression+dilated_smoothing",
    ]
    assert reported_scores(cfg, "road_anomaly") == ["msp", "energy"]
    # Closed sets measure no score.
    assert postprocesses_for(cfg, "synthetic_street_val") == []
    assert reported_scores(cfg, "camvid_ood_test")[2:] == [
        "msp+gaussian_smoothing",
        "energy+gaussian_smoothing",
    ]
    # The config that a run writes can be read again.
    again = tmp_path / "config.yaml"
    again.write_text(cfg.dump())
    assert reported_scores(build_config(str(again)), "road_anomaly") == ["msp", "energy"]
    assert postprocesses_for(build_config(), "road_anomaly") == []


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


class MaskModel(nn.Module):
    """Gives fixed outputs, as a mask model does."""

    gives_masks = True

    def forward(self, batched_inputs):
        generator = torch.Generator().manual_seed(0)
        return [
            {
                "sem_seg": torch.rand(4, 40, 50, generator=generator),
                "mask_logits": torch.randn(3, 40, 50, generator=generator),
                "class_logits": torch.randn(3, 5, generator=generator),
                "anomaly_queries": (), "road_queries": (),
            }
            for _ in batched_inputs
        ]  # fmt: skip


def test_scorer_gives_both_and_uses_the_models_own_prediction():
    plain = AnomalyScorer(MaskModel(), ["rba", "msp"])([{}])[0]
    both = AnomalyScorer(MaskModel(), ["rba", "msp"], CHAIN)([{}])[0]
    assert list(both["anomaly_scores"]) == [
        "rba", "msp", *(f"{name}+boundary_suppression+dilated_smoothing" for name in ("rba", "msp"))
    ]  # fmt: skip
    assert torch.equal(both["anomaly_score"], plain["anomaly_score"])
    prediction = plain["sem_seg"].argmax(0)
    for name, score in plain["anomaly_scores"].items():
        assert torch.equal(both["anomaly_scores"][name], score)
        expected = apply_chain(score, prediction, get_postprocesses(CHAIN))
        torch.testing.assert_close(
            both["anomaly_scores"][f"{name}+boundary_suppression+dilated_smoothing"], expected
        )

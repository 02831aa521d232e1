"""Scores of mask models against the numbers of the reference code, hand-worked cases and float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from gmm_anomaly.scores import (
    LOGITS,
    SCORE_REGISTRY,
    MaskOutputs,
    PixelOutputs,
    get_scores,
    mask_void_score,
    maskomaly_score,
    rba_score,
    semantic_map,
)
from gmm_anomaly.scores.masks import _warn_without_queries


@pytest.fixture(scope="module")
def golden(data_dir):
    """Outputs of the public implementations on random inputs: 100 queries, 19 classes, 20 x 28 pixels."""
    with np.load(data_dir / "maskomaly.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def inputs(golden):
    return golden["mask_logits"], golden["class_logits"]


def close(score, expected):
    assert score.dtype == torch.float32
    torch.testing.assert_close(score.double(), expected.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, anomaly, road",
    [
        ("maskomaly_default", "default_anomaly_idx", "default_ground_idx"),
        ("maskomaly_alt", "alt_anomaly_idx", "alt_ground_idx"),
        ("maskomaly_noidx", None, None),
    ],
)
def test_maskomaly_is_the_reference(golden, name, anomaly, road):
    sets = [golden[key].tolist() if key else () for key in (anomaly, road)]
    close(maskomaly_score(*inputs(golden), *sets), golden[name])


def test_scores_on_the_semantic_map_are_the_reference(golden):
    evidence = semantic_map(*inputs(golden))
    close(evidence, golden["semantic_map"])
    close(rba_score(*inputs(golden)), golden["rba_score"])
    close(mask_void_score(*inputs(golden)), golden["m2a_plain_1_minus_max19"])
    close(SCORE_REGISTRY.get("energy")(PixelOutputs(evidence)), golden["energy_of_semantic_map"])


def logit(probability):
    return torch.as_tensor(special.logit(probability), dtype=torch.float32)


def one_pixel(*queries, classes=3):
    """(Q, 1, 1) mask logits and (Q, C + 1) class logits of ``(mask, best class, its probability)``."""
    masks = torch.stack([logit(mask) for mask, _, _ in queries]).view(-1, 1, 1)
    rows = torch.empty(len(queries), classes + 1)
    for row, (_, best, probability) in zip(rows, queries, strict=True):
        row.fill_(np.log((1 - probability) / classes))
        row[best] = np.log(probability)
    return masks, rows


VOID = 3


@pytest.mark.parametrize(
    "queries, anomaly, road, expected",
    [
        # One accepted query, one anomaly query of the class "no object".
        ([(0.9, 0, 0.95), (0.2, VOID, 0.9)], (1,), (), 0.6 * (1 - 0.9 * 0.95) + 0.4 * 0.2 * 0.9),
        # Nothing accepted: 0.6 is the probability of its best class.
        ([(0.9, 0, 0.6), (0.9, VOID, 1 - 1e-7)], (1,), (), 0.96),
        # A border: two known masks above 0.1, however improbable their classes.
        ([(0.3, 0, 0.5), (0.2, 1, 0.5), (0.5, VOID, 0.8)], (2,), (), 0.4 * 0.5 * 0.8),
        # No border with one mask above 0.1, nor with a query of "no object".
        ([(0.3, 0, 0.5), (0.09, 1, 0.5), (0.9, VOID, 0.9)], (), (), 0.6),
        # A query of "no object" rejects nothing, unless it is a road query.
        ([(0.99, VOID, 0.99)], (), (), 0.6),
        ([(0.9, VOID, 0.8)], (), (0,), 0.6 * (1 - 0.9 * 0.8)),
        # The strongest of several rejects.
        ([(0.05, 0, 0.9), (0.8, 0, 0.75)], (), (), 0.6 * (1 - 0.8 * 0.75)),
    ],
)
def test_maskomaly_by_hand(queries, anomaly, road, expected):
    assert float(maskomaly_score(*one_pixel(*queries), anomaly, road)) == pytest.approx(expected, abs=1e-5)


def test_half_precision_inputs_are_scored_in_float32(golden):
    masks, classes = (tensor.half() for tensor in inputs(golden))
    for score in (maskomaly_score, rba_score, mask_void_score):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = score(masks, classes)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, score(masks.float(), classes.float()))


@pytest.mark.parametrize("score", [maskomaly_score, rba_score, mask_void_score])
def test_shapes_that_do_not_belong_together_are_named(score, golden):
    masks, classes = inputs(golden)
    for wrong in ((masks[:5], classes), (masks[None], classes), (masks, classes[:, :1])):
        with pytest.raises(ValueError, match=r"mask_logits \(Q, H, W\) and class_logits \(Q, C \+ 1\)"):
            score(*wrong)


def test_queries_that_do_not_exist_are_named(golden):
    for name in ("anomaly_queries", "road_queries"):
        with pytest.raises(ValueError, match=rf"{name}: expected indices from 0 to 99, found \[100\]"):
            maskomaly_score(*inputs(golden), **{name: (3, 100)})


def outputs(golden, **sets):
    return PixelOutputs(semantic_map(*inputs(golden)), masks=MaskOutputs(*inputs(golden), **sets))


def test_maskomaly_without_queries_warns_once(golden, caplog):
    _warn_without_queries.cache_clear()
    score = SCORE_REGISTRY.get("maskomaly")
    with caplog.at_level("WARNING"):
        score(outputs(golden, anomaly_queries=(1,)))
        assert not caplog.records
        for _ in range(2):
            close(score(outputs(golden)), golden["maskomaly_noidx"])
    assert len(caplog.records) == 1
    assert "`gmm-anomaly find-queries` and set MODEL.MASK2FORMER.ANOMALY_QUERIES" in caplog.text


def test_mask_scores_need_a_mask_model():
    with pytest.raises(ValueError, match="'mask_void' needs masks.*MaskAnomalySegmentor.*score by .*energy"):
        get_scores(["mask_void"], given={LOGITS})

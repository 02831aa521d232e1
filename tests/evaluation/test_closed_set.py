"""ClosedSetEvaluator against scikit-learn and a loop over classes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from detectron2.evaluation.testing import flatten_results_dict
from sklearn.metrics import confusion_matrix

from gmm_anomaly.evaluation import ClosedSetEvaluator
from gmm_anomaly.evaluation.closed_set import predict_classes


@pytest.fixture
def logits(closed_tree):
    generator = torch.Generator().manual_seed(3)
    found = {}
    for image_id, label in closed_tree.labels.items():
        noise = torch.randn((4, *label.shape), generator=generator)
        truth = torch.tensor(np.where(label == 255, 0, label)).long()
        found[image_id] = noise + 1.5 * torch.nn.functional.one_hot(truth, 4).permute(2, 0, 1)
    return found


def feed(evaluator, tree, logits):
    for image_id in tree.image_ids:
        evaluator.process(tree.inputs(image_id), [{"sem_seg": logits[image_id]}])
    return evaluator


def test_numbers_equal_scikit_learn(closed_tree, logits):
    results = feed(ClosedSetEvaluator(closed_tree.name), closed_tree, logits).evaluate()
    assert list(results) == ["sem_seg"]
    found = results["sem_seg"]
    label = np.concatenate([closed_tree.labels[one].ravel() for one in closed_tree.image_ids])
    joined = torch.cat([logits[one].reshape(4, -1) for one in closed_tree.image_ids], dim=1).double()
    prediction = joined.argmax(0).numpy()
    valid = label != 255
    matrix = confusion_matrix(label[valid], prediction[valid], labels=range(4)).astype(float)
    right, labelled = np.diag(matrix), matrix.sum(axis=1)
    iou = right / (labelled + matrix.sum(axis=0) - right)
    for number, name in enumerate(("road", "car", "sky", "tree")):
        assert found[f"IoU-{name}"] == pytest.approx(100 * iou[number])
        assert found[f"ACC-{name}"] == pytest.approx(100 * right[number] / labelled[number])
    assert found["mIoU"] == pytest.approx(100 * iou.mean())
    assert found["fwIoU"] == pytest.approx(100 * (iou * labelled).sum() / labelled.sum())
    assert found["mACC"] == pytest.approx(100 * (right / labelled).mean())
    assert found["pACC"] == pytest.approx(100 * right.sum() / labelled.sum())

    confidence = joined.softmax(0).amax(0).numpy()[valid]
    hit = (prediction == label)[valid]
    bins = np.ceil(confidence * 15).astype(int)
    gaps = [
        abs(hit[bins == one].mean() - confidence[bins == one].mean()) * (bins == one).mean()
        for one in set(bins)
    ]
    assert found["ECE"] == pytest.approx(100 * sum(gaps), abs=1e-4)
    assert all(type(value) is float for value in flatten_results_dict(results).values())


@pytest.mark.parametrize("classes", [1, 3, 256, 300])
def test_predicted_classes_are_the_softmax_argmax(classes, monkeypatch):
    monkeypatch.setattr("gmm_anomaly.evaluation.closed_set._CPU_CHUNK", 50)
    # Whole numbers tie often: the lowest class wins, as in torch.argmax.
    logits = torch.randint(-3, 4, (classes, 13, 17), generator=torch.Generator().manual_seed(1)).float()
    prediction, confidence = predict_classes(logits)
    probability = logits.double().softmax(0)
    assert np.array_equal(prediction, np.argmax(logits.numpy(), axis=0))
    assert np.allclose(confidence, probability.amax(0).numpy(), rtol=1e-5)


def test_logits_of_any_size_give_finite_confidences():
    logits = torch.tensor([[[1e4, -1e4, 0.0]], [[-1e4, 1e4, 0.0]]])
    prediction, confidence = predict_classes(logits)
    assert prediction.tolist() == [[0, 1, 0]]
    assert confidence.tolist() == [[1.0, 1.0, 0.5]]


def test_overlays_have_the_palette(closed_tree, logits, tmp_path):
    evaluator = ClosedSetEvaluator(closed_tree.name, output_dir=tmp_path, num_visualizations=3)
    feed(evaluator, closed_tree, logits).evaluate()
    folder = tmp_path / "visualizations" / closed_tree.name
    assert sorted(path.stem for path in folder.iterdir()) == closed_tree.image_ids[:3]
    picture = cv2.imread(str(folder / "frame_01.png"))[..., ::-1].astype(float)
    image = cv2.imread(str(closed_tree.root / "images" / "frame_01.png"))[..., ::-1].astype(float)
    height, width = image.shape[:2]
    palette = np.array([(128, 64, 128), (0, 0, 142), (70, 130, 180), (107, 142, 35), (0, 0, 0)], float)
    label = closed_tree.labels["frame_01"]
    truth = palette[np.where(label == 255, 4, label)]
    predicted = palette[logits["frame_01"].argmax(0).numpy()]
    assert np.abs(picture[-height:, width + 4 : 2 * width + 4] - (0.25 * image + 0.75 * truth)).max() <= 0.5
    assert np.abs(picture[-height:, -width:] - (0.25 * image + 0.75 * predicted)).max() <= 0.5


def test_outputs_that_cannot_be_counted_are_named(closed_tree, anomaly_tree, logits):
    good = logits["frame_00"]
    nan, infinite = good.clone(), good.clone()
    nan[2, 3, 4], infinite[2, 3, 4] = float("nan"), float("inf")
    for given, message in (
        (good[:3], r"'frame_00': sem_seg must be \(4, 17, 23\).*found \(3, 17, 23\)"),
        (good[..., 1:], r"\(4, 17, 23\).*found \(4, 17, 22\)"),
        (nan, "'frame_00': the logits of 1 pixels are NaN or infinite"),
        (infinite, "'frame_00': the logits of 1 pixels are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            ClosedSetEvaluator(closed_tree.name).process(closed_tree.inputs("frame_00"), [{"sem_seg": given}])
    with pytest.raises(ValueError, match="evaluator_type 'closed_set', found 'anomaly'"):
        ClosedSetEvaluator(anomaly_tree.name)
    with pytest.raises(ValueError, match="output_dir"):
        ClosedSetEvaluator(closed_tree.name, num_visualizations=1)

"""The predictor against the evaluation, its inputs, batches and thresholds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from gmm_anomaly import AnomalyPredictor
from gmm_anomaly.data import build_test_loader, get_records, register_segmentation_dataset
from gmm_anomaly.data.reading import read_label
from gmm_anomaly.engine import Checkpointer, build_config
from gmm_anomaly.predict.threshold import Threshold, find_threshold

SIZE = (44, 60)
CHAIN = ["boundary_suppression", "gaussian_smoothing"]


@pytest.mark.parametrize("image_format, score", [("RGB", "energy+" + "+".join(CHAIN)), ("BGR", "msp")])
@torch.no_grad()
def test_scores_are_the_evaluations_own(trained, anomaly_set, image_format, score):
    opts = ["INPUT.FORMAT", image_format, "TEST.POSTPROCESS", str(CHAIN)]
    cfg = build_config(trained.config, ["MODEL.WEIGHTS", trained.weights, *opts])
    assert cfg.INPUT.MIN_SIZE_TEST > SIZE[0]
    model = build_model(cfg).eval()
    Checkpointer(model).load_for_evaluation(trained.weights)
    predictor = AnomalyPredictor.from_config(trained.config, trained.weights, score=score, opts=opts)
    for (item,) in build_test_loader(cfg, anomaly_set):
        (output,) = model([item])
        found = predictor(item["file_name"])
        assert found.score.dtype == np.float32 and found.score.shape == SIZE
        assert found.source == item["file_name"]
        np.testing.assert_array_equal(found.score, output["anomaly_scores"][score].numpy())
        np.testing.assert_array_equal(found.segmentation, output["sem_seg"].argmax(dim=0).numpy())
    assert len(np.unique(found.score)) > 100 and len(np.unique(found.segmentation)) > 1


def test_every_kind_of_image_gives_the_same(predictor, make_picture, save_rgb, tmp_path):
    image = make_picture(3)
    expected = predictor(image).score
    path = save_rgb(tmp_path / "a.png", image)
    turned = Image.fromarray(np.rot90(image).copy())
    turned.getexif()[274] = 6  # a quarter turn clockwise shows it upright
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
    for given in (path, Image.fromarray(image), turned, tensor, np.asfortranarray(image)):
        found = predictor(given)
        np.testing.assert_array_equal(found.score, expected)
        np.testing.assert_array_equal(found.image, image)
    bgr = image[..., ::-1]
    np.testing.assert_array_equal(predictor(bgr, format="BGR").score, expected)
    assert not np.array_equal(predictor(bgr).score, expected)


def test_other_things_are_named(predictor, make_picture):
    for image, error, message in (
        (np.zeros((4, 5), np.uint8), ValueError, r"expected an \(H, W, 3\).*found \(4, 5\) uint8.*np.stack"),
        (np.zeros((4, 5, 3), np.float32), ValueError, r"found \(4, 5, 3\) float32.*times 255"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), ValueError, r"predict\(\)"),
        (3, TypeError, "found int"),
        ("none.png", FileNotFoundError, "no image none.png"),
    ):
        with pytest.raises(error, match=message):
            predictor(image)
    with pytest.raises(ValueError, match="RGB, BGR, found 'GRB'"):
        predictor(make_picture(0), format="GRB")


def test_order_and_batches(predictor, make_picture):
    sizes = [SIZE, SIZE, (50, 40), (50, 40), SIZE]
    images = [make_picture(seed, size) for seed, size in enumerate(sizes)]
    alone = [predictor(image) for image in images]
    seen = []

    def given():
        for index, image in enumerate(images):
            seen.append(index)
            yield image

    stream = predictor.stream(given(), batch_size=4)
    first = next(stream)
    # As soon as a size changes, what was gathered is predicted; nothing is read ahead of that.
    assert seen == [0, 1, 2]
    batched = [first, *stream]
    for one, other in zip(alone, batched, strict=True):
        assert one.score.shape == other.score.shape
        np.testing.assert_allclose(one.score, other.score, rtol=1e-4, atol=1e-4)
    assert [len(predictor.predict(images[:n], batch_size=2)) for n in (0, 1, 3)] == [0, 1, 3]
    with pytest.raises(ValueError, match="image number 2: image: expected"):
        predictor.predict([images[0], images[1][0]])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        predictor.predict(images, batch_size=0)


def test_half_precision_is_near(trained, predictor, make_picture):
    half = AnomalyPredictor.from_config(trained.config, trained.weights, half=True, device="cpu")
    image = make_picture(1)
    full, found = predictor(image).score, half(image).score
    assert found.dtype == np.float32 and not np.array_equal(found, full)
    # bfloat16 keeps 8 bits.
    assert np.corrcoef(found.ravel(), full.ravel())[0, 1] > 0.95


def test_threshold_lets_the_target_share_through(trained, anomaly_set, make_picture, tmp_path):
    predictor = AnomalyPredictor.from_config(trained.config, trained.weights)
    with pytest.raises(ValueError, match="components need a threshold"):
        _ = predictor(make_picture(0)).components
    metadata = MetadataCatalog.get(anomaly_set)
    scored = [(predictor(r["file_name"]).score, read_label(r, metadata)) for r in get_records(anomaly_set)]
    known = np.concatenate([score[label == 0] for score, label in scored])
    for target in (0.05, 0.3):
        found = predictor.fit_threshold(anomaly_set, target_fpr=target)
        share = (known > found.value).mean()
        assert found.value in known and share <= target and share == pytest.approx(found.measured_fpr)
        # The next lower score would let too many through.
        below = known[known < found.value].max()
        assert (known > below).mean() > target or (known == found.value).sum() > 1
        assert predictor.threshold == found.value and found.known_pixels == len(known)
    file = tmp_path / "threshold.json"
    found.save(file)
    assert Threshold.load(file) == found
    again = AnomalyPredictor.from_config(trained.config, trained.weights, threshold=file)
    result = again(make_picture(0))
    assert again.color_range == found.color_range
    covered = np.zeros(SIZE, bool)
    for component in result.components_above(found.value, min_area=0):
        covered |= component.mask
    np.testing.assert_array_equal(covered, result.score > found.value)
    with pytest.raises(ValueError, match="found for the score 'energy', the predictor gives 'msp'"):
        AnomalyPredictor.from_config(trained.config, trained.weights, score="msp", threshold=file)
    again.weights_sha256 = "other"
    with pytest.raises(ValueError, match="found with other weights"):
        again.use_threshold(file)
    with pytest.raises(ValueError, match="unknown data set 'nowhere'"):
        predictor.fit_threshold("nowhere")
    with pytest.raises(ValueError, match="target_fpr: expected a share"):
        predictor.fit_threshold(anomaly_set, target_fpr=5)
    with pytest.raises(ValueError, match="threshold: expected a number"):
        predictor.use_threshold(float("nan"))
    with pytest.raises(FileNotFoundError, match="no threshold file none.json"):
        predictor.use_threshold("none.json")
    for text in ("nothing", "[1]", '{"value": 1}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="threshold.json: not a threshold file"):
            predictor.use_threshold(file)


def test_of_a_closed_set_every_labelled_pixel_is_known(predictor, anomaly_set, tmp_path):
    name = f"{anomaly_set}_classes"
    folders = [str(tmp_path / "set" / part) for part in ("images", "labels")]
    register_segmentation_dataset(name, *folders, classes=["road", "car"])
    labels = [np.asarray(Image.open(path)) for path in (tmp_path / "set" / "labels").iterdir()]
    found = predictor.fit_threshold(name, 0.1)
    predictor.threshold = predictor.color_range = None
    assert found.known_pixels == sum(int((label != 255).sum()) for label in labels) and found.images == 3


def test_ties_are_not_split():
    frames = [(np.array([[1.0, 2, 100]]), np.array([[True, True, False]]))]
    for last, value, above in (((3.0, 4.0), 3.0, 0.25), ((4.0, 4.0), 4.0, 0.0)):
        given = [*frames, (np.array([[100.0, *last]]), np.array([[False, True, True]]))]
        found = find_threshold([(s.astype(np.float32), k) for s, k in given], 0.25, score="a", dataset="b")
        assert (found.value, found.measured_fpr, found.known_pixels, found.images) == (value, above, 4, 2)
    with pytest.raises(ValueError, match="b: no known pixel"):
        find_threshold([(frames[0][0], ~frames[0][1])][:0], 0.25, score="a", dataset="b")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"config": "configs/none.yaml"}, FileNotFoundError, "no file configs/none.yaml, here or in"),
        ({"weights": None}, ValueError, r"no weights were given.*five minutes.*gmm-anomaly train"),
        ({"weights": "none.pth"}, FileNotFoundError, "none.pth"),
        ({"score": "gmm_density"}, ValueError, "'gmm_density' needs class densities"),
        ({"device": "cuda:99"}, ValueError, "device: expected cpu, cuda.*found 'cuda:99'"),
    ],
)
def test_what_cannot_work_is_said(trained, arguments, error, message):
    given = {"config": trained.config, "weights": trained.weights} | arguments
    with pytest.raises(error, match=message):
        AnomalyPredictor.from_config(**given)

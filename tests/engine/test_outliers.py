"""Outlier exposure: what is pasted, the ratio of densities in float64, and detectors fitted with objects."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.metrics import roc_auc_score

from gmm_anomaly.cli import main
from gmm_anomaly.data import SegmentationMapper, outliers
from gmm_anomaly.data.outliers import OUTLIER_LABEL, PasteOutliers, get_source, rendered
from gmm_anomaly.data.stream import seeded
from gmm_anomaly.data.streets.datasets import StreetSplit
from gmm_anomaly.engine import Checkpointer, build_config, fit_feature_distance, fit_outliers
from gmm_anomaly.engine.fit_detector import CONFIG, fit_detector
from gmm_anomaly.engine.outliers import cells, pasted
from gmm_anomaly.gmm import TiedGaussians, TiedGaussianStatistics, UnfittedMixtureError
from gmm_anomaly.modeling.losses import pixel_cross_entropy
from gmm_anomaly.modeling.outlier_head import AXIS, PENALTY, OutlierHead
from gmm_anomaly.scores import PixelOutputs, get_scores

TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "test_efficientnet", "MODEL.BACKBONE.WEIGHTS", "",
    "INPUT.MIN_SIZE_TEST", "320", "INPUT.MAX_SIZE_TEST", "320", "MODEL.FEATURE_DISTANCE.COMPONENTS", "4",
    "MODEL.OUTLIER.NAME", "gmm",
    "INPUT.OUTLIERS.HEIGHTS", "[0.3, 0.5]", "INPUT.OUTLIERS.OBJECTS", "[1, 2]",
]  # fmt: skip


@pytest.fixture(scope="module")
def streets():
    return [np.ascontiguousarray(StreetSplit("outliers", 3, 7, 160, 320)[index][0]) for index in range(3)]


def item(street, index=0):
    image = torch.from_numpy(street.transpose(2, 0, 1).copy())
    return {"image": image, "sem_seg": torch.zeros(image.shape[1:], dtype=torch.int64), "index": index}


def statistics(features):
    found = TiedGaussianStatistics(1, features.shape[1])
    found.add(features, torch.zeros(len(features), dtype=torch.int64))
    return found


@pytest.fixture(scope="module")
def fitted():
    """Features of two known classes and of outliers: (n, 5) each, and a head of each kind on them."""
    generator = torch.Generator().manual_seed(3)
    known = torch.randn(2, 60, 5, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    known[1] += 4
    outliers = 1.5 * torch.randn(35, 5, generator=generator) + torch.tensor([0.0, 6.0, 0.0, -3.0, 0.0])
    gaussians, classes = TiedGaussians(2, 5), TiedGaussianStatistics(2, 5)
    for label, features in enumerate(known):
        classes.add(features, torch.full((60,), label))
    gaussians.fit(classes)
    heads = {name: OutlierHead(name, {"level": ShapeSpec(channels=5)}) for name in ("gmm", "linear")}
    for head in heads.values():
        head.fit(
            {"level": gaussians}, {"level": statistics(outliers)}, {"level": statistics(known.flatten(0, 1))}
        )
    return known, outliers, gaussians, heads


def test_the_ratio_of_mixtures_is_the_formula(fitted):
    """scipy's densities of the fitted components, float64; outliers are told from what is known."""
    known, outliers, gaussians, heads = fitted
    queries = torch.cat([outliers, known.flatten(0, 1)])
    found = heads["gmm"].ratio("level", queries, gaussians).numpy()
    white = (queries.double() - gaussians.centre.double()) @ gaussians.whitening.double()
    lifted = np.column_stack([white.numpy(), np.full(len(white), AXIS * 5**0.5)])
    lifted /= np.linalg.norm(lifted, axis=1, keepdims=True)
    mixtures = heads["gmm"].levels["level"].mixtures
    means, scales = mixtures.unit_means.double().numpy(), mixtures.scales.double().numpy()
    densities = [
        [
            multivariate_normal(mean, np.diag(scale**2)).logpdf(lifted)
            for mean, scale in zip(*side, strict=True)
        ]
        for side in zip(means, scales, strict=True)
    ]
    expected = np.max(densities[1], axis=0) - np.max(densities[0], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    mean, std, _ = heads["gmm"].moments
    np.testing.assert_allclose([mean, std], [expected[35:].mean(), expected[35:].std()], rtol=1e-4)
    assert roc_auc_score(np.arange(len(found)) < 35, found) > 0.95


def test_the_linear_head_is_at_the_minimum(fitted):
    """Of the penalised logistic loss, by scipy in float64."""
    known, outliers, gaussians, heads = fitted
    white = [
        (x.double() - gaussians.centre.double()) @ gaussians.whitening.double()
        for x in (known.flatten(0, 1), outliers)
    ]
    negative, positive = (np.column_stack([x.numpy(), np.ones(len(x))]) for x in white)

    def loss(theta):
        both = np.logaddexp(0, negative @ theta).mean() + np.logaddexp(0, -positive @ theta).mean()
        return 0.5 * both + PENALTY * (theta[:-1] ** 2).sum()

    theta = minimize(loss, np.zeros(6), tol=1e-10).x
    found = heads["linear"].ratio("level", outliers, gaussians)
    np.testing.assert_allclose(found.numpy(), positive @ theta, rtol=2e-3, atol=2e-3)


def test_scores_of_a_ratio():
    ratio, distance, logits = torch.tensor([[2.0]]), torch.tensor([[1.5]]), torch.tensor([[[3.0]], [[1.0]]])
    outputs = PixelOutputs(
        logits, feature_distance=distance, outlier_ratio=ratio, outlier_moments=(-1.0, 4.0, 0.3)
    )
    names = ["likelihood_ratio", "outlier_posterior", "dense_hybrid", "exposed_distance"]
    found = [float(score(outputs)) for score in get_scores(names, given=["outlier_ratio"]).values()]
    posterior = 1 / (1 + np.exp(-2))
    hybrid = np.log(posterior) - np.log(np.exp(3) + np.exp(1))
    np.testing.assert_allclose(found, [2, posterior, hybrid, 1.5 + 0.3 * 3 / 4], rtol=1e-6)
    with pytest.raises(ValueError, match="MODEL.OUTLIER.NAME"):
        get_scores(["likelihood_ratio"], given=["logits"])


def test_objects_are_pasted_by_the_seed_and_labelled(streets):
    cfg = build_config(CONFIG, TINY)
    (once,), (again,) = (list(pasted(cfg, [item(streets[0], 5)])) for _ in range(2))
    (other,) = pasted(cfg, [item(streets[0], 6)])
    assert torch.equal(once["image"], again["image"]) and torch.equal(once["sem_seg"], again["sem_seg"])
    assert not torch.equal(once["sem_seg"], other["sem_seg"])
    label, moved = once["sem_seg"].numpy(), (once["image"] != item(streets[0])["image"]).any(0).numpy()
    assert set(np.unique(label)) == {0, OUTLIER_LABEL}
    # Soft borders: what has changed is inside the object or next to it, and inside nearly all has.
    reach = cv2.dilate((label == OUTLIER_LABEL).astype(np.uint8), np.ones((25, 25)))
    assert not moved[reach == 0].any() and moved[label == OUTLIER_LABEL].mean() > 0.95
    # BGR images get the same objects, with the channels in their order.
    with seeded(9):
        plain = PasteOutliers(get_source("rendered")).get_transform(streets[0])
    with seeded(9):
        mirrored = PasteOutliers(get_source("rendered"), image_format="BGR").get_transform(
            streets[0][..., ::-1]
        )
    np.testing.assert_array_equal(
        plain.apply_image(streets[0]), mirrored.apply_image(streets[0][..., ::-1])[..., ::-1]
    )


def test_place_and_blending(streets):
    """Objects stand where they may, and unblended ones are pasted as they come."""
    colour = (250.0, 0.0, 240.0)  # none of the streets has it

    def block(_rng, height, _image):
        return np.full((height, height, 4), (*colour, 1.0), np.float32)

    for feet in ((0.5, 0.6), (0.9, 1.0)):
        options = {"objects": (1, 1), "heights": (0.1, 0.2), "feet": feet}
        for seed in range(5):
            pasted_at = []
            for blending in (0.0, 0.5, 1.0):
                with seeded(seed):
                    pasted_at.append(
                        PasteOutliers(block, blending=blending, **options).get_transform(streets[0])
                    )
            found = pasted_at[0]
            (top, left, colours, alpha), (_, _, *half), (_, _, *full) = (one.objects[0] for one in pasted_at)
            assert feet[0] * 160 - 1 <= top + len(alpha) <= feet[1] * 160
            assert (colours == colour).all() and (alpha == 1).all()
            assert (np.abs(full[0] - colour) > 1).any() and full[1][:, 0].max() < 1
            for own, between, other in zip((colours, alpha), half, full, strict=True):
                np.testing.assert_allclose(between, (own + other) / 2, atol=1e-3)
            moved = (found.apply_image(streets[0]) != streets[0]).any(axis=2)
            assert moved[top : top + len(alpha), left : left + alpha.shape[1]].all()
            assert moved.sum() == alpha.size


def test_rendered_shapes_are_filled_with_noise_too(monkeypatch):
    """On a flat frame, a flat shape is flat as it is and with a piece of the frame in it."""
    shape = np.full((60, 60, 4), (90, 60, 30, 255), np.uint8)
    monkeypatch.setattr(outliers, "draw_unknown", lambda _rng, _height: shape.copy())
    flat = np.full((160, 320, 3), 128, np.uint8)
    found = [rendered(np.random.default_rng(seed), 60, flat) for seed in range(400)]
    assert all((cutout >= 0).all() and (cutout[..., 3] == 1).all() for cutout in found)
    noisy = sum(cutout[..., :3].std(axis=(0, 1)).max() > 1 for cutout in found)
    # 0.7 x 0.15 of them are; four standard deviations to each side.
    assert 18 <= noisy <= 66, noisy


def test_cells_by_hand():
    label = torch.zeros(16, 40, dtype=torch.int64)
    label[4:12, 4:13] = OUTLIER_LABEL
    label[:, 36:] = 255
    inside, outside = (found.view(4, 10).int().tolist() for found in cells(label, (4, 10), 2))
    # Columns 1 and 2 are covered, 3 by a quarter; two more cells are near; the last one is void.
    row = [0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert inside == [[0] * 10, row, row, [0] * 10]
    assert outside == [[0, 0, 0, 0, 0, 0, 1, 1, 1, 0]] * 4


def test_a_training_image_with_objects(streets, tmp_path):
    """Losses of known classes ignore them; their mask is there too."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "DATASETS.SYNTHETIC.CACHE_DIR", ""]
    cfg = build_config(
        "configs/synthetic/effnetlite0_deeplabv3plus_gmm.yaml", [*opts, "INPUT.OUTLIERS.SHARE", 1.0]
    )
    image, label = (tmp_path / name for name in ("image.png", "label.png"))
    cv2.imwrite(str(image), streets[0])
    cv2.imwrite(str(label), np.full((160, 320), 3, np.uint8))
    with seeded(1):
        mapped = SegmentationMapper(cfg, True)({"file_name": str(image), "sem_seg_file_name": str(label)})
    outliers = mapped["outliers"]
    assert outliers.any() and (mapped["sem_seg"][outliers] == 255).all()
    logits = torch.randn(1, 10, *outliers.shape, requires_grad=True)
    pixel_cross_entropy(logits, mapped["sem_seg"][None]).backward()
    assert not logits.grad[0][:, outliers].any() and logits.grad.any()


def coco(folder, category):
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "some").mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "some/one.png"), np.full((60, 80, 3), (10, 200, 30), np.uint8))
    triangle = {"segmentation": [[10, 50, 70, 50, 40, 10]], "bbox": [10, 10, 60, 40], "area": 1200.0}
    content = {
        "images": [{"id": 1, "file_name": "one.png", "height": 60, "width": 80}],
        "annotations": [triangle | {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0}],
        "categories": [{"id": 1, "name": category}],
    }
    path = folder / f"annotations/instances_{category}.json"
    path.write_text(json.dumps(content))
    (folder / category).symlink_to(folder / "some")
    return path


def test_objects_from_files(streets, tmp_path):
    rng = np.random.default_rng(0)
    rgba = np.zeros((50, 40, 4), np.uint8)
    rgba[10:40, 5:25] = (0, 0, 255, 255)  # red, in OpenCV's order
    (tmp_path / "cutouts/inside").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "cutouts/inside/red.png"), rgba)
    found = get_source(str(tmp_path / "cutouts"))(rng, 60, streets[0])
    assert (
        found.shape == (60, 40, 4) and (found[..., 3] == 1).all() and (found[0, 0, :3] == (255, 0, 0)).all()
    )

    found = get_source(str(coco(tmp_path / "coco", "giraffe")))(rng, 80, streets[0])
    assert found.shape[0] == 80 and abs(found[..., 3].mean() - 0.5) < 0.03  # a triangle in its box
    assert (found[found[..., 3] == 1][:, :3] == (30, 200, 10)).all()

    with pytest.raises(ValueError, match="no object of 400 pixels"):
        get_source(str(coco(tmp_path / "coco", "person")))
    with pytest.raises(FileNotFoundError, match='expected "rendered", a folder of RGBA cut-outs'):
        get_source(str(tmp_path / "nothing"))
    # A photo has no outline: shapes are cut out of it, as out of the frame itself.
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos/other.png"), streets[1][..., ::-1])
    for seed in range(3):
        found = get_source(str(tmp_path / "photos"))(np.random.default_rng(seed), 60, streets[0])
        rng = np.random.default_rng(seed)
        rng.integers(1)  # which photo
        np.testing.assert_array_equal(found, rendered(rng, 60, streets[1]))


def seeded_fit(streets):
    torch.manual_seed(0)
    return fit_detector(build_config(CONFIG, TINY), streets)


def rank_fits(rank, streets, meeting, results):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save(seeded_fit(streets).state_dict(), f"{results}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_fit_what_one_fits(streets, tmp_path):
    alone = seeded_fit(streets).state_dict()
    arguments = (streets, tmp_path / "meeting", tmp_path)
    multiprocessing.start_processes(rank_fits, arguments, nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pth")
        assert found.keys() == alone.keys() and any(name.endswith("outliers.std") for name in found)
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-3, msg=name)


def test_commands_fit_and_use_outliers(streets, tmp_path, capsys):
    """The file of a detector holds them; an exported graph gives the same score (it is refused otherwise)."""
    pytest.importorskip("onnxruntime")
    for index, street in enumerate(streets):
        (tmp_path / "frames").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / f"frames/{index}.png"), street[..., ::-1])
    out = tmp_path / "detector.pth"
    fit = ["fit", str(tmp_path / "frames"), "--out", str(out), "--device", "cpu", "--outliers", "rendered"]
    assert main([*fit, *TINY[2:]]) == 0
    given = ["--weights", str(out), "--images", str(tmp_path / "frames"), "--size", "160x320", "--json"]
    assert main(["export", *given, "--out", str(tmp_path / "detector.onnx")]) == 0
    assert "exposed_distance+guided_filter+picture_level" in capsys.readouterr().out


def test_outliers_are_fitted_onto_a_trained_network(tmp_path):
    """As if they had been there from the start; what was fitted before stays, and their absence is told."""
    opts = [
        "MODEL.DEVICE", "cpu", "MODEL.BACKBONE.WEIGHTS", "", "MODEL.CLASSIFIER.NAME", "softmax",
        "MODEL.FEATURE_DISTANCE.FEATURES", ["level1", "embedding"], "TEST.SCORES", ["energy"],
        "DATASETS.SYNTHETIC.NUM_TRAIN", 2, "DATASETS.SYNTHETIC.HEIGHT", 96, "DATASETS.SYNTHETIC.WIDTH", 192,
        "DATASETS.SYNTHETIC.CACHE_DIR", "", "INPUT.OUTLIERS.HEIGHTS", [0.3, 0.5], "OUTPUT_DIR", str(tmp_path),
    ]  # fmt: skip
    config = "configs/synthetic/effnetlite0_deeplabv3plus_gmm.yaml"
    plain, exposed = (build_config(config, [*opts, "MODEL.OUTLIER.NAME", name]) for name in ("", "gmm"))

    def built(cfg):
        torch.manual_seed(0)
        return build_model(cfg).eval()

    trained, together, later = built(plain), built(exposed), built(exposed)
    fit_feature_distance(plain, trained)
    fit_feature_distance(exposed, together)
    path = tmp_path / "trained.pth"
    torch.save({"model": trained.state_dict()}, path)
    with pytest.raises(ValueError, match="lacks what some scores know"):
        Checkpointer(later).load_for_evaluation(str(path))
    Checkpointer(later).load_for_evaluation(str(path), outliers=False)
    image = torch.zeros(3, 96, 192)
    with pytest.raises(UnfittedMixtureError, match="--fit-outliers"):
        later([{"image": image}])
    fit_outliers(exposed, later)
    expected = together.state_dict()
    for name, value in later.state_dict().items():
        torch.testing.assert_close(value, expected[name], msg=name)

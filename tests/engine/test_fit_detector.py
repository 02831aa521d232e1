"""A detector from a folder: whatever lies there, in any number of processes, in one file, and exported."""

from __future__ import annotations

import logging
import shutil

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from scipy.spatial.distance import cdist
from torch.nn import functional as F

from gmm_anomaly import AnomalyDetector
from gmm_anomaly.cli import main
from gmm_anomaly.data.streets.datasets import StreetSplit
from gmm_anomaly.engine.config import ConfigError, build_config, read_config
from gmm_anomaly.engine.fit_detector import CONFIG, fit_detector, frame_files
from gmm_anomaly.postprocess.guided_filter import filter_by_guide

NAME = "feature_distance+guided_filter+picture_level"
# Random weights: what is found does not matter here.
TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.TIMM.NAME", "test_efficientnet", "MODEL.BACKBONE.WEIGHTS", "",
    "INPUT.MIN_SIZE_TEST", "160", "INPUT.MAX_SIZE_TEST", "160", "MODEL.FEATURE_DISTANCE.COMPONENTS", "4",
]  # fmt: skip


@pytest.fixture(scope="module")
def streets():
    sizes = [(90, 160), (64, 128), (90, 160), (100, 140)]
    frames = [
        StreetSplit("detector", 4, 11, *size, anomalies=False)[index][0] for index, size in enumerate(sizes)
    ]
    frames[3] = frames[3][:, :70]
    return [np.ascontiguousarray(frame) for frame in frames]


@pytest.fixture(scope="module")
def folder(streets, tmp_path_factory):
    """Frames of different sizes, one in a folder inside, one grey, one of 16 bits, one tiny, one broken."""
    folder = tmp_path_factory.mktemp("frames")
    (folder / "inside").mkdir()
    for index, street in enumerate(streets):
        place = folder / ("inside" if index == 1 else "")
        cv2.imwrite(str(place / f"street{index}.png"), street[..., ::-1])
    cv2.imwrite(str(folder / "grey.jpg"), cv2.cvtColor(streets[0], cv2.COLOR_RGB2GRAY))
    cv2.imwrite(
        str(folder / "sixteen.png"), cv2.cvtColor(streets[2], cv2.COLOR_RGB2GRAY).astype(np.uint16) * 257
    )
    cv2.imwrite(str(folder / "tiny.png"), streets[0][:5, :3])
    (folder / "broken.png").write_bytes((folder / "street0.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def seeded(cfg, frames):
    torch.manual_seed(0)
    return fit_detector(cfg, frames)


@pytest.fixture(scope="module")
def detector(streets):
    torch.manual_seed(0)
    return AnomalyDetector.fit(streets, opts=TINY)


def test_any_folder_of_frames_fits(folder, tmp_path, caplog):
    files = frame_files(folder)
    assert [path.name for path in files] == [
        "broken.png", "grey.jpg", "street1.png", "sixteen.png", "street0.png", "street2.png", "street3.png",
        "tiny.png",
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        model = fit_detector(build_config(CONFIG, TINY), files)
    left_out = [record.getMessage() for record in caplog.records if "Left out" in record.getMessage()]
    assert len(left_out) == 1 and "broken.png" in left_out[0]
    assert model.feature_distance.is_fitted
    with pytest.raises(FileNotFoundError, match="no such folder"):
        frame_files(folder / "nothing")
    with pytest.raises(FileNotFoundError, match="no images in this folder"):
        frame_files(tmp_path)
    (tmp_path / "linked").symlink_to(folder)
    assert len(frame_files(tmp_path)) == len(files)
    with pytest.raises(ValueError, match="none of 1 could be read"):
        fit_detector(build_config(CONFIG, TINY), files[:1])
    with pytest.raises(ValueError, match="needs MODEL.CLASSIFIER.NAME \"none\".*found 'softmax'"):
        fit_detector(build_config(CONFIG, [*TINY, "MODEL.CLASSIFIER.NAME", "softmax"]), files)


def test_scores_are_the_formula(streets):
    """Two frames are enough. One component of all cells: mean and covariance of these, in float64."""
    once = ["TEST.AUG.ENABLED", False, "TEST.POSTPROCESS", ["guided_filter"]]
    level = ["MODEL.FEATURE_DISTANCE.FEATURES", ["level4"], "MODEL.FEATURE_DISTANCE.WEIGHTS", [2.0]]
    cfg = build_config(CONFIG, [*TINY, *once, *level, "MODEL.FEATURE_DISTANCE.COMPONENTS", 1])
    model = seeded(cfg, [streets[0], streets[2]])

    def cells(street):
        image = torch.from_numpy(street.transpose(2, 0, 1).copy())
        return model.backbone(model.preprocess([{"image": image}]).tensor)["level4"][0].double()

    with torch.no_grad():
        # 90 rows are padded to 96; the last row of cells still has its centre inside.
        known = np.concatenate([cells(street).flatten(1).T.numpy() for street in (streets[0], streets[2])])
        queries = cells(streets[0])
        outputs = model([{"image": torch.from_numpy(streets[0].transpose(2, 0, 1).copy())}])[0]
    covariance = np.cov(known.T, bias=True)
    covariance += cfg.MODEL.FEATURE_DISTANCE.SHRINKAGE * np.diag(covariance).mean() * np.eye(len(covariance))
    inverse, mean = np.linalg.inv(covariance), known.mean(0, keepdims=True)

    def log_distance(features):
        return np.log(np.maximum(cdist(features, mean, "mahalanobis", VI=inverse)[:, 0] ** 2, 1e-3))

    own = log_distance(known)
    # Twice: its weight.
    small = 2 * (log_distance(queries.flatten(1).T.numpy()) - own.mean()) / own.std()
    small = torch.from_numpy(small).view(1, 1, *queries.shape[1:])
    expected = F.interpolate(small, size=(96, 160), mode="bilinear")[0, 0, :90]
    scores = outputs["anomaly_scores"]
    assert list(scores) == ["feature_distance", "feature_distance+guided_filter"]
    assert torch.equal(outputs["anomaly_score"], scores["feature_distance"])
    torch.testing.assert_close(scores["feature_distance"].double(), expected, rtol=1e-3, atol=5e-3)
    guide = torch.from_numpy(streets[0].transpose(2, 0, 1) / 255.0)
    torch.testing.assert_close(
        scores["feature_distance+guided_filter"].double(),
        filter_by_guide(expected, guide),
        rtol=1e-3,
        atol=1e-2,
    )
    assert outputs["sem_seg"].shape == (1, 90, 160) and not outputs["sem_seg"].any()


def rank_fits(rank, folder, meeting, results):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    state = seeded(build_config(CONFIG, TINY), frame_files(folder)).state_dict()
    torch.save(state, f"{results}/{rank}.pth")
    dist.destroy_process_group()


def test_two_processes_fit_what_one_fits(folder, tmp_path, monkeypatch):
    # Fewer are kept than there are.
    monkeypatch.setattr("gmm_anomaly.gmm.tied_gaussians.KEPT_FEATURES", 60)
    alone = seeded(build_config(CONFIG, TINY), frame_files(folder)).state_dict()
    arguments = (folder, tmp_path / "meeting", tmp_path)
    multiprocessing.start_processes(rank_fits, arguments, nprocs=2, start_method="fork")
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pth")
        assert found.keys() == alone.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-5, msg=name)


def test_one_file_holds_all_of_it(detector, streets, tmp_path):
    path = tmp_path / "detector.pth"
    detector.save(path)
    again = AnomalyDetector.load(path, device="cpu")
    for street in streets[::3]:
        ours, theirs = detector.predict(street), again.predict(street)
        assert ours.score.shape == street.shape[:2] and ours.score_name == NAME
        assert ours.score_name == theirs.score_name
        np.testing.assert_array_equal(ours.score, theirs.score)
    assert len(again.predict(streets[:2])) == 2
    assert read_config(str(path)).INPUT.MAX_SIZE_TEST == 160
    torch.save({"model": {}}, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="hold no config"):
        read_config(str(tmp_path / "weights.pth"))


def test_commands_take_the_one_file(folder, tmp_path, capsys):
    out = tmp_path / "detector.pth"
    fit = ["fit", str(tmp_path / "frames"), "--out", str(out), "--device", "cpu", *TINY[2:]]
    shutil.copytree(folder, tmp_path / "frames")
    (tmp_path / "frames/.ipynb_checkpoints").mkdir()
    broken = [tmp_path / "frames" / name for name in (".ipynb_checkpoints/a.png", "broken.png")]
    for path in broken:
        path.write_bytes(b"no picture")
    assert main(fit) == 1 and out.is_file()
    broken[1].unlink()
    assert main(fit) == 0 and str(out) in capsys.readouterr().out
    image = str(folder / "street0.png")
    predicted = ["predict", image, "--weights", str(out), "--out", str(tmp_path), "--device", "cpu"]
    assert main([*predicted, "--save-score", "npy"]) == 0
    saved = np.load(next(tmp_path.rglob("*.npy")))
    expected = AnomalyDetector.load(out, device="cpu").predict(image).score
    np.testing.assert_array_equal(saved, expected)


@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_the_exported_file_is_equal(detector, streets, tmp_path, format):
    """The export compares the file with PyTorch on each image and two together, and refuses above 1e-3."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    from gmm_anomaly.export.command import export

    found = export(detector, tmp_path / "detector.onnx", format=format, images=streets[:2])
    assert found["fixed_size"] is None, found["fixed_because"]
    assert found["metadata"]["score"] == NAME
    assert found["max_relative_error"] < 1e-3

"""`gmm-anomaly submit`: the benchmark's layout, interruption, and refusal to mix models."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from gmm_anomaly.cli import main
from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.data import SegmentationMapper, register_anomaly_dataset
from gmm_anomaly.evaluation import AnomalyEvaluator
from gmm_anomaly.evaluation.saved_scores import evaluate_saved_scores
from gmm_anomaly.evaluation.submission import Submission, stored_score

# Names as in the benchmark's download; one frame with a label, three without.
FRAMES = {
    "cones0003": (40, 72),
    "zebra0000": (36, 64),
    "validation0000": (33, 51),
    "validation0001": (40, 72),
}


@pytest.fixture
def track(tmp_path, monkeypatch) -> str:
    """A tiny dataset_AnomalyTrack as the benchmark's download unpacks; gives the name of the data set."""
    root = tmp_path / "dataset_AnomalyTrack"
    for folder in ("images", "labels_masks"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(2)
    for name, size in FRAMES.items():
        cv2.imwrite(str(root / "images" / f"{name}.jpg"), rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        if name.startswith("validation"):
            label = np.zeros(size, np.uint8)
            label[5:20, 10:30] = 1
            cv2.imwrite(str(root / "labels_masks" / f"{name}_labels_semantic.png"), label)
    monkeypatch.setenv("GMM_ANOMALY_ANOMALY_TRACK", str(root))
    return "road_anomaly21_all"


def scores_of(records, values=None):
    for record in records:
        name = Path(record["file_name"]).stem
        yield np.random.default_rng(len(name)).normal(size=FRAMES[name]).astype(np.float32) * 20


def started(root, track, **options):
    submission = Submission(root, options.pop("method", "ours"), {"weights": "abc"}, **options)
    frames = submission.frames(track)
    submission.begin(frames)
    return submission, frames


def test_layout_of_the_benchmark(tmp_path, track):
    submission, frames = started(tmp_path / "out", track)
    written = submission.write(frames, scores_of)
    assert (written["frames"], written["kept"], written["written"]) == (4, 0, 4)
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == [
        "ours.json",
        *(f"outputs/anomaly_p/ours/AnomalyTrack-all/{name}.hdf5" for name in sorted(FRAMES)),
    ]
    for frame, expected in zip(frames, scores_of([frame.record for frame in frames]), strict=True):
        with h5py.File(frame.target) as file:
            assert list(file) == ["value"]
            value = file["value"]
            assert (value.dtype, value.compression, value.compression_opts) == (np.float16, "gzip", 9)
            assert np.array_equal(value[()], expected.astype(np.float16))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("lost_and_found_tiny", "LostAndFound-test"),
        ("lost_and_found_train_tiny", "LostAndFound-train"),
        ("road_obstacle21_tiny", "ObstacleTrack-all"),
    ],
)
def test_folders_of_the_benchmark(tmp_path, registered, name, folder):
    images = tmp_path / "test" / "02_Scene"
    images.mkdir(parents=True)
    # LostAndFound's score files lack the suffix of its images.
    cv2.imwrite(str(images / "02_Scene_000001_000080_leftImg8bit.png"), np.zeros((8, 16, 3), np.uint8))
    name = registered(name)
    register_anomaly_dataset(name, tmp_path / "test", None)
    [frame] = Submission(tmp_path, "ours", {}).frames(name)
    assert frame.target.parts[-2:] == (folder, "02_Scene_000001_000080.hdf5")


def test_an_interrupted_run_goes_on(tmp_path, track):
    submission, frames = started(tmp_path, track)

    def interrupted(records):
        maps = scores_of(records)
        yield next(maps)
        yield next(maps)
        # What a kill in the middle of writing leaves behind.
        frames[2].target.with_name(f".{frames[2].target.name}.1.partial").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submission.write(frames, interrupted)
    there = {path: path.stat().st_mtime_ns for path in frames[0].target.parent.glob("*.hdf5")}
    assert sorted(there) == sorted(frame.target for frame in frames[:2])
    # A file that was cut off, as by a full disk.
    frames[1].target.write_bytes(frames[1].target.read_bytes()[:-200])

    asked = []

    def rest(records):
        asked.extend(Path(record["file_name"]).stem for record in records)
        return scores_of(records)

    submission, frames = started(tmp_path, track)
    written = submission.write(frames, rest)
    assert asked == [frame.target.stem for frame in frames[1:]]
    assert (written["kept"], written["written"]) == (1, 3)
    assert frames[0].target.stat().st_mtime_ns == there[frames[0].target]
    assert all(stored_score(frame.target) is not None for frame in frames)
    assert sorted(path.name for path in frames[0].target.parent.iterdir()) == sorted(
        f"{name}.hdf5" for name in FRAMES
    )
    assert submission.write(frames, lambda records: pytest.fail("nothing is missing"))["written"] == 0


def test_files_of_two_models_do_not_mix(tmp_path, track):
    submission, frames = started(tmp_path, track)
    submission.write(frames, scores_of)
    other = Submission(tmp_path, "ours", {"weights": "other"})
    with pytest.raises(
        ValueError, match=r"begun with another weights; choose another --method, or --overwrite"
    ):
        other.begin(frames)
    other.begin(frames, overwrite=True)
    assert not any(frame.target.exists() for frame in frames)
    other.write(frames, scores_of)
    with pytest.raises(ValueError, match="another offset, scale"):
        Submission(tmp_path, "ours", {"weights": "other"}, 1.0, 2.0).begin(frames)


def test_offset_and_scale_are_one_pair_for_all_frames(tmp_path, track):
    submission, frames = started(tmp_path, track, offset=1e6, scale=4.0)
    submission.write(frames, lambda records: (1e6 + 4 * score for score in scores_of(records)))
    for frame, expected in zip(frames, scores_of([frame.record for frame in frames]), strict=True):
        with h5py.File(frame.target) as file:
            # float32 near 1e6 has steps of 1/16, a 64th after the division.
            assert np.abs(file["value"][()].astype(float) - expected).max() < 1 / 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda score: np.where(score > 0, np.nan, score), "scores are NaN"),
        (lambda score: score + 1e5, "float16 ends at 65504; give --offset and --scale"),
    ],
)
def test_maps_that_cannot_be_submitted(tmp_path, track, damage, message):
    submission, frames = started(tmp_path, track)
    with pytest.raises(ValueError, match=rf"{frames[0].target.stem}: .*{message}"):
        submission.write(frames, lambda records: map(damage, scores_of(records)))
    assert not any(frame.target.exists() for frame in frames)


def test_wrong_files_are_seen(tmp_path):
    half, single = np.zeros((4, 5), np.float16), np.zeros((4, 5), np.float32)
    for number, content in enumerate([{"value": single}, {"score": half}]):
        with h5py.File(tmp_path / f"{number}.hdf5", "w") as file:
            for name, values in content.items():
                file[name] = values
        assert stored_score(tmp_path / f"{number}.hdf5") is None


def test_bad_arguments_are_named(tmp_path, track, anomaly_tree):
    for arguments, message in (
        (("a/b", {}), "name of a folder"),
        (("..", {}), "name of a folder"),
        (("a", {}, 0.0, -1.0), "--scale must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Submission(tmp_path, *arguments)
    submission = Submission(tmp_path, "ours", {})
    with pytest.raises(ValueError, match=r"no data set of SegmentMeIfYouCan.*=FOLDER"):
        submission.frames(anomaly_tree.name)
    assert submission.frames(anomaly_tree.name, "Mine")[0].target.parent.name == "Mine"
    frames = submission.frames(track)
    clash = submission.frames(anomaly_tree.name, "Mine")[0]._replace(target=frames[0].target)
    with pytest.raises(ValueError, match=r"frame_00.png would both be written to .*cones0003.hdf5"):
        submission.begin([*frames, clash])


CONFIG = [
    "MODEL.DEVICE", "cpu", "MODEL.CLASSIFIER.NAME", "softmax", "MODEL.CLASSIFIER.NUM_CLASSES", 4,
    "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_resnet",
    "MODEL.DECODER.CHANNELS", 16,
    "DATALOADER.NUM_WORKERS", 0, "TEST.SCORES", ["msp", "energy"],
    "TEST.POSTPROCESS", ["gaussian_smoothing"], "INPUT.FORMAT", "RGB",
]  # fmt: skip


def test_the_command_submits_what_the_evaluator_scores(tmp_path, track, capsys):
    """From a config and weights to files whose evaluation gives the numbers of inference itself."""
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list(CONFIG)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    arguments = [
        "--config-file", str(tmp_path / "config.yaml"), "--weights", str(tmp_path / "model.pth"),
        "--method", "ours", "--out", str(tmp_path / "out"), "--dataset", track, "--score", "energy",
    ]  # fmt: skip
    for written, kept in ((4, 0), (0, 4)):
        assert main(["submit", *arguments]) == 0, capsys.readouterr().err
        manifest = json.loads((tmp_path / "out" / "ours.json").read_text())
        found = manifest["datasets"][track]
        assert manifest["complete"] and (found["written"], found["kept"]) == (written, kept)
    assert track in capsys.readouterr().out
    for other, named in ((["--scale", "2"], "scale"), (["TEST.AUG.ENABLED", "True"], "config")):
        assert main(["submit", *arguments, *other]) == 1
        assert f"another {named}" in capsys.readouterr().err
    smooth = "energy+gaussian_smoothing"
    assert main(["submit", *arguments, "--method", "smooth", "--score", smooth]) == 0

    evaluator = AnomalyEvaluator("road_anomaly21_validation", ["energy", smooth])
    with torch.no_grad():
        for record in evaluator.records.records:
            inputs = [SegmentationMapper(cfg, False)(record)]
            evaluator.process(inputs, model(inputs))
    direct = evaluator.evaluate()
    for method, score in (("ours", "energy"), ("smooth", smooth)):
        folder = tmp_path / "out" / "outputs" / "anomaly_p" / method / "AnomalyTrack-all"
        saved = evaluate_saved_scores(folder, "road_anomaly21_validation", method=score, progress=False)
        assert list(saved) == [f"anomaly/smiyc/{score}", f"components/anomaly_track/{score}"]
        for task, numbers in saved.items():
            np.testing.assert_equal(dict(numbers), dict(direct[task]))

"""The command on files: what it writes, skips, prints and refuses."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from gmm_anomaly import cli
from gmm_anomaly.evaluation.saved_scores import evaluate_saved_scores
from gmm_anomaly.evaluation.score_files import read_score_map
from gmm_anomaly.predict import command
from gmm_anomaly.predict.images import is_video, list_sources
from gmm_anomaly.predict.video import VideoReader, write_video
from gmm_anomaly.visualization import robust_range


@pytest.fixture
def call(trained, capsys):
    """Run the command with the tiny model; returns exit status, standard output and error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        model = ("--config", trained.config, "--weights", trained.weights, "--device", "cpu")
        status = cli.main(["predict", *model, *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def street(make_picture, save_rgb, tmp_path):
    for index in range(2):
        save_rgb(tmp_path / "street" / f"{index}.png", make_picture(index))
    return tmp_path / "street"


def files_below(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_folder_with_a_corrupt_image(call, predictor, street, make_picture, tmp_path):
    whole = (street / "0.png").read_bytes()
    (street / "cut.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    level = float(np.quantile(predictor(make_picture(0)).score, 0.7))
    status, printed, progress = call(
        street, "--out", out, "--threshold", level, "--min-area", 5, "--save-score", "npy", "--json"
    )
    assert status == 1
    summary = json.loads(printed)
    assert [item["input"] for item in summary["skipped"]] == [str(street / "cut.png")]
    assert "corrupt or cut off" in summary["skipped"][0]["error"] and "cut.png" in progress
    assert [item["input"] for item in summary["images"]] == [str(street / f"{n}.png") for n in (0, 1)]
    folders = (("components", "json"), ("overlays", "png"), ("scores", "npy"), ("segmentation", "png"))
    assert files_below(out) == [f"{folder}/{n}.{kind}" for folder, kind in folders for n in (0, 1)]

    low, high = summary["color_range"]
    assert [low, high] == pytest.approx(robust_range(predictor(make_picture(0)).score))
    for index, item in enumerate(summary["images"]):
        expected = predictor(make_picture(index))
        np.testing.assert_array_equal(np.load(item["score"]), expected.score)
        with Image.open(item["segmentation"]) as stored:
            np.testing.assert_array_equal(np.asarray(stored), expected.segmentation)
            np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), expected.segmentation_picture())
        document = json.loads(open(item["components"]).read())
        assert item["anomalies"] == len(document["components"])
        assert document["image"] == item["input"] and document["threshold"] == level
        covered = np.zeros(expected.score.shape, np.uint8)
        for component in document["components"]:
            covered |= coco.decode(component["rle"])
        found = expected.components_above(level, min_area=5)
        np.testing.assert_array_equal(covered, sum((part.mask for part in found), np.zeros_like(covered)))
        marked = cv2.imread(item["overlay"])[..., ::-1]
        plain = expected.overlay((low, high))
        assert marked.shape == plain.shape and (marked != plain).any() == bool(found)
    assert summary["images"][0]["anomalies"] > 0


def test_find_a_threshold_once_and_use_the_file(call, street, anomaly_set, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    status, printed, _ = call(
        street / "0.png", "--calibrate-on", anomaly_set, "--target-fpr", 0.2, "--out", out
    )
    assert status == 0 and "known pixels of " + anomaly_set in printed
    stored = json.loads((out / "threshold.json").read_text())
    assert 0.15 < stored["measured_fpr"] <= 0.2
    status, printed, _ = call(
        street / "0.png", "--threshold-file", out / "threshold.json", "--out", again, "--json"
    )
    summary = json.loads(printed)
    assert status == 0 and summary["threshold"]["value"] == stored["value"]
    assert summary["color_range"] == stored["color_range"]
    for kind in ("overlays/0.png", "components/0.json"):
        assert (out / kind).read_bytes() == (again / kind).read_bytes()


def test_scores_as_png_are_what_the_evaluation_reads(call, predictor, anomaly_set, tmp_path):
    out = tmp_path / "out"
    status, _, _ = call(
        tmp_path / "set" / "images" / "*.png", "--save-score", "png16", "--batch-size", 2, "--out", out
    )
    assert status == 0
    for path in sorted((tmp_path / "set" / "images").iterdir()):
        score = predictor(path).score
        stored = read_score_map(out / "scores" / path.name)
        step = (score.max() - score.min()) / 65535
        assert not stored.ranks_only
        # Half a step of 16 bits, and what two images of a batch differ by.
        np.testing.assert_allclose(stored.values, score, atol=0.5 * step + 1e-4)
    found = evaluate_saved_scores(out / "scores", anomaly_set)
    numbers = next(result for task, result in found.items() if task.startswith("anomaly"))
    assert numbers["images"] == 3


def test_png_of_a_constant_and_of_infinity(tmp_path):
    flat = np.full((4, 5), -2.5, np.float32)
    command.save_score_png(tmp_path / "flat.png", flat)
    np.testing.assert_array_equal(read_score_map(tmp_path / "flat.png").values, flat)
    flat[0, 0] = np.inf
    with pytest.raises(ValueError, match="bad.png: a 16-bit PNG holds finite scores only"):
        command.save_score_png(tmp_path / "bad.png", flat)
    assert files_below(tmp_path) == ["flat.png"]


@pytest.fixture
def film(make_picture, tmp_path):
    """Six frames of 44 x 60 pixels (height x width), at 5 a second."""
    path = tmp_path / "film.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (60, 44))
    assert writer.isOpened()
    for index in range(6):
        writer.write(make_picture(index)[..., ::-1].copy())
    writer.release()
    return path


def test_a_video_there_and_back(call, predictor, film, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(film.read_bytes()[:300])
    reader = VideoReader(film)
    frames = list(reader)
    assert (len(frames), reader.frames, reader.fps) == (6, 6, 5)
    out = tmp_path / "out"
    level = float(np.median(predictor(frames[0], format="BGR").score))
    status, printed, _ = call(
        film, tmp_path / "broken.mp4", "--threshold", level, "--save-score", "npy", "--out", out, "--json"
    )
    summary = json.loads(printed)
    assert status == 1 and "broken.mp4 cannot be decoded" in summary["skipped"][0]["error"]
    (video,) = summary["videos"]
    assert (video["frames"], video["fps"]) == (6, 5)
    lines = [json.loads(line) for line in open(video["lines"])]
    expected = [predictor(frame, format="BGR") for frame in frames]
    for index, (line, prediction) in enumerate(zip(lines, expected, strict=True)):
        assert line["frame"] == index and line["seconds"] == pytest.approx(index / 5)
        found = prediction.components_above(level)
        assert line["components"] == [component.to_json() for component in found]
        np.testing.assert_array_equal(np.load(out / "scores" / f"film_{index:06d}.npy"), prediction.score)
    assert video["frames_with_anomalies"] == sum(bool(line["components"]) for line in lines) > 0
    painted = list(VideoReader(out / "videos" / "film.mp4"))
    assert len(painted) == 6 and painted[0].shape == frames[0].shape
    # Every frame is nearest to its own overlay; the codec loses some colour.
    plain = [one.overlay(tuple(summary["color_range"]))[..., ::-1].astype(float) for one in expected]
    for index, frame in enumerate(painted):
        distance = [np.abs(frame - other).mean() for other in plain]
        assert np.argmin(distance) == index
    assert {path.split("/")[0] for path in files_below(out)} == {"videos", "scores"}


def test_a_video_that_fails_leaves_nothing(predictor, make_picture, tmp_path):
    def frames():
        yield predictor(make_picture(0))
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_video(tmp_path, "a", 5, frames())
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--out", "x"], "nothing to predict"),
        (["a.png", "--out", "x", "--target-fpr", "0.1"], "--target-fpr needs a data set"),
        (["--out", "x", "--threshold-on", "d", "--target-fpr", "5"], "expected a share between 0 and 1"),
        (["a.png", "--out", "x", "--range", "2", "1"], "LOW must be below HIGH"),
        (["a.png", "--out", "x", "--min-area", "-1"], "--min-area must be at least 0"),
    ],
)
def test_arguments_that_contradict(arguments, message, trained, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "--config", trained.config, *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_errors_name_what_is_missing(call, street, tmp_path, monkeypatch):
    trusted = []
    monkeypatch.setattr(command, "trust_pickles", trusted.append)
    for flags in ([], ["--trust-pickle"]):
        status, _, error = call(tmp_path / "none.png", "--out", tmp_path / "out", *flags)
        assert status == 1 and "none.png: no such file or folder" in error
    assert trusted == [False, True]
    status, _, error = call(street, "--score", "nothing", "--out", tmp_path / "out")
    assert status == 1 and "unknown score 'nothing'" in error
    assert not (tmp_path / "out").exists()


def test_what_inputs_mean(make_picture, save_rgb, tmp_path):
    for name in ("b.png", "a.jpg", ".hidden.png", "deep/c.webp", "other/a.png"):
        save_rgb(tmp_path / name, make_picture(0))
    (tmp_path / "film.MP4").touch()
    (tmp_path / "notes.txt").touch()

    def names(*given):
        return [path.name for path in list_sources(str(tmp_path / entry) for entry in given)]

    assert names("") == ["a.jpg", "b.png", "film.MP4"]
    assert names("b.png", "", "b.png") == ["b.png", "a.jpg", "film.MP4"]
    assert names("**/*.webp") == ["c.webp"]
    assert names("notes.txt") == ["notes.txt"]
    assert [is_video(path) for path in list_sources([str(tmp_path)])] == [False, False, True]
    with pytest.raises(ValueError, match="written under one name, 'a'"):
        names("", "other")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images or videos in this folder"):
        names("empty")
    with pytest.raises(FileNotFoundError, match="no image or video matches"):
        names("*.bmp")

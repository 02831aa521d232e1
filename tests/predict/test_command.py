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
from gmm_anomaly.predict.inputs import VideoReader, is_video, list_sources
from gmm_anomaly.predict.result import save_score_png, write_video
from gmm_anomaly.visualization import colorize_labels, robust_range


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


def test_a_folder_of_images(call, predictor, street, make_picture, tmp_path):
    out = tmp_path / "out"
    level = float(np.quantile(predictor(make_picture(0)).score, 0.7))
    options = ("--threshold", level, "--min-area", 5, "--save-score", "npy", "--json")
    status, printed, _ = call(street, "--out", out, *options)
    summary = json.loads(printed)
    assert status == 0 and summary["skipped"] == []
    assert [item["input"] for item in summary["images"]] == [str(street / f"{n}.png") for n in (0, 1)]
    status, _, error = call(out / "overlays", "--out", out)
    assert status == 1 and "0.png lies where results go; give another --out" in error
    folders = (("components", "json"), ("overlays", "png"), ("scores", "npy"), ("segmentation", "png"))
    assert files_below(out) == [f"{folder}/{n}.{kind}" for folder, kind in folders for n in (0, 1)]

    low, high = summary["color_range"]
    assert [low, high] == pytest.approx(robust_range(predictor(make_picture(0)).score))
    for index, item in enumerate(summary["images"]):
        expected = predictor(make_picture(index))
        np.testing.assert_array_equal(np.load(item["score"]), expected.score)
        with Image.open(item["segmentation"]) as stored:
            np.testing.assert_array_equal(np.asarray(stored), expected.segmentation)
            colors = colorize_labels(expected.segmentation, expected.class_colors)
            np.testing.assert_array_equal(np.asarray(stored.convert("RGB")), colors)
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
        marked = marked[-len(plain) :]
        assert marked.shape == plain.shape and (marked != plain).any() == bool(found)
    assert summary["images"][0]["anomalies"] > 0


def test_find_a_threshold_once_and_use_the_file(call, street, anomaly_set, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    status, printed, _ = call(
        street / "0.png", "--threshold-on", anomaly_set, "--target-fpr", 0.2, "--out", out
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
    save_score_png(tmp_path / "flat.png", flat)
    np.testing.assert_array_equal(read_score_map(tmp_path / "flat.png").values, flat)
    flat[0, 0] = np.inf
    with pytest.raises(ValueError, match="bad.png: a 16-bit PNG holds finite scores only"):
        save_score_png(tmp_path / "bad.png", flat)
    assert files_below(tmp_path) == ["flat.png"]


@pytest.fixture
def film(make_picture, tmp_path):
    """Six frames of 44 x 60 pixels (height x width), at 5 a second, each a JPEG of its own."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (60, 44))
    assert writer.isOpened()
    for index in range(6):
        writer.write(make_picture(index)[..., ::-1].copy())
    writer.release()
    return path


def test_a_video_there_and_back(call, predictor, film, tmp_path):
    reader = VideoReader(film)
    frames = list(reader)
    assert (len(frames), reader.frames, reader.fps) == (6, 6, 5)
    out = tmp_path / "out"
    level = float(np.median(predictor(frames[0], format="BGR").score))
    status, printed, _ = call(film, "--threshold", level, "--save-score", "npy", "--out", out, "--json")
    summary = json.loads(printed)
    assert status == 0 and summary["skipped"] == []
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


def test_damaged_videos_and_images_are_named_and_counted(call, film, street, tmp_path):
    whole = film.read_bytes()
    hole = len(whole) // 2, len(whole) * 7 // 10
    damaged = {
        "cut": whole[: len(whole) * 6 // 10],
        "hole": whole[: hole[0]] + bytes(hole[1] - hole[0]) + whole[hole[1] :],
        "head": whole[:300],
    }
    for name, data in damaged.items():
        (tmp_path / f"{name}.avi").write_bytes(data)
    image = (street / "0.png").read_bytes()
    (street / "cut.png").write_bytes(image[: len(image) // 2])
    out = tmp_path / "out"
    status, printed, _ = call(film, *(tmp_path / f"{name}.avi" for name in damaged), street, "--out", out)
    *_, count, image, cut, hole, head = printed.splitlines()
    assert status == 1 and count == "not read, or not wholly: 4 of 7 inputs"
    for name, line in (("cut", cut), ("hole", hole)):
        frames = len((out / f"videos/{name}.jsonl").read_text().splitlines())
        assert 0 < frames < 6
        assert f"{name}.avi is damaged or cut off: {frames} of its 6 frames can be read" in line
    assert "head.avi cannot be decoded" in head and "cut.png cannot be decoded" in image
    assert len((out / "videos/film.jsonl").read_text().splitlines()) == 6
    assert {path.name for path in (out / "overlays").iterdir()} == {"0.png", "1.png"}


def test_a_video_that_fails_leaves_nothing(predictor, make_picture, tmp_path):
    def frames():
        yield predictor(make_picture(0))
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_video(tmp_path, "a", 5, frames())
    # OpenCV drops a frame of another size, as it drops what a full disk does not take.
    sizes = (predictor(make_picture(0, size)) for size in ((44, 60), (30, 40)))
    with pytest.raises(OSError, match="a.mp4: 1 of 2 frames could be written"):
        write_video(tmp_path, "a", 5, sizes)
    assert files_below(tmp_path) == []


def test_arguments_that_contradict(trained, capsys):
    for arguments, message in (
        ("", "nothing to predict"),
        ("a.png --target-fpr 0.1", "--target-fpr needs a data set"),
        ("--threshold-on d --target-fpr 5", "expected a share between 0 and 1"),
        ("a.png --range 2 1", "LOW must be below HIGH"),
        ("a.png --threshold 1 --min-area -1", "--min-area: expected 0 or more"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["predict", "--config", trained.config, "--out", "x", *arguments.split()])
        assert stop.value.code == 2 and message in capsys.readouterr().err


def test_errors_name_what_is_missing(call, street, tmp_path, monkeypatch):
    status, _, error = call(tmp_path / "none.png", "--out", tmp_path / "out")
    assert status == 1 and "none.png: no such file or folder" in error
    status, _, error = call(street, "--score", "nothing", "--out", tmp_path / "out")
    assert status == 1 and "unknown score 'nothing'" in error
    with pytest.raises(SystemExit, match="2"):
        call(street, "--min-area", 9, "--out", tmp_path / "out")
    (tmp_path / "0.jpg").touch()
    # A shell would leave these alone.
    monkeypatch.setenv("HOME", str(tmp_path))
    status, _, error = call("~/street/*.png", "~/0.jpg", "--out=~/out")
    assert status == 1 and f"{street / '0.png'} and {tmp_path / '0.jpg'} would be written under one" in error
    assert not (tmp_path / "out").exists()
    assert call("~/street", "--out=~/out")[0] == 0 and (tmp_path / "out/overlays/0.png").is_file()


def test_what_inputs_mean(make_picture, save_rgb, tmp_path, caplog):
    hidden = (".hidden.png", ".ipynb_checkpoints/d.webp", "deep/@eaDir/e.webp")
    for name in ("b.png", "a.jpg", "deep/c.webp", "other/a.png", *hidden):
        save_rgb(tmp_path / name, make_picture(0))
    for name in ("f.gif", "f.HEIC"):
        (tmp_path / name).touch()
    (tmp_path / "film.MP4").touch()
    (tmp_path / "notes.txt").touch()

    def names(*given):
        return [path.name for path in list_sources(str(tmp_path / entry) for entry in given)]

    assert names("") == ["a.jpg", "b.png", "film.MP4"]
    assert "files of other kinds are left out: .gif, .heic, .txt" in caplog.text
    save_rgb(tmp_path / "other/film_000001.png", make_picture(0))
    with pytest.raises(ValueError, match="film.MP4 and .*film_000001.png would be written under one name"):
        names("", "other/film_000001.png")
    assert names("b.png", "", "b.png") == ["b.png", "a.jpg", "film.MP4"]
    assert names("**/*.webp") == ["c.webp"]
    assert names("notes.txt") == ["notes.txt"]
    assert [is_video(path) for path in list_sources([str(tmp_path)])] == [False, False, True]
    (tmp_path / "empty").mkdir()
    for given, message in (("empty", "no images or videos in this folder"), ("*.bmp", "no such file")):
        with pytest.raises(FileNotFoundError, match=message):
            names(given)

"""`gmm-anomaly score`: saved maps give the numbers that the evaluator gives during inference."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch

from gmm_anomaly.cli import main
from gmm_anomaly.evaluation import AnomalyEvaluator
from gmm_anomaly.evaluation.saved_scores import evaluate_saved_scores


def direct(tree, maps, **options):
    evaluator = AnomalyEvaluator(tree.name, ["mine"], **options)
    for one in tree.image_ids:
        evaluator.process(tree.inputs(one), [{"anomaly_scores": {"mine": torch.tensor(maps[one])}}])
    return evaluator.evaluate()


def save_all(folder: Path, maps, write=np.save, name="{}.npy"):
    folder.mkdir(parents=True, exist_ok=True)
    for one, score in maps.items():
        write(folder / name.format(one), score)
    return folder


def write_hdf5(path, score):
    with h5py.File(path, "w") as file:
        file["value"] = score.astype(np.float16)


def test_benchmark_files_under_the_benchmark_protocol(anomaly_tree, scores, tmp_path, capsys):
    maps = scores["good"]
    folder = save_all(tmp_path / "mine", maps, write_hdf5, "{}.hdf5")
    arguments = ["--scores", str(folder), "--dataset", anomaly_tree.name, "--protocol", "smiyc"]
    report = tmp_path / "report.json"
    assert main(["score", *arguments, "--components", "obstacle", "--json", str(report)]) == 0
    expected = direct(anomaly_tree, maps, protocol="smiyc", component_track="obstacle")
    found = json.loads(report.read_text())["datasets"][anomaly_tree.name]
    for key in ("AP", "AUROC", "FPR95", "best_f1", "best_f1_threshold"):
        assert found["anomaly"]["mine"][key] == expected["anomaly/smiyc/mine"][key]
    for key in ("sIoU_gt", "PPV", "F1"):
        assert found["components"]["mine"][key] == expected["components/obstacle_track/mine"][key]
    output = capsys.readouterr().out
    assert f"{expected['anomaly/smiyc/mine']['AP']:.4f}" in output
    assert main(["score", *arguments, "--components", "obstacle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(report.read_text())
    assert "smiyc" in output and "obstacle_track" in output


def test_a_monotone_png_has_the_ranks_of_the_scores(anomaly_tree, scores, tmp_path, caplog):
    # Two decimals between -10 and 10: a PNG keeps all ranks, float16 would not.
    pixels = {one: np.round((score + 10) * 100).astype(np.uint16) for one, score in scores["good"].items()}
    folder = save_all(
        tmp_path / "mine", pixels, lambda path, array: cv2.imwrite(str(path), 30 * array), "{}.png"
    )
    [found] = evaluate_saved_scores(
        folder, anomaly_tree.name, component_track="none", progress=False
    ).values()
    [expected] = direct(anomaly_tree, scores["good"]).values()
    for key in ("AP", "AUROC", "FPR95", "best_f1"):
        assert found[key] == expected[key]
    assert found["best_f1_threshold"] == pytest.approx(30 * (100 * expected["best_f1_threshold"] + 1000))
    assert found.details["ranks_only"] and "one monotone function" in caplog.text


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("{}_anomaly.npy", {"suffix": "_anomaly"}),
        ("deep/er/{}.npy", {}),
        ("{}.npy", {"method": "mine"}),
    ],
)
def test_maps_are_found_by_stem(anomaly_tree, scores, tmp_path, name, options):
    folder = tmp_path / "mine"
    (tmp_path / "storage" / "er").mkdir(parents=True)
    folder.mkdir()
    (folder / "deep").symlink_to(tmp_path / "storage")
    save_all(folder, scores["good"], name=name)
    (folder / "README.txt").write_text("not a map")
    found = evaluate_saved_scores(folder, anomaly_tree.name, progress=False, **options)
    assert found == direct(anomaly_tree, scores["good"])


def test_surplus_maps_are_named_and_left_out(anomaly_tree, scores, tmp_path, caplog):
    folder = save_all(tmp_path / "mine", scores["good"] | {"other_split_0001": np.full((3, 3), np.nan)})
    found = evaluate_saved_scores(folder, anomaly_tree.name, progress=False)
    assert found == direct(anomaly_tree, scores["good"])
    assert "1 maps belong to no image" in caplog.text and "other_split_0001.npy" in caplog.text


def rename(tree, names):
    """Give the images and labels of a tree other names."""
    for folder in ("images", "labels"):
        for old, new in names.items():
            (tree.root / folder / f"{old}.png").rename(tree.root / folder / f"{new}.png")


@pytest.mark.parametrize("name", ["{number}_anomaly.npy", "{number}_{frame}_anomaly.npy"])
def test_fishyscapes_names(anomaly_tree, scores, tmp_path, name):
    expected = direct(anomaly_tree, scores["good"])
    names = {one: f"{number:04d}_{one}" for number, one in enumerate(anomaly_tree.image_ids)}
    rename(anomaly_tree, names)
    folder = tmp_path / "mine"
    folder.mkdir()
    for number, one in enumerate(names):
        np.save(folder / name.format(number=f"{number:04d}", frame=one), scores["good"][one])
    assert evaluate_saved_scores(folder, anomaly_tree.name, suffix="_anomaly", progress=False) == expected


def test_one_map_cannot_stand_for_two_images(anomaly_tree, scores, tmp_path):
    rename(anomaly_tree, {one: f"0001_{one}" for one in anomaly_tree.image_ids})
    folder = save_all(tmp_path / "mine", {"0001": scores["good"]["frame_00"]})
    with pytest.raises(ValueError, match=r"0001.npy stands for two images, 0001_frame_00 and 0001_frame_01"):
        evaluate_saved_scores(folder, anomaly_tree.name, progress=False)


def test_other_sizes_are_interpolated_when_asked(anomaly_tree, scores, tmp_path):
    maps = {one: cv2.resize(score, None, fx=2, fy=0.5) for one, score in scores["good"].items()}
    folder = save_all(tmp_path / "mine", maps)
    with pytest.raises(ValueError, match=r"frame_00.npy.*has the size.*--resize"):
        evaluate_saved_scores(folder, anomaly_tree.name, progress=False)
    found = evaluate_saved_scores(folder, anomaly_tree.name, resize=True, progress=False)
    expected = {
        # Half-pixel centres, as in torch's align_corners=False and the benchmark.
        one: torch.nn.functional.interpolate(
            torch.tensor(score)[None, None], anomaly_tree.labels[one].shape, mode="bilinear"
        )
        for one, score in maps.items()
    }
    [wanted] = direct(anomaly_tree, {one: score[0, 0].numpy() for one, score in expected.items()}).values()
    assert found["anomaly/pooled/mine"]["AP"] == pytest.approx(wanted["AP"], abs=1e-3)
    assert found["anomaly/pooled/mine"].details["resized"] == 5


def broken(folder, maps, kind):
    """Spoil a folder of maps in one of the ways that a user can."""
    if kind == "missing":
        for one in ("frame_00", "frame_02", "frame_03", "frame_04"):
            (folder / f"{one}.npy").unlink()
    elif kind == "twice":
        np.savez(folder / "frame_02.npz", maps["frame_02"])
    elif kind == "nan":
        np.save(folder / "frame_03.npy", np.full_like(maps["frame_03"], np.nan))
    elif kind == "png":
        (folder / "frame_04.npy").unlink()
        cv2.imwrite(str(folder / "frame_04.png"), np.zeros(maps["frame_04"].shape, np.uint16))


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("missing", ["4 of 5 images", "frame_00, frame_02"]),
        ("twice", ["frame_02.npy", "frame_02.npz"]),
        ("nan", ["frame_03.npy", "625 of 625 scores are NaN"]),
        ("png", ["1 of 5 maps are PNGs without"]),
        ("folder", ["no folder"]),
        ("unknown", ["unknown data set 'streets'", "synthetic_street_anomaly"]),
        ("closed", ["evaluator_type 'anomaly', found 'closed_set'"]),
    ],
)
def test_what_a_user_can_get_wrong_is_named(
    anomaly_tree, closed_tree, scores, tmp_path, capsys, kind, messages
):
    folder = save_all(tmp_path / "mine", scores["good"])
    broken(folder, scores["good"], kind)
    name = {"unknown": "streets", "closed": closed_tree.name}.get(kind, anomaly_tree.name)
    where = tmp_path / "absent" if kind == "folder" else folder
    assert main(["score", "--scores", str(where), "--dataset", name]) == 1
    error = capsys.readouterr().err
    assert all(message in error for message in messages), error

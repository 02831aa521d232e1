"""The page of real run folders: its numbers are those of results.json, what is missing is said."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
from argparse import Namespace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gmm_anomaly.report import charts
from gmm_anomaly.report.page import comparison, number, render_page
from gmm_anomaly.report.page import run as write_page
from gmm_anomaly.report.run import read_mixtures, read_run, read_training_log

VOID = {"img", "wbr", "meta", "path"}


class Page(HTMLParser):
    """Tags must close in order; keeps the texts of tables' cells and what attributes hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self.values = [float(value) for value in re.findall(r'<data value="([^"]*)"', text)]
        self.links = re.findall(r' (?:href|src)="([^"]*)"', text)
        self.ids = re.findall(r' id="([^"]*)"', text)
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.open += [] if name in VOID else [name]
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name):
        assert name in VOID or self.open.pop() == name

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def report(*runs: Path, out: Path | None = None, **options) -> None:
    write_page(Namespace(runs=list(runs), out=out, **{"pictures": 3, "json": False} | options))


def results_of(folder):
    return json.loads((folder / "results.json").read_text())["datasets"]


def test_page_holds_the_numbers_of_results_json(run_folders, tmp_path, capsys):
    target = tmp_path / "sub" / "page.html"
    report(run_folders[0], out=target, json=True)
    said = json.loads(capsys.readouterr().out)
    runs = {"first": str(run_folders[0])}
    assert said == {"page": str(target), "bytes": target.stat().st_size, "runs": runs}
    assert [path.name for path in target.parent.iterdir()] == ["page.html"]
    page = Page(target.read_text())
    checked = 0
    for tasks in results_of(run_folders[0]).values():
        for key, value in tasks.get("sem_seg", {}).items():
            if key.startswith(("IoU-", "ACC-", "m", "fwIoU", "pACC", "ECE")):
                assert value in page.values, key
                checked += 1
        for score, numbers in tasks.get("anomaly", {}).items():
            row = next(row for row in page.rows if row[:2] == [score, "pooled"])
            assert row[2:6] == [f"{numbers[key]:.4f}" for key in ("AP", "AUROC", "FPR95", "best_f1")]
            assert {numbers["AP"], numbers["best_f1_threshold"]} <= set(page.values)
        for score, numbers in tasks.get("components", {}).items():
            row = next(row for row in page.rows if row[:2] == [score, "obstacle"])
            assert row[2:5] == [f"{numbers[key]:.4f}" for key in ("sIoU_gt", "PPV", "F1")]
            checked += 1
    assert checked == 2 * 3 + 5 + 2
    # Nothing from elsewhere, every link has its place, every picture is inside; and always the same page.
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    assert len([link for link in page.links if link[0] != "#"]) == 3 * (2 + 1)
    assert page.tags.count("script") == 1 and "http" not in re.sub('xmlns="[^"]*"', "", target.read_text())
    assert render_page([read_run(run_folders[0])]) == target.read_text()


def test_curves_go_through_the_points_of_the_file(run_folders):
    run = read_run(run_folders[0])
    (name,) = run.curves
    curve = run.curves[name]["scores"]["gmm_density"]["curve"]
    text = render_page([run], pictures=0)
    chart = text[text.index("Precision and recall") :].split("</svg>")[0]
    # Of the paths in the first line's colour the curve has most points; its box is that of the grid.
    paths = [
        np.array(re.findall(r"[ML] (\S+) (\S+)", path), float)
        for path in re.findall(r'<path d="([^"]*)" style="[^"]*var\(--s0\)', chart)
    ]
    (drawn,) = paths
    grid = np.concatenate([
        np.array(re.findall(r"[ML] (\S+) (\S+)", path), float)
        for path in re.findall(r'<path d="([^"]*)" style="[^"]*var\(--edge\)', chart)
    ])  # fmt: skip
    low, high = grid.min(axis=0), grid.max(axis=0)
    place = (drawn - [low[0], high[1]]) / (high - low) * [1, -1]
    wanted = np.stack([curve["recall"], curve["precision"]], axis=1)
    # The SVG leaves points out that lie on the line between others, so each drawn one has to be on the curve.
    distance = np.abs(place[:, None] - wanted).max(axis=2).min(axis=1)
    assert len(drawn) > 50 and distance.max() < 2e-3
    assert np.allclose(place[[0, -1]], wanted[[0, -1]], atol=1e-5)


def test_the_slider_calls_what_the_score_calls(run_folders, both_runs):
    """Every threshold's calls and rates, counted again from the score maps that write_run draws."""
    run = read_run(run_folders[0])
    ((dataset, curves),) = run.curves.items()
    steps = curves["frames"]["steps"]
    thresholds = np.array(steps["threshold"])
    rng, labels, scores = np.random.default_rng(2), [], []
    for place in range(5):
        rng.normal(size=(3, 48, 64))
        label = np.zeros((48, 64), np.uint8)
        label[10 : 20 + 3 * place, 5:30] = 1
        label[40:] = 255
        scores.append((rng.normal(size=label.shape) + (label == 1)).astype(np.float32))
        rng.normal(size=label.shape)
        labels.append(label)
    assert len(thresholds) > 190 and (np.diff(thresholds) > 0).all()
    for value, key in ((1, "recall"), (0, "fpr")):
        of = np.concatenate([score[label == value] for score, label in zip(scores, labels, strict=True)])
        # The file has seven digits.
        wanted = (of[:, None] >= thresholds * (1 - 1e-6 * np.sign(thresholds))).mean(axis=0)
        assert np.allclose(steps[key], wanted, atol=2e-4)
    for name in curves["frames"]["drawn"]:
        file = run.path / "curves" / dataset / f"{name}.png"
        levels, label = cv2.imread(str(file))[..., :0:-1].transpose(2, 0, 1)
        place = int(name[-1])
        near = np.abs(scores[place][..., None] - thresholds).min(axis=-1) < 1e-6
        wanted = (scores[place][..., None] >= thresholds).sum(axis=-1)
        assert np.array_equal(levels[~near], wanted[~near]) and near.mean() < 0.1
        assert np.array_equal(label, labels[place])
        assert base64.b64encode(file.read_bytes()).decode() in both_runs


def test_images_are_sorted_by_their_ap(run_folders, both_runs):
    text = both_runs[both_runs.index('<section id="run1">') :]
    frames = next(iter(read_run(run_folders[1]).curves.values()))["frames"]["AP"]
    best, worst = max(frames, key=frames.get), min(frames, key=frames.get)
    after = text[text.index("Best images by AP of gmm_density") :]
    assert after.index(f"<b>{best}</b>") < after.index("Worst images") < after.index(f"<b>{worst}</b>")
    assert "place 5 of 5" in after


def test_several_runs_side_by_side(run_folders, both_runs):
    page = Page(both_runs)
    header = next(row for row in page.rows if row[:1] == ["score"])
    assert header == ["score", "protocol", "metric", "first", "second"]
    first, second = (
        next(tasks["anomaly"] for tasks in results_of(folder).values() if "anomaly" in tasks)
        for folder in run_folders
    )
    for metric in ("AP", "FPR95"):
        values = [found["gmm_density"][metric] for found in (first, second)]
        assert next(row[3:] for row in page.rows if row[2:3] == [metric]) == [f"{v:.4f}" for v in values]
        # The second run is the better one under either metric.
        assert f'<b class="best">{number(values[1])}</b>' in both_runs
        assert f'<b class="best">{number(values[0])}</b>' not in both_runs
    assert ["SOLVER.BASE_LR", "0.01", "0.025"] in page.rows
    assert not any(row[:1] == ["SOLVER.MAX_ITER"] for row in page.rows)
    assert len(page.ids) == len(set(page.ids))
    twice = comparison([read_run(run_folders[0], name) for name in ("one", "two")])
    assert not any(best for table in twice["tables"].values() for best in table["best"].values())


def test_mixtures_of_the_checkpoint(run_folders, both_runs):
    mixtures = read_mixtures(run_folders[0] / "model_final.pth")
    counts = [(found.fitted, found.components, found.dim) for found in mixtures]
    assert counts == [(4, 4, 8), (4, 4, 8), (0, 4, 8)]
    assert [found.effective for found in mixtures[:2]] == pytest.approx([4.0, 1.0])
    assert math.isnan(mixtures[2].effective) and mixtures[0].sigma == (0.25,) * 3
    row = next(row for row in Page(both_runs).rows if row[0] == "car <big> & fast" and len(row) == 7)
    assert row == ["car <big> & fast", "4 of 4", "1.00", "1.000", "1.000", "1.000", "9"]


def test_a_stopped_run_says_what_is_missing_and_what_makes_it(run_folders, tmp_path):
    folder = tmp_path / "stopped run"
    folder.mkdir()
    for file in ("config.yaml", "metrics.json"):
        shutil.copy(run_folders[0] / file, folder)
    report(folder)
    text = (folder / "report.html").read_text()
    Page(text)
    assert "There is no results.json" in text and "There is no checkpoint" in text
    assert f"gmm-anomaly evaluate --config-file &#39;{folder}/config.yaml&#39;" in text
    assert "Losses" in text and "<svg" in text
    # Results, and curves of another evaluation: numbers stay, and the evaluation makes the rest.
    shutil.copytree(run_folders[0] / "curves", folder / "curves")
    results = json.loads((run_folders[0] / "results.json").read_text())
    scores = next(tasks["anomaly"] for tasks in results["datasets"].values() if "anomaly" in tasks)
    scores["msp"]["AP"] += 1e-3
    # Some editors put a mark in front.
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8-sig")
    torch.save({"model": {"classifier.weight": torch.zeros(1)}}, folder / "model_final.pth")
    (folder / "metrics.json").unlink()
    text = render_page([read_run(folder)])
    Page(text)
    assert "no curves, histograms and images by their AP" in text and "No overlay of this data set" in text
    assert "Precision and recall" not in text
    assert "model_final.pth holds no mixtures" in text and "There is no metrics.json" in text
    for name, said in (("moved/model_final.pth", False), ("start.pth", True)):
        (folder / "results.json").write_text(json.dumps(results | {"weights": name}))
        text = render_page([read_run(folder)])
        assert (f"results.json is of {name}, not of this run" in text) == said and f"of {name}" in text
    (folder / "model_final.pth").write_bytes(b"no checkpoint")
    assert "model_final.pth cannot be read as a checkpoint" in render_page([read_run(folder)])


HOSTILE = "<script>alert('$x^2$')</script>\"&"


def test_hostile_names_are_escaped(run_folders, tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "|")
    shutil.copytree(run_folders[0], folder)
    results = json.loads((folder / "results.json").read_text())
    closed, anomaly = results["datasets"]
    results["datasets"][HOSTILE] = results["datasets"].pop(closed)
    results["datasets"][HOSTILE]["sem_seg"][f"IoU-{HOSTILE}"] = 50.0
    scores = results["datasets"][anomaly]["anomaly"]
    scores[HOSTILE] = scores["msp"] | {"protocol": HOSTILE, "note": HOSTILE}
    results["weights"], results["versions"] = HOSTILE, {HOSTILE: HOSTILE}
    (folder / "results.json").write_text(json.dumps(results))
    file = folder / "curves" / f"{anomaly}.json"
    curves = json.loads(file.read_text())
    curves["scores"][HOSTILE] = curves["scores"]["msp"]
    curves["frames"]["AP"][HOSTILE], curves["frames"]["score"] = 0.5, HOSTILE
    file.write_text(json.dumps(curves))
    log = {"iteration": 1, f"loss{HOSTILE}": 1.0, f"gmm/{HOSTILE}": 1}
    (folder / "metrics.json").write_text(json.dumps(log))
    (folder / "config.yaml").write_text(f"SEED: {json.dumps(HOSTILE)}\n")
    text = render_page([read_run(folder), read_run(run_folders[1])], pictures=1)
    assert Page(text).tags.count("script") == 1 and text.count("&lt;script&gt;") > 10


def test_nan_infinity_and_intervals(tmp_path):
    numbers = {
        "protocol": "smiyc", "AP": None, "AUROC": 0.5, "AUROC_low": 0.25, "AUROC_high": 0.75, "FPR95": 0.0,
        "best_f1": 0.0, "best_f1_threshold": "inf", "note": "no pixel",
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps({"datasets": {"a": {"anomaly": {"msp": numbers}}}}))
    text = render_page([read_run(tmp_path)])
    assert ["msp", "smiyc", "-", "~0.5000", "0.0000", "0.0000", "inf"] in Page(text).rows
    assert "between 0.25 and 0.75" in text and "no pixel" in text and "768 quantile bins" in text


@pytest.mark.parametrize(
    ("files", "runs", "pictures", "message"),
    [
        ({"results.json": "{"}, ["."], 3, "results.json is no JSON"),
        ({"results.json": "[]"}, ["."], 3, "results.json: expected keys with values, found list"),
        ({"config.yaml": "a: ["}, ["."], 3, "config.yaml is no YAML"),
        ({"metrics.json": "nonsense\n{}\n"}, ["."], 3, "metrics.json, line 1: expected a JSON object"),
        ({}, ["none"], 3, "none is no folder"),
        ({}, ["."], 3, r"holds no config\.yaml, metrics\.json or results\.json"),
        ({}, [".", "."], 3, "RUN_DIR: expected each run once"),
        ({}, ["."], -1, "--pictures: expected 0 or more, found -1"),
    ],
)
def test_broken_files_and_bad_arguments_are_named(tmp_path, files, runs, pictures, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, OSError), match=message):
        report(*(tmp_path / run for run in runs), pictures=pictures)
    assert not (tmp_path / "report.html").exists()


def test_resumed_training_counts_the_later_line(tmp_path):
    lines = [{"iteration": 0, "x": 1.0}, {"iteration": 2, "x": 5.0}, {"iteration": 1, "x": 2.0}]
    path = tmp_path / "metrics.json"
    path.write_text("\n".join(map(json.dumps, [*lines, {"iteration": 2, "x": 3}])) + '\n{"iteration": 4')
    assert read_training_log(path)["x"].tolist() == [[0, 1.0], [1, 2.0], [2, 3.0]]


def test_sixteen_curves_look_different():
    (chart,) = charts.line_charts("many", [charts.Line(str(n), [0, 1], [n, n]) for n in range(16)], "x")
    assert len({swatch for swatch, *_ in chart.legend}) == 16

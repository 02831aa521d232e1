"""The page of real run folders: its numbers are those of results.json, what is missing is said."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from gmm_anomaly.reporting import command, read_run, render_page
from gmm_anomaly.reporting.axes import limits, tick_text, ticks
from gmm_anomaly.reporting.comparison_section import short_names
from gmm_anomaly.reporting.markup import Html, number, tag
from gmm_anomaly.reporting.mixture_state import read_mixture_state
from gmm_anomaly.reporting.pictures import panel_uris
from gmm_anomaly.reporting.training_log import read_training_log

VOID = {"br", "hr", "img", "wbr", "meta", "rect", "line", "path", "polyline"}


class Page(HTMLParser):
    """Tags must close in order; keeps numbers, texts of cells, links and sources."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.values: list[float] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.polylines: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, name, attributes):
        found = dict(attributes)
        self.tags.append(name)
        if name not in VOID:
            self.open.append(name)
        if name == "data":
            self.values.append(float(found["value"]))
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")
        if name == "polyline":
            self.polylines.append(found["points"])
        self.links += [found[key] for key in ("href", "src") if key in found]
        self.ids += [found["id"]] if "id" in found else []

    def handle_startendtag(self, name, attributes):
        assert name in VOID, name
        self.handle_starttag(name, attributes)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def report():
    return command


def results_of(folder):
    return json.loads((folder / "results.json").read_text())["datasets"]


def test_page_holds_the_numbers_of_results_json(run_folders, report, tmp_path, capsys):
    target = tmp_path / "sub" / "page.html"
    assert report.main([str(run_folders[0]), "--out", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    assert report.main([str(run_folders[0]), "--out", str(target), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {
        "page": str(target), "bytes": target.stat().st_size, "runs": {"first": str(run_folders[0])}
    }  # fmt: skip
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
    # Nothing from elsewhere, every link has its place, every picture is inside.
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.links)
    assert {link[1:] for link in page.links if link[0] == "#"} <= set(page.ids)
    assert len([link for link in page.links if link[0] != "#"]) == 3 * (2 + 1)
    assert "script" not in page.tags


def test_curves_go_through_the_points_of_the_file(run_folders):
    run = read_run(run_folders[0])
    page = Page(render_page([run], pictures=0))
    name = next(name for name in run.curves)
    curve = run.curves[name]["scores"]["gmm_density"]["curve"]
    x = 46 + (348 - 46) * np.array(curve["recall"])
    y = 212 + (12 - 212) * np.array(curve["precision"])
    wanted = " ".join(dict.fromkeys(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True)))
    assert wanted in page.polylines


def test_images_are_sorted_by_their_ap(run_folders):
    run = read_run(run_folders[1])
    text = render_page([run], pictures=1)
    frames = next(iter(run.curves.values()))["frames"]["AP"]
    best, worst = max(frames, key=frames.get), min(frames, key=frames.get)
    after = text[text.index("Best images by AP of gmm_density") :]
    assert after.index(f"<b>{best}</b>") < after.index("Worst images") < after.index(f"<b>{worst}</b>")
    assert "place 5 of 5" in after


def test_several_runs_side_by_side(run_folders, report, tmp_path):
    target = tmp_path / "page.html"
    assert report.main([*map(str, run_folders), "--out", str(target)]) == 0
    text = target.read_text()
    page = Page(text)
    header = next(row for row in page.rows if row[:1] == ["score"])
    assert header == ["score", "protocol", "metric", "first", "second"]
    first, second = (
        next(tasks["anomaly"] for tasks in results_of(folder).values() if "anomaly" in tasks)
        for folder in run_folders
    )
    for metric in ("AP", "FPR95"):
        row = next(row for row in page.rows if row[:3] == ["gmm_density", "pooled", metric])
        values = [found["gmm_density"][metric] for found in (first, second)]
        assert row[3:] == [f"{value:.4f}" for value in values]
        # The second run is the better one under either metric.
        assert f'<b class="best">{number(values[1])}</b>' in text
        assert f'<b class="best">{number(values[0])}</b>' not in text
    assert ["SOLVER.BASE_LR", "0.01", "0.025"] in page.rows
    assert not any(row[:1] == ["SOLVER.MAX_ITER"] for row in page.rows)
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize(
    "names, shown",
    [
        (["net_gmm", "net_softmax"], ["gmm", "softmax"]),
        (["net_gmm_1", "net_softmax_1"], ["gmm", "softmax"]),
        (["net_gmm", "net_gmm_2"], ["gmm", "gmm_2"]),
        (["first", "second"], ["first", "second"]),
        (["a_b_a", "a_a"], ["b_a", "a"]),
    ],
)
def test_columns_have_short_names(names, shown):
    assert short_names(names) == shown


def test_equal_runs_have_no_best_one(run_folders):
    twice = [read_run(run_folders[0], name) for name in ("one", "two")]
    assert 'class="best"' not in render_page(twice)


def test_mixtures_of_the_checkpoint(run_folders):
    state = read_mixture_state(run_folders[0] / "model_final.pth")
    assert state.fitted.sum(axis=1).tolist() == [4, 4, 0] and state.dim == 8
    assert state.effective[:2] == pytest.approx([4.0, 1.0]) and math.isnan(state.effective[2])
    assert state.sigma[0].tolist() == [0.25] * 3 and state.sigma[1].tolist() == [1.0] * 3
    page = Page(render_page([read_run(run_folders[0])], pictures=0))
    row = next(row for row in page.rows if row[0] == "car <big> & fast" and len(row) == 7)
    assert row == ["car <big> & fast", "4 of 4", "1.00", "1.000", "1.000", "1.000", "9"]


def test_a_stopped_run_says_what_is_missing_and_what_makes_it(run_folders, report, tmp_path, capsys):
    folder = tmp_path / "stopped run"
    folder.mkdir()
    for file in ("config.yaml", "metrics.json"):
        shutil.copy(run_folders[0] / file, folder)
    assert report.main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert "There is no results.json" in text and "There is no checkpoint" in text
    assert f"train_net.py --eval-only --config-file &#x27;{folder}/config.yaml&#x27;" in text
    assert "Losses" in text and page.polylines
    # Results of before there were curves: numbers stay, and the evaluation makes the rest.
    shutil.copy(run_folders[0] / "results.json", folder)
    torch.save({"model": {"classifier.weight": torch.zeros(1)}}, folder / "model_final.pth")
    text = render_page([read_run(folder)])
    Page(text)
    assert "no curves, histograms and images by their AP" in text and "No overlay of this data set" in text
    assert "model_final.pth holds no mixtures" in text
    # Without a training log.
    (folder / "metrics.json").unlink()
    assert "There is no metrics.json" in render_page([read_run(folder)])


def test_curves_of_another_evaluation_are_not_shown(run_folders, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folders[0], folder)
    results = json.loads((folder / "results.json").read_text())
    scores = next(tasks["anomaly"] for tasks in results["datasets"].values() if "anomaly" in tasks)
    scores["msp"]["AP"] += 1e-3
    (folder / "results.json").write_text(json.dumps(results))
    text = render_page([read_run(folder)])
    assert "belongs to another evaluation than results.json" in text
    assert "Precision and recall" not in text and "Best images" not in text


HOSTILE = "<script>alert('x')</script>\"&"


def test_hostile_names_are_escaped(run_folders, tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "|")
    shutil.copytree(run_folders[0], folder)
    text = (folder / "results.json").read_text()
    names = json.loads(text)["datasets"]
    closed = next(name for name, tasks in names.items() if "sem_seg" in tasks)
    anomaly = next(name for name, tasks in names.items() if "anomaly" in tasks)
    results = json.loads(text)
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
    (folder / "metrics.json").write_text(
        json.dumps({"iteration": 1, f"loss{HOSTILE}": 1.0, f"gmm/{HOSTILE}": 1})
    )
    (folder / "config.yaml").write_text(f"SEED: {json.dumps(HOSTILE)}\n")
    text = render_page([read_run(folder), read_run(run_folders[1])])
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text
    assert text.count("&lt;script&gt;") > 10


def test_nan_infinity_and_intervals(run_folders, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    numbers = {
        "protocol": "smiyc",
        "AP": None,
        "AUROC": 0.5,
        "AUROC_low": 0.25,
        "AUROC_high": 0.75,
        "FPR95": 0.0,
        "best_f1": 0.0,
        "best_f1_threshold": "inf",
        "note": "no pixel",
    }
    (folder / "results.json").write_text(json.dumps({"datasets": {"a": {"anomaly": {"msp": numbers}}}}))
    text = render_page([read_run(folder)])
    page = Page(text)
    assert ["msp", "smiyc", "-", "~0.5000", "0.0000", "0.0000", "inf"] in page.rows
    assert "between 0.25 and 0.75" in text and "no pixel" in text and "768 quantile bins" in text


class TestBadInput:
    @pytest.mark.parametrize(
        ("file", "content", "message"),
        [
            ("results.json", "{", "results.json is no JSON"),
            ("results.json", "[]", "results.json: expected keys with values, found list"),
            ("config.yaml", "a: [", "config.yaml is no YAML"),
            ("metrics.json", "nonsense\n{}\n", "metrics.json, line 1: expected a JSON object"),
        ],
    )
    def test_a_broken_file_is_named(self, report, tmp_path, capsys, file, content, message):
        (tmp_path / file).write_text(content)
        assert report.main([str(tmp_path)]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "report.html").exists()

    def test_no_folder_and_no_run(self, report, tmp_path, capsys):
        assert report.main([str(tmp_path / "none")]) == 1
        assert "there is no folder" in capsys.readouterr().err
        assert report.main([str(tmp_path)]) == 1
        assert "holds no config.yaml, metrics.json or results.json" in capsys.readouterr().err

    def test_the_same_run_twice(self, report, run_folders, capsys):
        with pytest.raises(SystemExit):
            report.main([str(run_folders[0])] * 2)
        assert "given more than once" in capsys.readouterr().err

    def test_a_broken_checkpoint_is_noted(self, run_folders, tmp_path):
        shutil.copy(run_folders[0] / "config.yaml", tmp_path)
        (tmp_path / "model_final.pth").write_bytes(b"no checkpoint")
        assert "model_final.pth cannot be read as a checkpoint" in render_page([read_run(tmp_path)])


def test_names_tell_runs_apart(report):
    folders = [Path("/a/one/run"), Path("/a/two/run"), Path("/a/other")]
    assert report.names(folders) == ["one/run", "two/run", "other"]


def test_resumed_training_counts_the_later_line(tmp_path):
    lines = [
        {"iteration": 0, "x": 1.0},
        {"iteration": 2, "x": 5.0},
        {"iteration": 1, "x": 2.0},
        {"iteration": 2, "x": 3},
    ]
    path = tmp_path / "metrics.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    series = read_training_log(path)["x"]
    assert series.iterations.tolist() == [0, 1, 2] and series.values.tolist() == [1.0, 2.0, 3.0]
    path.write_text("\n".join(json.dumps({"iteration": step, "x": float(step)}) for step in range(1000)))
    thin = read_training_log(path)["x"].thinned(10)
    assert thin.values.tolist() == [50 * 2 * k + 49.5 for k in range(10)]


def test_panels_of_an_overlay(run_folders):
    name = next(path.parent.name for path in run_folders[0].glob("visualizations/report_anomaly*/*.png"))
    run = read_run(run_folders[0])
    assert len(panel_uris(run.pictures(name)[0])) == 3


def test_axes():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-75.0, -40.0) == [-70, -60, -50, -40] and ticks(3.0, 3.0) == [3.0]
    assert [tick_text(value) for value in (0.25, 20000.0, 2e-5, -1.5e7, 0.0)] == [
        "0.25",
        "20k",
        "2e-5",
        "-1.5e7",
        "0",
    ]
    assert limits(np.array([np.nan, 2.0, 4.0])) == pytest.approx((1.9, 4.1))
    assert limits(np.array([])) == (0.0, 1.0) and limits(np.array([4.0, 4.0]), from_zero=True) == (0.0, 4.2)


def test_markup_is_escaped_by_construction():
    assert tag("p", "a<b", Html("<i>"), None, ["&", 3], title='"') == '<p title="&quot;">a&lt;b<i>&amp;3</p>'
    assert tag("td", "bad \udcff name") == "<td>bad ? name</td>"
    assert number(math.nan) == '<span class="none">-</span>' and ">inf<" in number(math.inf)
    with pytest.raises(ValueError, match="at least one run"):
        render_page([])

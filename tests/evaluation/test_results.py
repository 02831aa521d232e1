"""Tables for people and results.json for programs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.evaluation import TaskResult, format_results, write_results
from gmm_anomaly.evaluation.results import pixel_task
from gmm_anomaly.metrics import PixelMetrics


@pytest.fixture
def results():
    anomaly = {"AP": 0.25, "AUROC": 0.5, "FPR95": math.nan, "best_f1": 1 / 3, "best_f1_threshold": math.inf}
    closed = {"mIoU": 51.234, "fwIoU": 60.0, "mACC": 70.0, "pACC": 80.0, "ECE": 4.5}
    closed |= {
        "IoU-road": 90.126,
        "IoU-traffic light": math.nan,
        "ACC-road": 95.0,
        "ACC-traffic light": math.nan,
    }
    return {
        "streets_val": {"sem_seg": TaskResult(closed, {"images": 3})},
        "streets_anomaly": {
            "anomaly/smiyc/msp": TaskResult(anomaly | {"images": 7}, {"protocol": "smiyc", "note": "n"}),
            "components/anomaly_track/msp": TaskResult(
                {"sIoU_gt": 0.5, "PPV": 0.25, "F1": 0.125, "threshold": -2.5e-5},
                {"tp": {"0.25": np.int64(3)}, "threshold_from": "best F1, smiyc"},
            ),
        },
    }


def rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_tables_hold_every_number_beside_its_protocol(results):
    table = rows(format_results(results))
    assert ["streets_val", "51.23", "60.00", "70.00", "80.00", "4.50"] in table
    assert ["road", "90.13", "95.00"] in table
    assert ["traffic light", "-", "-"] in table
    assert ["streets_anomaly", "msp", "smiyc", "0.2500", "0.5000", "-", "0.3333", "7"] in table
    components = ["streets_anomaly", "msp", "anomaly_track", "0.5000", "0.2500", "0.1250", "-2.5e-05"]
    assert [*components, "best F1, smiyc"] in table


def test_many_classes_stand_in_columns():
    numbers = {f"IoU-class {index}": float(index) for index in range(45)}
    table = rows(format_results({"large": {"sem_seg": TaskResult(numbers)}}))
    assert ["class 0", "0.00", "-", "class 20", "20.00", "-", "class 40", "40.00", "-"] in table
    assert ["class 5", "5.00", "-", "class 25", "25.00", "-", "", "", ""] in table


def test_intervals_are_marked():
    rng = np.random.default_rng(0)
    metrics = PixelMetrics(max_distinct=50)
    label = (rng.random((40, 50)) < 0.2).astype(np.uint8)
    metrics.update((rng.normal(size=label.shape) + label).astype(np.float32), label)
    result = pixel_task(metrics.compute())
    assert result["AP_low"] <= result["AP"] <= result["AP_high"]
    assert result["AP_low"] < result["AP_high"]
    text = format_results({"data": {"anomaly/pooled/msp": result}})
    assert f"~{result['AP']:.4f}" in text and "certified interval" in text


def test_results_json_round_trip(results, tmp_path):
    path = write_results(
        results, tmp_path / "run", iteration=40, weights="model.pth", config=tmp_path / "a.yaml"
    )
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["results.json"]
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (found["iteration"], found["weights"]) == (40, "model.pth")
    assert found["config"] == str(tmp_path / "a.yaml")
    anomaly = found["datasets"]["streets_anomaly"]["anomaly"]["msp"]
    assert anomaly["protocol"] == "smiyc"
    assert anomaly["best_f1"] == 1 / 3
    assert anomaly["FPR95"] is None
    assert anomaly["best_f1_threshold"] == "inf"
    assert found["datasets"]["streets_anomaly"]["components"]["msp"]["track"] == "anomaly_track"
    assert found["datasets"]["streets_anomaly"]["components"]["msp"]["tp"] == {"0.25": 3}
    assert found["datasets"]["streets_val"]["sem_seg"]["IoU-road"] == 90.126
    assert found["datasets"]["streets_val"]["sem_seg"]["IoU-traffic light"] is None
    assert found["units"] == {"anomaly": "fraction", "components": "fraction", "sem_seg": "percent"}
    assert {"gmm_anomaly", "torch", "numpy", "detectron2", "python"} <= set(found["versions"])


def test_a_failed_write_leaves_the_old_file(results, tmp_path):
    path = write_results(results, tmp_path, iteration=1)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_results(results, tmp_path, iteration=object())
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]

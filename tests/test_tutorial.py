"""docs/tutorial.md, run from top to bottom: every command, in order, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
# Put behind the command that trains, as the page says.
TINY = {
    "SOLVER.MAX_ITER": 4,
    "SOLVER.IMS_PER_BATCH": 2,
    "INPUT.CROP.SIZE": "[64, 64]",
    "INPUT.MIN_SIZE_TEST": 64,
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.WEIGHTS": "",
    "MODEL.FEATURE_DISTANCE.NUM_IMAGES": 4,
    "MODEL.GMM.HEALTH_PERIOD": 0,
    "MODEL.GMM.WARM_START_FEATURES": 20,
    # So short a training may not see the rarest class.
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.NUM_VISUALIZATIONS": 1,
}


def blocks() -> Iterator[tuple[str, str]]:
    """Language and content of the page's fenced blocks."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)


def trains(command: str) -> bool:
    return command.startswith("python train_net.py") and "--eval-only" not in command


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder in which the page was followed, and what its blocks printed."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name in ("train_net.py", "configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("gmm-anomaly", " -m gmm_anomaly.cli")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -W ignore{arguments} "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    printed = []
    for language, block in blocks():
        if language != "sh":
            continue
        if trains(block):
            block = f"{block.rstrip()} {shlex.join(str(part) for pair in TINY.items() for part in pair)}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, f"{block}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        printed.append(done.stdout)
    return folder, printed


def test_every_block_is_a_command_or_plain_text():
    assert {language for language, _ in blocks()} == {"sh", "text"}
    assert sum(trains(block) for _, block in blocks()) == 1
    assert f"SOLVER.MAX_ITER {TINY['SOLVER.MAX_ITER']}" in PAGE


def test_the_training_and_the_evaluation(followed):
    results = json.loads((followed[0] / "output/my_streets/results.json").read_text())["datasets"]
    assert results["my_streets_val"]["sem_seg"]["images"] == 60 // 5
    found = results["my_streets_anomalies"]["anomaly"]
    assert list(found) == ["hybrid", "gmm_density", "msp"]
    height, width = cv2.imread(str(followed[0] / "my_streets/images/000000.png")).shape[:2]
    for numbers in found.values():
        assert numbers["protocol"] == "pooled" and numbers["images"] == 15
        counted = numbers["anomaly_pixels"] + numbers["known_pixels"] + numbers["void_pixels"]
        assert counted == 15 * height * width and 0 < numbers["AP"] <= 1
    checkpoint = torch.load(followed[0] / "output/my_streets/model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == TINY["SOLVER.MAX_ITER"] - 1


def test_the_prediction_and_the_report(followed):
    folder = followed[0] / "output" / "my_streets"
    image = cv2.imread(str(followed[0] / "my_streets/anomalies/images/000007.png"))
    # A legend stands above the picture.
    assert cv2.imread(str(folder / "predicted/overlays/000007.png"))[-len(image) :].shape == image.shape
    threshold = json.loads((folder / "predicted/threshold.json").read_text())
    assert threshold["measured_fpr"] <= threshold["target_fpr"] == 0.01
    assert (threshold["dataset"], threshold["images"]) == ("my_streets_val", 60 // 5)
    page = (folder / "report.html").read_text(encoding="utf-8")
    results = json.loads((folder / "results.json").read_text())["datasets"]
    for numbers in results["my_streets_anomalies"]["anomaly"].values():
        assert f'value="{numbers["AP"]!r}"' in page


def test_what_the_page_quotes_and_names_is_there(followed):
    folder, printed = followed
    quoted = next(block for language, block in blocks() if language == "text" and "present" in block)
    assert quoted.strip() in "".join(printed)
    named = re.findall(r"`((?:output|my_streets)/[\w./]+)`", PAGE)
    assert len(named) > 5
    for path in named:
        assert (folder / path).exists(), path

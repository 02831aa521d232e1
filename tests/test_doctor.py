"""What the doctor finds, and its exit status, in a broken and in a working installation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gmm_anomaly import cli, doctor

ROOT = Path(__file__).resolve().parent.parent


def test_nothing_installed_is_reported_not_raised():
    command = [sys.executable, "-S", "-m", "gmm_anomaly.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    report = json.loads(done.stdout)
    assert (done.returncode, report["ready"], report["root"]) == (1, False, str(ROOT))
    assert {"torch", "torchvision", "cv2"} <= set(report["problems"])
    assert "DETECTRON2=/path/to/checkout" in report["problems"]["detectron2"]


def test_this_installation(capsys, monkeypatch, tmp_path):
    trained = tmp_path / "output" / "run" / "model_final.pth"
    trained.parent.mkdir(parents=True)
    trained.touch()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for found in ("detectron2 ", "PyTorch ", "synthetic_street_train: present, ", "run/model_final.pth"):
        assert found in printed
    assert printed.endswith("The project can run.\n")


def test_requirements_are_compared_with_what_is_installed(tmp_path, monkeypatch, capsys):
    """Metadata of the project and of some packages, as if only these were installed."""
    requirements = [
        "timm>=1.0", "iopath>=0.1.9", "yacs", 'colorama; sys_platform == "win32"', "opencv-python-headless",
        'weights; extra == "demo"',
    ]  # fmt: skip
    installed = {"timm": "0.9", "iopath": "0.1.10"}

    def version(name):
        if name not in installed:
            raise doctor.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "requires", lambda name: requirements)
    monkeypatch.setattr(doctor, "version", version)
    (tmp_path / "ill_fitting.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(doctor, "COMPILED", ("cv2", "ill_fitting"))
    core = {
        "ill_fitting": "import ill_fitting fails: operator nms does not exist",
        "timm": "0.9 installed, >=1.0 needed",
        "yacs": "not installed",
    }
    assert doctor.problems() == core
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("The project cannot run. To mend this: ")


def test_project_used_from_its_folder(monkeypatch):
    def requires(name):
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "requires", requires)
    monkeypatch.setattr(doctor, "COMPILED", ())
    assert doctor.problems() == {}

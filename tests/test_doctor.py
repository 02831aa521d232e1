"""The doctor's findings, verdict and exit status, in a broken and in a working installation."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import types
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from gmm_anomaly import compat, doctor, doctor_packages
from gmm_anomaly.doctor import ABSENT, BROKEN, OK, Finding

ROOT = Path(__file__).resolve().parent.parent


def run_doctor(*arguments: str, isolated: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command; ``isolated``: with the standard library only, as where nothing is installed."""
    command = [sys.executable, *(["-S"] if isolated else []), "-m", "gmm_anomaly.doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def hide_installed(monkeypatch, site_packages: Path) -> None:
    """Leave the standard library and ``site_packages`` on the path."""
    pytest.importorskip("packaging.requirements")  # stays importable: it is loaded now
    standard = [entry for entry in sys.path if "-packages" not in entry and Path(entry) != ROOT]
    monkeypatch.setattr(sys, "path", [str(site_packages), *standard])


def install_project(site_packages: Path, monkeypatch, requirements: list[str], **versions: str) -> None:
    """Metadata of the project and of the packages ``versions``, as if only these were installed."""
    for name, number in {"gmm-anomaly": "0.1.0", **versions}.items():
        folder = site_packages / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
        if name == "gmm-anomaly":
            lines += ["Provides-Extra: demo", "Provides-Extra: test"]
            lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
    hide_installed(monkeypatch, site_packages)


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_nothing_installed_is_reported_not_raised():
    done = run_doctor("--json", isolated=True)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["ready"] is False
    assert report["root"] == str(ROOT)
    findings = {finding["name"]: finding for finding in report["findings"]}
    for name in ("torch", "torchvision", "opencv-python-headless", "timm", "detectron2"):
        assert findings[name]["state"] == BROKEN
        assert "make setup" in findings[name]["remedy"]


def test_this_installation():
    pytest.importorskip("detectron2")
    done = run_doctor("--json", "--depth", "versions")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, findings
    assert findings["torch"]["value"].split("+")[0] == version("torch").split("+")[0]
    assert findings["timm"]["value"] == version("timm")
    assert findings["python"]["value"].startswith(platform.python_version())
    assert "Data sets" not in {finding["section"] for finding in findings.values()}


def test_requirements_are_compared_with_what_is_installed(tmp_path, monkeypatch):
    requirements = [
        "timm>=1.0",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "omegaconf<2.4",
        "hydra-core",
        "yacs",
        'colorama; sys_platform == "win32"',
        'h5py; extra == "test"',
        'scipy>=1.11; extra == "test"',
        'weights; extra == "demo"',
    ]
    install_project(
        tmp_path, monkeypatch, requirements,
        timm="0.9", fvcore="0.1.5.post20221221", iopath="0.1.10", omegaconf="2.3.1", scipy="1.9",
    )  # fmt: skip
    packages = by_name(doctor.package_findings(imported=False))
    assert packages["timm"] == Finding(
        "Packages", "timm", "0.9 installed, >=1.0 needed", BROKEN, "make setup"
    )
    assert packages["fvcore"].state == packages["omegaconf"].state == OK
    assert packages["hydra-core"].state == packages["yacs"].state == BROKEN
    assert "colorama" not in packages

    extras = by_name(doctor.extra_findings())
    assert extras["test"] == Finding(
        "Extras", "test", "not installed: h5py; scipy: 1.9 installed, >=1.11 needed", ABSENT, "make test"
    )
    assert (extras["demo"].state, extras["demo"].remedy) == (ABSENT, "make demo")
    needed = by_name(doctor.extra_findings(["demo", "unheard-of"]))
    assert needed["demo"].state == needed["unheard-of"].state == BROKEN
    assert needed["test"].state == ABSENT


def test_project_used_from_its_folder(tmp_path, monkeypatch):
    hide_installed(monkeypatch, tmp_path)
    (finding,) = doctor.extra_findings()
    assert (finding.state, finding.remedy) == (ABSENT, "make setup")


def test_mismatched_compiled_package(tmp_path, monkeypatch):
    (tmp_path / "compiled_thing.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    finding = doctor_packages._imported("Packages", "thing", "compiled_thing")
    assert finding.state == BROKEN
    assert finding.value == "import compiled_thing fails: operator torchvision::nms does not exist"
    assert "constraints.txt" in finding.remedy


def test_detectron2_found_and_missing(monkeypatch):
    info = compat.Detectron2Info("0.6", Path("/src/detectron2"), "checkout", "/src", compiled=True)
    monkeypatch.setattr(compat, "detectron2_info", lambda: info)
    found = by_name(doctor.detectron2_findings())
    assert found["detectron2"].value == f"0.6 ({Path('/src/detectron2')})"
    assert found["kind"].value == "checkout, /src"
    assert found["compiled operators"].value == "yes"

    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "detectron2", None)
    (missing,) = doctor.detectron2_findings()
    assert missing.state == BROKEN
    assert "DETECTRON2=/path/to/checkout" in missing.value


@dataclass
class Status:
    name: str
    root: str | None
    found: bool
    hint: str


def test_data_sets(monkeypatch):
    catalog = types.ModuleType("gmm_anomaly.data.catalog")
    catalog.dataset_status = lambda: [
        Status("synthetic_street_train", None, True, ""),
        Status("camvid_train", "/data/camvid", False, "put it there"),
        Status("camvid_val", "/data/camvid", False, "put it there"),
        Status("road_anomaly", "/data/road", True, ""),
    ]
    data = types.ModuleType("gmm_anomaly.data")
    monkeypatch.setitem(sys.modules, "gmm_anomaly.data", data)
    monkeypatch.setitem(sys.modules, "gmm_anomaly.data.catalog", catalog)
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    monkeypatch.delenv("GMM_ANOMALY_CAMVID", raising=False)
    findings = doctor.dataset_findings()
    assert [(finding.name, finding.value, finding.state, finding.remedy) for finding in findings] == [
        ("DETECTRON2_DATASETS", "/data", OK, ""),
        ("GMM_ANOMALY_CAMVID", "not set", OK, ""),
        ("synthetic_street_train", "rendered on the fly", OK, ""),
        ("road_anomaly", "/data/road", OK, ""),
        ("camvid_train, camvid_val", "not found in /data/camvid", ABSENT, "put it there"),
    ]


def test_data_sets_without_detectron2(monkeypatch):
    for module in ("gmm_anomaly.data", "gmm_anomaly.data.catalog"):
        monkeypatch.setitem(sys.modules, module, None)
    finding = doctor.dataset_findings()[-1]
    assert (finding.name, finding.state, finding.remedy) == ("registered", BROKEN, "make setup")


def test_report_marks_what_needs_attention():
    findings = [
        Finding("Packages", "torch", "2.14.1"),
        Finding("Packages", "timm", "not installed", BROKEN, "make setup"),
        Finding("Data sets", "camvid", "not found", ABSENT, "download it"),
    ]
    assert doctor.render(findings).splitlines() == [
        "Packages",
        "  torch   2.14.1",
        "! timm    not installed",
        "          -> make setup",
        "",
        "Data sets",
        "- camvid  not found",
        "          -> download it",
        "",
        "The main job cannot run. To be mended: timm.",
    ]
    assert doctor.render(findings[::2]).endswith("The main job can run.")


@pytest.mark.parametrize(("state", "status"), [(OK, 0), (ABSENT, 0), (BROKEN, 1)])
def test_exit_status(monkeypatch, capsys, state, status):
    monkeypatch.setattr(doctor, "examine", lambda **_: [Finding("Packages", "timm", "?", state)])
    assert doctor.main([]) == status
    assert doctor.main(["--json"]) == status
    report = json.loads(capsys.readouterr().out.split("run.\n")[-1].split("timm.\n")[-1])
    assert report["ready"] is (status == 0)

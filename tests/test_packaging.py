"""Wheel and source archive: what is in them, what they say, and that the installed wheel works."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import yaml

from gmm_anomaly import __version__, cli

ROOT = Path(__file__).resolve().parents[1]
BUNDLED = "gmm_anomaly/bundled/road.pth"
DEMO = "synthetic/effnetlite0_deeplabv3plus_gmm.yaml"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> SimpleNamespace:
    """Both archives, made without the network; the wheel from the source archive, as pip does."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("built")
    source, out = folder / "source", folder / "dist"
    # Not by pattern: a module of the package may be called like a folder of results.
    source.mkdir()
    for entry in sorted(ROOT.iterdir()):
        if entry.is_file():
            shutil.copy(entry, source)
        elif entry.name in ("configs", "docs", "gmm_anomaly", "tests", "tools"):
            shutil.copytree(entry, source / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
    # What a used checkout holds, and nobody wants in an archive.
    for stray in ("output/run/model_final.pth", "datasets/camvid/a.png", "configs/synthetic/mine.yaml~"):
        (source / stray).parent.mkdir(parents=True, exist_ok=True)
        (source / stray).touch()
    call = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"

    def build(kind: str, where: Path) -> Path:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", call.format(kind), str(out)],
            cwd=where, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return out / done.stdout.splitlines()[-1]

    sdist = build("sdist", source)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
        names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    wheel = build("wheel", folder / "unpacked" / sdist.name.removesuffix(".tar.gz"))
    with zipfile.ZipFile(wheel) as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    return SimpleNamespace(wheel=wheel, files=inside, sdist=names)


def test_the_wheel_holds_the_package_the_configs_and_nothing_else(built):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "gmm_anomaly").rglob("*.py")}
    beside = [*(ROOT / "configs").rglob("*.yaml"), ROOT / "train_net.py"]
    copies = {f"gmm_anomaly/repository/{path.relative_to(ROOT).as_posix()}": path for path in beside}
    information = {name for name in built.files if ".dist-info/" in name}
    assert set(built.files) - information == modules | set(copies) | {
        "gmm_anomaly/py.typed", "gmm_anomaly/report/page.html.j2", BUNDLED, "gmm_anomaly/bundled/README.md",
    }  # fmt: skip
    assert len(copies) > 40
    assert len(built.files[BUNDLED]) <= 16e6, "a model that comes along is small"
    for name, path in copies.items():
        assert built.files[name] == path.read_bytes(), name
    (licence,) = (name for name in information if name.endswith("/LICENSE"))
    assert built.files[licence] == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_builds_and_holds_no_tests_and_no_data(built):
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"} <= set(built.sdist)
    folders = {name.split("/")[0] for name in built.sdist if "/" in name}
    assert folders == {"configs", "gmm_anomaly", "gmm_anomaly.egg-info"}
    data = [name for name in built.sdist if name.endswith((".pth", ".png", ".npz", ".pyc", "~"))]
    assert data == [BUNDLED]


def test_the_wheel_says_what_it_is(built):
    assert built.wheel.name == f"gmm_anomaly-{__version__}-py3-none-any.whl"
    (name,) = (name for name in built.files if name.endswith("/METADATA"))
    said = Parser().parsestr(built.files[name].decode())
    assert (said["Name"], said["Version"], said["License-Expression"]) == (
        "gmm-anomaly", __version__, "Apache-2.0",
    )  # fmt: skip
    assert said["Requires-Python"] == ">=3.10" and said["Description-Content-Type"] == "text/markdown"
    assert set(said.get_all("Provides-Extra")) == {"demo", "export", "mask", "smiyc", "test"}
    required = said.get_all("Requires-Dist")
    for extra, package in (("export", "onnx"), ("mask", "transformers"), ("smiyc", "h5py")):
        assert any(re.match(rf"{package}\W.*extra == ['\"]{extra}['\"]", line) for line in required)
    assert any(line.startswith("torch>=") for line in required)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The ``bin`` of an environment with the wheel and, beside it, the packages of this one."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "venv", symlinks=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    detectron2 = importlib.util.find_spec("detectron2")
    others = [Path(entry) for entry in sys.path if entry.endswith("-packages")]
    # Added as paths: an editable installation of this project, which is a .pth itself, stays behind.
    others += [Path(detectron2.origin).parents[1]] if detectron2 and detectron2.origin else []
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(others)))
    python = folder / "venv" / "bin" / "python"
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python), "install",
            "--quiet", "--no-index", "--no-deps", "--no-compile", "--ignore-installed", str(built.wheel),
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return python.parent


def run(folder: Path, where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    program, *arguments = command
    return subprocess.run(
        [str(folder / program), *arguments], cwd=where, capture_output=True, text=True,
        env=environment | {"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip


def test_the_installed_command(installed, tmp_path):
    listed = run(installed, tmp_path, "gmm-anomaly", "--help")
    assert listed.returncode == 0 and all(f"\n    {verb} " in listed.stdout for verb in cli.VERBS)


def test_the_installed_package_predicts_without_config_and_weights(installed, tmp_path):
    image = np.full((60, 100, 3), 90, np.uint8)
    image[20:50, 30:60] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    assert cv2.imwrite(str(tmp_path / "photo.png"), image)
    done = run(installed, tmp_path, "gmm-anomaly", "predict", "photo.png", "--out", "out", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["threshold"]["dataset"].startswith("cityscapes")
    assert cv2.imread(str(tmp_path / "out/overlays/photo.png")) is not None


def test_the_installed_configs_and_train_net(installed, tmp_path):
    """A key that does not exist: the message comes after the config and the one it continues are read."""
    done = run(installed, tmp_path, "gmm-anomaly", "train", "--config-file", DEMO, "SEEDS", "1")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr[-2000:]
    assert "train_net.py: error: there is no config key SEEDS; did you mean SEED?" in done.stderr
    code = (
        "from gmm_anomaly.compat import ROOT, find_config\n"
        f"print(find_config('{DEMO}'), (ROOT / 'train_net.py').is_file())\n"
        "find_config('synthetic/effnetlite0.yaml')"
    )
    done = run(installed, tmp_path, "python", "-c", code)
    assert done.stdout.startswith(str(installed.parent)) and done.stdout.endswith(f"{DEMO} True\n")
    assert re.search(r"FileNotFoundError: .*; did you mean synthetic/effnetlite0", done.stderr)


def test_the_image_and_the_workflow_use_what_is_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    image = (ROOT / "Dockerfile").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = "\n".join([step.get("run", "") for step in steps] + re.findall(r"^RUN (make .*)", image, re.M))
    called = re.findall(r"make (\S+)", commands)
    assert sorted(called) == ["lint", "setup", "test"] and set(called) <= set(targets)
    # What the set-up reads is copied.
    copied = set(" ".join(re.findall(r"^COPY --chown=user (.*) \S+$", image, re.M)).split())
    assert all(any(ROOT.glob(pattern)) for pattern in copied)
    needed = {"Makefile", "pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE", "tools"}
    assert needed | {"train_net.py", "configs", "gmm_anomaly"} <= copied


def test_the_version_is_everywhere_the_same():
    newest = re.search(r"^## \[([\d.]+)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest and newest[1] == citation["version"] == __version__
    assert newest[2] == citation["date-released"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"

"""The set-up script without the network: the wheel's hash and unpacking, what is kept, what failures say."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import setup_environment as script

ROOT = Path(__file__).resolve().parent.parent


def make_wheel(path: Path) -> Path:
    """A wheel laid out as the registry's: the package, a compiled module, a stray ``tools``, the metadata."""
    files = {
        "detectron2/__init__.py": '__version__ = "0.7.2"\n',
        "detectron2/_C.cpython-310-x86_64-linux-gnu.so": "\x7fELF",
        "detectron2/model_zoo/base.yaml": "MODEL: {}\n",
        "tools/__init__.py": "",
        "sal_detectron2-0.7.2.dist-info/METADATA": "Metadata-Version: 2.1\n"
        "Name: sal-detectron2\nVersion: 0.7.2\n",
    }
    record = "sal_detectron2-0.7.2.dist-info/RECORD"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "".join(f"{name},sha256=x,1\n" for name in files) + f"{record},,\n")
    return path


def test_a_wheel_with_another_hash_is_refused(tmp_path):
    wheel = make_wheel(tmp_path / "a.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    script.verify_sha256(wheel, found)
    with pytest.raises(script.SetupError, match=rf"a\.whl: SHA-256 is {found}, expected {'0' * 64}"):
        script.verify_sha256(wheel, "0" * 64)


def test_unpacked_wheel_is_what_its_metadata_lists(tmp_path):
    site_packages = tmp_path / "site-packages"
    stale = site_packages / "detectron2" / "left_over.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")

    script.unpack_wheel(make_wheel(tmp_path / "a.whl"), site_packages)

    unpacked = {str(path.relative_to(site_packages)) for path in site_packages.rglob("*") if path.is_file()}
    assert unpacked == {
        "detectron2/__init__.py",
        "detectron2/model_zoo/base.yaml",
        "sal_detectron2-0.7.2.dist-info/METADATA",
        "sal_detectron2-0.7.2.dist-info/RECORD",
    }
    (installed,) = importlib.metadata.distributions(path=[str(site_packages)])
    assert installed.version == "0.7.2"
    assert {str(file) for file in installed.files} == unpacked


def test_a_detectron2_that_imports_is_left_alone(tmp_path, monkeypatch):
    """The "environment's" interpreter is this one; it imports a package ``detectron2`` from PYTHONPATH."""
    python, package = tmp_path / "venv" / "bin" / "python", tmp_path / "path" / "detectron2"
    for folder in (python.parent, package):
        folder.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (package / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.setattr(script, "run", lambda *_: pytest.fail("an install was started"))
    script.install_detectron2(tmp_path / "venv", "")


def test_another_detectron2_than_the_one_that_imports_is_installed(tmp_path, monkeypatch):
    commands = []
    # Recorded, never run: it begins with an uninstallation, and an interpreter belongs to somebody.
    done = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(script, "quiet", lambda command, cwd=None: done)
    monkeypatch.setattr(script, "run", lambda command, advice: commands.append(command))
    source = "git+https://example.org/detectron2"
    script.install_detectron2(tmp_path, source)
    ((*_, without_isolation, without_dependencies, target),) = commands
    assert (without_isolation, without_dependencies) == ("--no-build-isolation", "--no-deps")
    assert target == source


def test_a_failed_step_says_what_to_do():
    with pytest.raises(script.SetupError, match=r"SystemExit\(3\)\n  ended with exit status 3. Do this."):
        script.run([sys.executable, "-c", "raise SystemExit(3)"], "Do this.")


def test_folder_that_is_no_environment_is_not_touched(tmp_path):
    precious = tmp_path / "notes.txt"
    precious.write_text("mine")
    with pytest.raises(script.SetupError, match="exists and is no virtual environment"):
        script.make_venv(tmp_path, explicit_python=False)
    assert precious.read_text() == "mine"


def test_environment_of_another_python_is_kept_unless_one_was_named(tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 3.99\n")
    python.chmod(0o755)
    script.make_venv(tmp_path, explicit_python=False)
    with pytest.raises(script.SetupError, match="was made with Python 3.99, and PYTHON names a Python"):
        script.make_venv(tmp_path, explicit_python=True)


def test_constraints_pin_every_requirement():
    requirements = pytest.importorskip("packaging.requirements")
    if sys.version_info < (3, 11):
        pytest.skip("reading pyproject.toml needs tomllib")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    pins: dict[str, list] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            assert re.fullmatch(r"==[^*]+", str(pin.specifier)), line
            pins.setdefault(pin.name.lower(), []).append(pin)
    assert {"torch", "setuptools", "uv"} <= pins.keys()
    assert "detectron2" not in pins
    for requirement in map(requirements.Requirement, declared):
        for python in ("3.10", "3.11", "3.12", "3.13"):
            where = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
            fitting = [
                p for p in pins[requirement.name.lower()] if p.marker is None or p.marker.evaluate(where)
            ]
            assert len(fitting) == 1, (requirement.name, python)
            (version,) = [specifier.version for specifier in fitting[0].specifier]
            assert requirement.specifier.contains(version), (str(requirement), version)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
class TestMakefile:
    @staticmethod
    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        hidden = ("PYTHON", "VENV", "DETECTRON2", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES")
        env = {key: value for key, value in os.environ.items() if key not in hidden}
        return subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=env,
        )

    def test_default_target_lists_the_targets(self):
        done = self.make()
        assert done.returncode == 0
        for target in ("setup", "demo", "test", "doctor", "lint", "clean"):
            assert re.search(rf"^  {target} +\w", done.stdout, re.MULTILINE), target

    def test_interpreter_that_is_not_there(self, tmp_path):
        done = self.make("setup", "PYTHON=/no/such/python", f"VENV={tmp_path}/venv")
        assert done.returncode != 0
        assert "'/no/such/python' is not a Python 3.10 or newer that runs here" in done.stderr
        assert "make setup PYTHON=" in done.stderr
        assert not (tmp_path / "venv").exists()

"""The set-up script without the network: the wheel's hash and unpacking, what is kept, what failures say."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tools() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The modules setup_environment, setup_detectron2 and setup_process, by the names they import."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        names = ("setup_environment", "setup_detectron2", "setup_process")
        return tuple(importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture
def environment(tools) -> ModuleType:
    return tools[0]


@pytest.fixture
def detectron2_source(tools) -> ModuleType:
    return tools[1]


@pytest.fixture
def setup_error(tools) -> type[Exception]:
    return tools[2].SetupError


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


def test_wheel_with_the_expected_hash_is_accepted(detectron2_source, tmp_path):
    wheel = make_wheel(tmp_path / "a.whl")
    expected = subprocess.run(
        ["sha256sum", wheel], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    detectron2_source.verify_sha256(wheel, expected)


def test_wheel_with_another_hash_is_refused(detectron2_source, setup_error, tmp_path):
    wheel = make_wheel(tmp_path / "a.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(setup_error, match=rf"a\.whl: SHA-256 is {found}, expected {'0' * 64}"):
        detectron2_source.verify_sha256(wheel, "0" * 64)


def test_unpacked_wheel_is_what_its_metadata_lists(detectron2_source, tmp_path):
    site_packages = tmp_path / "site-packages"
    stale = site_packages / "detectron2" / "left_over.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")

    detectron2_source.unpack_wheel(make_wheel(tmp_path / "a.whl"), site_packages)

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


@pytest.mark.parametrize("fails", [True, False])
def test_registry_wheel_comes_back_only_when_the_other_one_fails(detectron2_source, tmp_path, fails):
    site_packages = tmp_path / "site-packages"
    site_packages.mkdir()
    detectron2_source.unpack_wheel(make_wheel(tmp_path / "a.whl"), site_packages)
    before = set(site_packages.rglob("*"))

    def replace() -> None:
        with detectron2_source.set_aside_registry_wheel(site_packages):
            assert not list(site_packages.glob("*detectron2*"))
            (site_packages / "detectron2").mkdir()
            if fails:
                raise RuntimeError("does not compile")

    if fails:
        with pytest.raises(RuntimeError, match="does not compile"):
            replace()
        assert set(site_packages.rglob("*")) == before
    else:
        replace()
        assert list(site_packages.rglob("*")) == [site_packages / "detectron2"]


def test_detectron2_values(detectron2_source, setup_error, tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.chdir(tmp_path)
    for value in ("", "registry", "git+https://example.org/detectron2@main", "https://example.org/a.whl"):
        assert detectron2_source.normalize_detectron2(value) == value
    with pytest.raises(setup_error, match="DETECTRON2=checkout: no setup.py there"):
        detectron2_source.normalize_detectron2("checkout")
    (checkout / "setup.py").write_text("")
    assert detectron2_source.normalize_detectron2("checkout") == str(checkout)
    with pytest.raises(setup_error, match="DETECTRON2=no/such: no such file or folder"):
        detectron2_source.normalize_detectron2("no/such")


@pytest.fixture
def importable_detectron2(monkeypatch, tmp_path) -> Path:
    """An "environment" whose interpreter is this one; it imports a package ``detectron2`` from PYTHONPATH."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    package = tmp_path / "path" / "detectron2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    return tmp_path / "venv"


@pytest.mark.parametrize(
    ("wanted", "recorded", "source"),
    [("", None, "found"), ("", "registry", "registry"), ("/a/checkout", "/a/checkout", "/a/checkout")],
)
def test_a_detectron2_that_imports_is_left_alone(
    detectron2_source, importable_detectron2, monkeypatch, wanted, recorded, source
):
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("an install was started")

    monkeypatch.setattr(detectron2_source, "run", refuse)
    assert detectron2_source.install_detectron2(importable_detectron2, wanted, recorded) == source


def test_another_detectron2_than_the_recorded_one_is_installed(
    detectron2_source, importable_detectron2, monkeypatch
):
    commands = []
    monkeypatch.setattr(detectron2_source, "run", lambda command, advice: commands.append(command))
    source = "git+https://example.org/detectron2"
    assert detectron2_source.install_detectron2(importable_detectron2, source, "registry") == source
    ((*_, without_isolation, without_dependencies, target),) = commands
    assert (without_isolation, without_dependencies) == ("--no-build-isolation", "--no-deps")
    assert target == source


def test_stamp_decides_by_inputs_extras_and_detectron2(environment):
    stamp = {"inputs": "a", "extras": ["demo", "test"], "detectron2": "registry"}
    assert environment.fits(stamp, "a", {"demo"}, "")
    assert environment.fits(stamp, "a", {"demo", "test"}, "registry")
    assert not environment.fits(stamp, "b", {"demo"}, "")
    assert not environment.fits(stamp, "a", {"smiyc"}, "")
    assert not environment.fits(stamp, "a", set(), "git+https://example.org/detectron2")
    assert not environment.fits({}, "a", set(), "")


def test_input_hash_follows_both_files(environment, tmp_path):
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    first = environment.input_hash(tmp_path)
    assert first == environment.input_hash(ROOT)
    seen = {first}
    for name in ("pyproject.toml", "constraints.txt"):
        with (tmp_path / name).open("a") as file:
            file.write("\n")
        seen.add(environment.input_hash(tmp_path))
    assert len(seen) == 3


def test_unreadable_stamp_counts_as_none(environment, tmp_path):
    assert environment.read_stamp(tmp_path) == {}
    (tmp_path / environment.STAMP_NAME).write_text("{half")
    assert environment.read_stamp(tmp_path) == {}
    environment.write_stamp(tmp_path, {"extras": ["demo"]})
    assert environment.read_stamp(tmp_path) == {"extras": ["demo"]}


def test_failed_step_is_named_with_command_and_advice(environment, setup_error, tmp_path, monkeypatch):
    def fail(venv: Path, constraints: Path) -> None:
        environment.run([sys.executable, "-c", "raise SystemExit(3)"], "Do this.")

    monkeypatch.setattr(environment, "make_venv", lambda venv, explicit: None)
    monkeypatch.setattr(environment, "install_installers", fail)
    environment.write_stamp(tmp_path, {"inputs": "a", "extras": ["demo"], "detectron2": "/a/checkout"})
    with pytest.raises(setup_error) as caught:
        environment.set_up(tmp_path, {"test"}, "", False)
    text = str(caught.value)
    assert text.startswith("set-up: step 2 of 5 failed: installer\n")
    assert f"command (exit status 3): {sys.executable} -c raise SystemExit(3)" in text
    assert text.endswith("Do this.")
    # The environment no longer counts as complete, and what was chosen for it is not forgotten.
    stamp = environment.read_stamp(tmp_path)
    assert stamp == {"inputs": None, "extras": ["demo"], "detectron2": "/a/checkout"}


def test_folder_that_is_no_environment_is_not_touched(environment, setup_error, tmp_path):
    precious = tmp_path / "notes.txt"
    precious.write_text("mine")
    with pytest.raises(setup_error, match="exists and is no virtual environment"):
        environment.make_venv(tmp_path, explicit_python=False)
    assert precious.read_text() == "mine"


def test_environment_of_another_python_is_kept_unless_one_was_named(environment, setup_error, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 3.99\n")
    python.chmod(0o755)
    environment.make_venv(tmp_path, explicit_python=False)
    with pytest.raises(setup_error, match="was made with Python 3.99, and PYTHON names a Python"):
        environment.make_venv(tmp_path, explicit_python=True)


def test_check_names_what_is_broken(environment, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    report = {"ready": False, "root": "/elsewhere", "problems": {"timm": "not installed"}}
    python.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(report)}\nEND\n")
    python.chmod(0o755)
    assert environment.what_is_wrong(tmp_path, set()).splitlines() == [
        "timm: not installed",
        f"  gmm_anomaly is imported from /elsewhere, not from {ROOT}",
    ]
    python.write_text("#!/bin/sh\necho 'No module named gmm_anomaly' >&2\nexit 1\n")
    assert environment.what_is_wrong(tmp_path, set()) == "No module named gmm_anomaly"


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

    def test_detectron2_that_is_not_there(self, tmp_path):
        settings = (f"PYTHON={sys.executable}", f"VENV={tmp_path}/venv", "DETECTRON2=/no/such")
        done = self.make("setup", *settings)
        assert done.returncode != 0
        assert "DETECTRON2=/no/such: no such file or folder" in done.stderr
        assert not (tmp_path / "venv").exists()

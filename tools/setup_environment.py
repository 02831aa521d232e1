#!/usr/bin/env python3
"""Make the project's virtual environment: pinned packages, Detectron2 and the project itself (editable).

``make setup`` runs this file with any Python 3.10 or newer; it needs the standard library only, and takes
seconds when the environment already fits. ``make help`` says what the settings mean.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = ["-m", "pip", "--disable-pip-version-check"]

# Upstream main of 2024-04-17 under another name: Detectron2's authors publish no package of their own. It is
# a third party's republication, hence the hash. The wheel is tagged for Python 3.10 because of one compiled
# module; the rest is pure Python and works on every later version.
WHEEL_REQUIREMENT = "sal-detectron2==0.7.2"
WHEEL_PYTHON = "3.10"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"


class SetupError(Exception):
    """A step failed; the text says what to do."""


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def run(command: list[str | Path], advice: str, env: dict[str, str] | None = None) -> None:
    """Run a command with its output shown; raise ``SetupError`` with ``advice`` when it fails."""
    status = subprocess.run([str(word) for word in command], env=env).returncode
    if status:
        raise SetupError(f"  {' '.join(map(str, command))}\n  ended with exit status {status}. {advice}")


def quiet(command: list[str | Path], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with its output kept; one that is not there has the exit status 127."""
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))


def make_venv(venv: Path, explicit_python: bool) -> None:
    """Make the environment with the running interpreter, keep one that works, make a broken one again."""
    working = quiet([python_of(venv), "-c", "import sys, pip; print('%d.%d' % sys.version_info[:2])"])
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if working.returncode == 0:
        if explicit_python and working.stdout.strip() != ours:
            raise SetupError(
                f"  {venv} was made with Python {working.stdout.strip()}, and PYTHON names a Python {ours}.\n"
                "  Remove it first (make clean-venv), or name another folder (VENV=…)."
            )
        return
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        raise SetupError(f"  {venv} exists and is no virtual environment. Move it away, or set VENV=….")
    # Not the interpreter that runs this: it may be the broken environment's own.
    base = getattr(sys, "_base_executable", sys.executable)
    run(
        [base, "-m", "venv", "--clear", venv],
        "On Debian and Ubuntu install the package "
        f"python{ours}-venv; or name another interpreter: make setup PYTHON=/path/to/python3",
    )


def install_project(venv: Path, extras: str) -> None:
    """The project, editable, with its dependencies at the pinned versions; by uv where it can be had: it is
    faster."""
    python, constraints = python_of(venv), ROOT / "constraints.txt"
    if quiet([python, "-c", "import setuptools, uv"]).returncode:
        # setuptools builds the source packages.
        run(
            [python, *PIP, "install", "--quiet", "-c", constraints, "setuptools"],
            "Check that a package registry can be reached (proxy, PIP_INDEX_URL).",
        )
        quiet([python, *PIP, "install", "--quiet", "-c", constraints, "uv"])
    target = f"{ROOT}[{extras}]" if extras else str(ROOT)
    arguments = ["--no-build-isolation", "-c", constraints, "-e", target]
    if quiet([python, "-c", "import uv"]).returncode == 0:
        env = {"UV_HTTP_TIMEOUT": "180", **os.environ}
        # pip compiles what it installs: without that the first start, or every one, takes twice as long.
        command = [python, "-m", "uv", "pip", "install", "--compile-bytecode", "--python", python]
        try:
            run([*command, *arguments], "", env=env)
            return
        except SetupError:
            print("set-up: uv failed (see above); trying pip, which reads pip's own settings", flush=True)
    run(
        [python, *PIP, "install", *arguments],
        "The installer's own words are above. A private registry: set PIP_INDEX_URL (and UV_DEFAULT_INDEX).",
    )


def install_detectron2(venv: Path, wanted: str) -> None:
    """Install the Detectron2 asked for: "registry", a URL, or a checkout's folder; "" keeps whatever imports,
    and is the registry's where nothing does."""
    python = python_of(venv)
    there = {
        "": "import detectron2",
        "registry": "from importlib.metadata import version; version('sal-detectron2')",
    }
    if wanted in there and quiet([python, "-c", there[wanted]], cwd=venv).returncode == 0:
        return
    print("set-up: Detectron2", flush=True)
    if wanted in there:
        with tempfile.TemporaryDirectory() as folder:
            run(
                [python, *PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:",
                 "--python-version", WHEEL_PYTHON, "--dest", folder, WHEEL_REQUIREMENT],
                f"The registry did not serve {WHEEL_REQUIREMENT}. With access to git, install upstream:\n"
                "  make setup DETECTRON2=git+https://…  or  DETECTRON2=/path/to/checkout",
            )  # fmt: skip
            (wheel,) = Path(folder).glob("*.whl")
            verify_sha256(wheel, WHEEL_SHA256)
            quiet([python, *PIP, "uninstall", "--yes", "detectron2", "sal-detectron2"])
            where = quiet([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
            site_packages = Path(where.stdout.strip())
            unpack_wheel(wheel, site_packages)
            quiet([python, "-m", "compileall", "-q", site_packages / "detectron2"])
        return
    print("set-up: Detectron2 is compiled now; a few minutes without output are normal", flush=True)
    quiet([python, *PIP, "uninstall", "--yes", "sal-detectron2"])
    source = os.path.expanduser(wanted)
    run(
        # Its setup.py imports torch, which an isolated build would not have.
        [python, *PIP, "install", "--no-build-isolation", "--no-deps",
         *(["-e"] if Path(source).is_dir() else []), source],
        "A git source has to be within reach, a checkout to be a folder with a setup.py. This project needs\n"
        "  no compiled operator: without a C++ compiler take the registry's wheel (DETECTRON2=registry).",
    )  # fmt: skip


def verify_sha256(path: Path, expected: str) -> None:
    """Raise ``SetupError`` unless the file's SHA-256 is ``expected``."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(
            f"  {path.name}: SHA-256 is {found}, expected {expected}.\n"
            "  The registry served another file than the one this project knows; it was not installed.\n"
            "  Ask whoever runs your registry, or install upstream: make setup DETECTRON2=git+https://…"
        )


def unpack_wheel(wheel: Path, site_packages: Path) -> None:
    """Put the wheel's Python code and its metadata into ``site_packages``.

    Left out: the compiled module, which fits Python 3.10 and an old torch only, and the top-level package
    ``tools``, a name that others use. The RECORD lists what was put there, so ``pip uninstall`` works.
    """

    def kept(name: str) -> bool:
        return not name.startswith("tools/") and not name.endswith(".so")

    with tempfile.TemporaryDirectory(dir=site_packages) as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if kept(name)])
        for record in Path(folder).glob("*.dist-info/RECORD"):
            lines = record.read_text().splitlines(keepends=True)
            record.write_text("".join(line for line in lines if kept(line.partition(",")[0])))
        # The package comes last: an import that works means that everything is in its place.
        for entry in sorted(Path(folder).iterdir(), key=lambda path: path.name == "detectron2"):
            destination = site_packages / entry.name
            shutil.rmtree(destination, ignore_errors=True)
            os.replace(entry, destination)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, separated by commas")
    parser.add_argument("--detectron2", default="", help="registry, git+URL, or a checkout's folder")
    args = parser.parse_args()
    # Run by an interpreter from outside, it was either named or is needed for a new environment.
    named = Path(sys.prefix).resolve() != args.venv.resolve()
    venv, started = args.venv.absolute(), time.monotonic()
    try:
        make_venv(venv, named)
        install_project(venv, args.extras)
        install_detectron2(venv, args.detectron2)
        # Not from this folder, where a project that is not installed would be found too.
        check = quiet([python_of(venv), "-W", "ignore", "-c", "import detectron2, gmm_anomaly"], cwd=venv)
        if check.returncode:
            raise SetupError(f"{check.stderr}  To begin anew: make clean-venv, then as before.")
    except SetupError as error:
        sys.exit(f"set-up failed:\n{error}")
    except KeyboardInterrupt:
        sys.exit("set-up: interrupted; the same command takes it up again")
    print(f"set-up: {venv} is ready ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

"""Install Detectron2 into the environment: the registry's wheel, a checkout, or upstream from git.

Standard library only; a part of setup_environment.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from setup_process import PIP, SetupError, python_of, quiet, run

# Upstream main of 2024-04-17 under another name: Detectron2's authors publish no package of their own. It is
# a third party's republication, hence the hash. The wheel is tagged for Python 3.10 because of one compiled
# module; the rest is pure Python and works on every later version.
WHEEL_REQUIREMENT = "sal-detectron2==0.7.2"
WHEEL_PYTHON = "3.10"
WHEEL_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"

# Name in the stamp of a Detectron2 that was there before.
FOUND = "found"

PRINT_SITE_PACKAGES = "import sysconfig; print(sysconfig.get_path('purelib'))"


def normalize_detectron2(value: str) -> str:
    """Absolute path for a checkout or a wheel; ``registry``, ``git+…`` and URLs as they are.

    Raises:
        SetupError: the value is neither of these.
    """
    value = value.strip()
    if value in ("", "registry") or value.startswith("git+") or "://" in value:
        return value
    path = Path(value).expanduser().resolve()
    if path.is_dir() and not (path / "setup.py").is_file():
        raise SetupError(
            f"set-up: DETECTRON2={value}: no setup.py there, so it is no checkout of Detectron2."
        )
    if not path.exists():
        raise SetupError(
            f"set-up: DETECTRON2={value}: no such file or folder.\n"
            "  Give a checkout's folder, git+https://…, 'registry', or leave it out."
        )
    return str(path)


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


@contextlib.contextmanager
def set_aside_registry_wheel(site_packages: Path) -> Iterator[None]:
    """Take the registry's wheel out of the way of another Detectron2; put it back when that one fails."""
    metadata = list(site_packages.glob("sal_detectron2-*.dist-info"))
    entries = [*metadata, site_packages / "detectron2"] if metadata else []
    with tempfile.TemporaryDirectory(dir=site_packages) as folder:
        moved = [(entry, Path(folder) / entry.name) for entry in entries if entry.exists()]
        for entry, aside in moved:
            os.replace(entry, aside)
        try:
            yield
        except BaseException:
            for entry, aside in moved:
                shutil.rmtree(entry, ignore_errors=True)
                os.replace(aside, entry)
            raise


def install_registry_detectron2(venv: Path, site_packages: Path) -> None:
    python = python_of(venv)
    with tempfile.TemporaryDirectory() as folder:
        run(
            [python, *PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--python-version", WHEEL_PYTHON, "--dest", folder, WHEEL_REQUIREMENT],
            f"The registry did not serve {WHEEL_REQUIREMENT}. With access to git, install upstream instead:\n"
            "  make setup DETECTRON2=git+https://…  or  DETECTRON2=/path/to/checkout",
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        verify_sha256(wheel, WHEEL_SHA256)
        quiet([python, *PIP, "uninstall", "--yes", "detectron2", "sal-detectron2"])
        unpack_wheel(wheel, site_packages)


def install_detectron2(venv: Path, wanted: str, recorded: str | None) -> str:
    """Install the Detectron2 asked for and return its name for the stamp.

    Args:
        wanted: empty keeps whatever imports.
        recorded: what the last set-up installed; kept, too, when it is wanted again.
    """
    python = python_of(venv)
    imports = quiet([python, "-c", "import detectron2"], cwd=venv).returncode == 0
    if imports and (wanted == "" or wanted == recorded):
        return recorded or FOUND
    # What was merely found once, outside the environment, is gone: it cannot be installed again.
    source = wanted or (recorded if recorded not in (None, FOUND) else "registry")
    site_packages = Path(quiet([python, "-c", PRINT_SITE_PACKAGES]).stdout.strip())
    if source == "registry":
        install_registry_detectron2(venv, site_packages)
        return source
    print("set-up: Detectron2 is compiled now; a few minutes without output are normal", flush=True)
    editable = ["-e"] if Path(source).is_dir() else []
    with set_aside_registry_wheel(site_packages):
        run(
            # Its setup.py imports torch, which an isolated build would not have.
            [python, *PIP, "install", "--no-build-isolation", "--no-deps", *editable, source],
            "pip's own words are above. A git source has to be within reach. Compiling needs a C++\n"
            "  compiler, Python's headers (Debian, Ubuntu: g++, python3-dev) and, beside a CUDA toolkit,\n"
            "  the version of it that torch was built with.\n"
            "  This project needs no compiled operator: without a compiler leave DETECTRON2 out (the\n"
            "  registry's wheel), or put a checkout on the path: PYTHONPATH=/path/to/checkout make setup",
        )
    return source

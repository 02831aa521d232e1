"""Packages and extras of the project: which are installed, and what they lack.

Only the standard library is imported outside the checks, so this runs where nothing is installed.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from . import compat

PROJECT = "gmm-anomaly"
ROOT = Path(__file__).resolve().parent.parent
# An installed wheel has no Makefile beside it.
IN_CHECKOUT = (ROOT / "Makefile").is_file()
SETUP = "make setup" if IN_CHECKOUT else f"pip install --upgrade {PROJECT}"

OK = "ok"
ABSENT = "absent"  # not there, and the main job does without it
BROKEN = "broken"  # the main job cannot run

NOT_INSTALLED = "not installed"

# Distribution and module of the packages with compiled code: each is imported, because a version alone does
# not show that it fits the others.
COMPILED = (
    ("torch", "torch"),
    ("torchvision", "torchvision"),
    ("numpy", "numpy"),
    ("opencv-python-headless", "cv2"),
    ("pycocotools", "pycocotools.mask"),
)
PURE = ("fvcore", "iopath", "omegaconf", "hydra-core", "timm")

# The command that installs an extra in a checkout; others are installed by pip.
EXTRA_COMMANDS = {"demo": "make demo", "test": "make test"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: heading it stands under.
        name: what was looked at.
        value: what was found, in words.
        state: ``OK``, ``ABSENT`` or ``BROKEN``.
        remedy: what mends it; empty when nothing has to be mended.
    """

    section: str
    name: str
    value: str
    state: str = OK
    remedy: str = ""


def package_findings(*, imported: bool = True) -> list[Finding]:
    """The packages that the main job needs; with ``imported``, those with compiled code are loaded, too."""
    section = "Packages"
    findings = []
    unmet = dict(_unmet(()))
    for name, module in COMPILED:
        if imported:
            # What loads counts as it is: OpenCV, say, may come from another distribution.
            findings.append(_imported(section, name, module))
            unmet.pop(name, None)
    for name in (*(() if imported else dict(COMPILED)), *PURE):
        if name not in unmet:
            found = _version(name)
            findings.append(Finding(section, name, found) if found else _not_installed(section, name))
    findings += [Finding(section, name, why, BROKEN, SETUP) for name, why in unmet.items()]
    return findings


def extra_findings(needed: Iterable[str] = ()) -> list[Finding]:
    """The optional parts of the project; those in ``needed`` count as broken when they are incomplete."""
    needed = set(needed)
    try:
        extras = metadata(PROJECT).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        text = "not installed, used from its folder"
        return [Finding("Extras", PROJECT, text, BROKEN if needed else ABSENT, SETUP)]
    findings = []
    for extra in sorted(needed.union(extras)):
        core = dict(_unmet(()))
        unmet = {name: why for name, why in _unmet((extra,)) if name not in core}
        absent = [name for name, why in unmet.items() if why == NOT_INSTALLED]
        problems = [f"{NOT_INSTALLED}: {', '.join(absent)}"] if absent else []
        problems += [f"{name}: {why}" for name, why in unmet.items() if why != NOT_INSTALLED]
        if extra not in extras:
            problems = ["unknown to the installed project"]
        by_pip = f"pip install -c constraints.txt -e '.[{extra}]'"
        remedy = EXTRA_COMMANDS.get(extra, by_pip) if IN_CHECKOUT else f"pip install '{PROJECT}[{extra}]'"
        state = OK if not problems else BROKEN if extra in needed else ABSENT
        value = "complete" if not problems else "; ".join(problems)
        findings.append(Finding("Extras", extra, value, state, "" if state == OK else remedy))
    return findings


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep what packages print while they are imported out of the report."""
    compat.silence_import_warnings()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _not_installed(section: str, name: str) -> Finding:
    return Finding(section, name, NOT_INSTALLED, BROKEN, SETUP)


def _imported(section: str, name: str, module: str) -> Finding:
    try:
        with quietly():
            loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.split(".")[0] == error.name:
            return _not_installed(section, name)
        return Finding(section, name, f"import {module} fails: {error}", BROKEN, SETUP)
    except Exception as error:
        remedy = f"{SETUP} (torch and torchvision have to be the pair of constraints.txt)"
        return Finding(section, name, f"import {module} fails: {error}", BROKEN, remedy)
    found = getattr(loaded, "__version__", "") or _version(name) or "unknown version"
    return Finding(section, name, str(found))


def _unmet(extras: Sequence[str]) -> list[tuple[str, str]]:
    """Name and reason of each requirement of the installed project, with ``extras``, that is not met."""
    try:
        from packaging.requirements import Requirement

        declared = requires(PROJECT) or []
    except ImportError:  # PackageNotFoundError is one: neither the project nor `packaging` need be there
        return []
    unmet = []
    for requirement in map(Requirement, declared):
        marker = requirement.marker
        if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        found = _version(requirement.name)
        if not found:
            unmet.append((requirement.name, NOT_INSTALLED))
        elif not requirement.specifier.contains(found, prereleases=True):
            unmet.append((requirement.name, f"{found} installed, {requirement.specifier} needed"))
    return unmet

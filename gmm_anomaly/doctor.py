"""What is installed, what is missing, and the command that mends it: ``python -m gmm_anomaly.doctor``.

Only the standard library is imported outside the checks, so this runs where nothing is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from . import __version__, compat

PROJECT = "gmm-anomaly"
ROOT = Path(__file__).resolve().parent.parent
SETUP = "make setup"

OK = "ok"
ABSENT = "absent"  # not there, and the main job does without it
BROKEN = "broken"  # the main job cannot run

NOT_INSTALLED = "not installed"
DEPTHS = ("versions", "imports", "all")

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

# The command that installs an extra; others are installed by pip.
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


# ---- The checks ----


def python_findings() -> list[Finding]:
    section = "System"
    return [
        Finding(section, "python", f"{platform.python_version()} ({sys.executable})"),
        Finding(section, "platform", platform.platform()),
        Finding(section, "gmm_anomaly", f"{__version__} ({ROOT})"),
    ]


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
        remedy = EXTRA_COMMANDS.get(extra, f"pip install -c constraints.txt -e '.[{extra}]'")
        state = OK if not problems else BROKEN if extra in needed else ABSENT
        value = "complete" if not problems else "; ".join(problems)
        findings.append(Finding("Extras", extra, value, state, "" if state == OK else remedy))
    return findings


def detectron2_findings() -> list[Finding]:
    section = "Detectron2"
    try:
        with _quietly():
            info = compat.detectron2_info()
    except ImportError as error:
        return [Finding(section, "detectron2", str(error), BROKEN, SETUP)]
    return [
        Finding(section, "detectron2", f"{info.version} ({info.location})"),
        Finding(section, "kind", f"{info.kind}, {info.source}" if info.source else info.kind),
        Finding(section, "compiled operators", "yes" if info.compiled else "no (this project uses none)"),
    ]


def device_findings() -> list[Finding]:
    section = "Devices"
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import torch
    except Exception:  # already reported among the packages
        return [Finding(section, "processors", str(processors))]
    findings = [Finding(section, "processors", f"{processors} (torch: {torch.get_num_threads()} threads)")]
    built = torch.version.cuda
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            size = f"{device.total_memory / 2**30:.0f} GiB, capability {device.major}.{device.minor}"
            findings.append(Finding(section, f"cuda:{index}", f"{device.name}, {size}"))
        findings.append(Finding(section, "CUDA of torch", str(built)))
    else:
        reason = f"torch is built for CUDA {built}" if built else "torch is built without CUDA"
        findings.append(Finding(section, "CUDA", f"no device ({reason}); the processor is used"))
    return findings


def dataset_findings() -> list[Finding]:
    """The registered data sets; those that lie in no place share a line for each place and hint."""
    section = "Data sets"
    defaults = {"DETECTRON2_DATASETS": "not set: datasets/", "GMM_ANOMALY_CAMVID": "not set"}
    findings = [Finding(section, name, os.environ.get(name) or default) for name, default in defaults.items()]
    try:
        with _quietly():
            from .data.catalog import dataset_status

            statuses = list(dataset_status())
    except Exception as error:  # a report has no use for a traceback
        text = f"unknown ({type(error).__name__}: {error})"
        return [*findings, Finding(section, "registered", text, BROKEN, SETUP)]
    missing: dict[tuple[str, str], list[str]] = {}
    for status in statuses:
        root = "" if status.root is None else str(status.root)
        if status.found:
            findings.append(Finding(section, status.name, root or "rendered on the fly"))
        else:
            missing.setdefault((root, status.hint), []).append(status.name)
    for (root, hint), names in missing.items():
        where = f"not found in {root}" if root else "not found"
        findings.append(Finding(section, ", ".join(names), where, ABSENT, hint))
    return findings


def examine(*, depth: str = "all", extras: Sequence[str] = ()) -> list[Finding]:
    """All findings, in the order of the report.

    Args:
        depth: "versions" (of the packages, and whether Detectron2 can be imported), "imports" (the same, and
            every package with compiled code is imported) or "all" (devices and data sets, too).
        extras: extras of the project that have to be complete.
    """
    findings = [
        *python_findings(),
        *package_findings(imported=depth != "versions"),
        *detectron2_findings(),
        *extra_findings(extras),
    ]
    if depth == "all":
        findings += [*device_findings(), *dataset_findings()]
    return findings


def main_job_can_run(findings: Iterable[Finding]) -> bool:
    return all(finding.state != BROKEN for finding in findings)


# ---- Pieces of the checks ----


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _not_installed(section: str, name: str) -> Finding:
    return Finding(section, name, NOT_INSTALLED, BROKEN, SETUP)


def _imported(section: str, name: str, module: str) -> Finding:
    try:
        with _quietly():
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


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what packages print while they are imported out of the report."""
    compat.silence_import_warnings()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


# ---- The report ----


def render(findings: Sequence[Finding]) -> str:
    """The report as text; a line that needs attention starts with ``-`` (absent) or ``!`` (broken)."""
    width = max(len(finding.name) for finding in findings if len(finding.name) <= 28)
    marks = {OK: " ", ABSENT: "-", BROKEN: "!"}
    lines: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", section]
        lines.append(f"{marks[finding.state]} {finding.name:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"  {'':<{width}}  -> {finding.remedy}")
    broken = [finding.name for finding in findings if finding.state == BROKEN]
    if broken:
        verdict = f"The main job cannot run. To be mended: {', '.join(broken)}."
    else:
        verdict = "The main job can run."
    return "\n".join([*lines[1:], "", verdict])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report; 0 when the main job can run, 1 when it cannot."""
    parser = argparse.ArgumentParser(prog="python -m gmm_anomaly.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--depth", choices=DEPTHS, default="all", help="how much is looked at")
    parser.add_argument("--extras", default="", help="extras that have to be complete, separated by commas")
    options = parser.parse_args(arguments)
    extras = [extra for extra in options.extras.split(",") if extra]
    findings = examine(depth=options.depth, extras=extras)
    ready = main_job_can_run(findings)
    if options.json:
        report = {"ready": ready, "root": str(ROOT), "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=2))
    else:
        print(render(findings))
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())

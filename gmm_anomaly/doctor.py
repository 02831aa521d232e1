"""What is installed, what is missing, and the command that mends it: ``python -m gmm_anomaly.doctor``.

Only the standard library is imported outside the checks, so this runs where nothing is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from . import __version__, compat
from .doctor_packages import (
    ABSENT,
    BROKEN,
    IN_CHECKOUT,
    OK,
    ROOT,
    SETUP,
    Finding,
    extra_findings,
    package_findings,
    quietly,
)

DEPTHS = ("versions", "imports", "all")
# Its authors publish no package, so it is no requirement of an installed wheel.
UPSTREAM = "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
SETUP_DETECTRON2 = SETUP if IN_CHECKOUT else UPSTREAM

# ---- The checks ----


def python_findings() -> list[Finding]:
    section = "System"
    return [
        Finding(section, "python", f"{platform.python_version()} ({sys.executable})"),
        Finding(section, "platform", platform.platform()),
        Finding(section, "gmm_anomaly", f"{__version__} ({ROOT})"),
    ]


def detectron2_findings() -> list[Finding]:
    section = "Detectron2"
    try:
        with quietly():
            info = compat.detectron2_info()
    except ImportError as error:
        return [Finding(section, "detectron2", str(error), BROKEN, SETUP_DETECTRON2)]
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
        with quietly():
            from .data.checking import MISSING, WRONG_LAYOUT, check_dataset
            from .data.registration import registered_specs

            statuses = [check_dataset(name) for name in registered_specs()]
    except Exception as error:  # a report has no use for a traceback
        text = f"unknown ({type(error).__name__}: {error})"
        return [*findings, Finding(section, "registered", text, BROKEN, SETUP)]
    missing: dict[tuple[str, str], list[str]] = {}
    for status in statuses:
        root = "" if status.root is None else str(status.root)
        if status.state not in (MISSING, WRONG_LAYOUT):
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

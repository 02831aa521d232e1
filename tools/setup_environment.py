#!/usr/bin/env python3
"""Make the project's virtual environment: pinned packages, Detectron2 and the project itself (editable).

``make setup`` runs this file with any Python 3.10 or newer; it needs the standard library only, and does
nothing when the environment already fits. ``make help`` says what the settings mean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from setup_detectron2 import WHEEL_SHA256, install_detectron2, normalize_detectron2
from setup_process import PIP, SetupError, python_of, quiet, run

ROOT = Path(__file__).resolve().parent.parent

STAMP_NAME = "gmm-anomaly-setup.json"
STEPS = ("virtual environment", "installer", "packages and the project", "Detectron2", "check of the imports")


# ---- What was asked for, and what is there ----


def input_hash(root: Path) -> str:
    """Hash of all that decides what gets installed, but for the extras and the Detectron2 asked for."""
    digest = hashlib.sha256(WHEEL_SHA256.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update(name.encode() + b"\0" + (root / name).read_bytes())
    return digest.hexdigest()


def read_stamp(venv: Path) -> dict:
    """Record of the last complete set-up of ``venv``; empty when there was none."""
    try:
        stamp = json.loads((venv / STAMP_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, stamp: dict) -> None:
    temporary = venv / (STAMP_NAME + ".new")
    temporary.write_text(json.dumps(stamp, indent=2) + "\n")
    os.replace(temporary, venv / STAMP_NAME)


def fits(stamp: dict, inputs: str, extras: set[str], detectron2: str) -> bool:
    """Whether the set-up recorded in ``stamp`` is the one asked for; an empty ``detectron2`` takes any."""
    return (
        stamp.get("inputs") == inputs
        and extras <= set(stamp.get("extras", []))
        and detectron2 in ("", stamp.get("detectron2"))
    )


def what_is_wrong(venv: Path, extras: set[str]) -> str:
    """What the project's own doctor finds broken in the environment, in words; empty when nothing is."""
    doctor = ["-m", "gmm_anomaly.cli", "doctor", "--json", "--extras", ",".join(sorted(extras))]
    # Python puts the working folder on the path; were it the checkout, a project not installed would pass.
    done = quiet([python_of(venv), *doctor], cwd=venv)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return done.stderr.strip() or f"the check ended with exit status {done.returncode}"
    broken = [f"{name}: {what}" for name, what in report["problems"].items()]
    if Path(report["root"]) != ROOT:
        broken.append(f"gmm_anomaly is imported from {report['root']}, not from {ROOT}")
    return "\n  ".join(broken)


# ---- The steps ----


def announce(number: int) -> str:
    """Print the name of step ``number``, counted from 1, and return it."""
    print(f"set-up: step {number} of {len(STEPS)}: {STEPS[number - 1]}", flush=True)
    return STEPS[number - 1]


def make_venv(venv: Path, explicit_python: bool) -> None:
    """Make the environment with the running interpreter, keep one that works, make a broken one again."""
    working = quiet([python_of(venv), "-c", "import sys, pip; print('%d.%d' % sys.version_info[:2])"])
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if working.returncode == 0:
        theirs = working.stdout.strip()
        if explicit_python and theirs != ours:
            raise SetupError(
                f"  {venv} was made with Python {theirs}, and PYTHON names a Python {ours}.\n"
                "  Remove it first (make clean-venv), or name another folder (VENV=…)."
            )
        return
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").is_file():
        raise SetupError(f"  {venv} exists and is no virtual environment. Move it away, or set VENV=….")
    announce(1)
    base = getattr(sys, "_base_executable", sys.executable)
    run(
        # Not the interpreter that runs this: it may be the broken environment's own.
        [base, "-m", "venv", "--clear", venv],
        f"{base} could not make a virtual environment. On Debian and Ubuntu install the package "
        f"python{ours}-venv; or name another interpreter: make setup PYTHON=/path/to/python3",
    )


def install_installers(venv: Path, constraints: Path) -> None:
    """setuptools, which builds the source packages, and uv, which is optional and only faster."""
    pip = [python_of(venv), *PIP, "install", "--quiet", "-c", constraints]
    run(
        [*pip, "setuptools"],
        "pip's own words are above. Check that a package registry can be reached (proxy, PIP_INDEX_URL), and "
        "that constraints.txt is as it was cloned.",
    )
    try:
        run([*pip, "uv"], "")
    except SetupError:
        print("set-up: uv cannot be installed here; pip does its work, more slowly", flush=True)


def install_project(venv: Path, root: Path, extras: set[str], constraints: Path) -> None:
    """The project, editable, with its dependencies at the pinned versions."""
    target = f"{root}[{','.join(sorted(extras))}]" if extras else str(root)
    arguments: list[str | Path] = ["--no-build-isolation", "-c", constraints, "-e", target]
    python = python_of(venv)
    if quiet([python, "-m", "uv", "--version"]).returncode == 0:
        env = {"UV_HTTP_TIMEOUT": "180", **os.environ}
        try:
            run([python, "-m", "uv", "pip", "install", "--python", python, *arguments], "", env=env)
            return
        except SetupError:
            print("set-up: uv failed (see above); trying pip, which reads pip's own settings", flush=True)
    run(
        [python, *PIP, "install", *arguments],
        "The installer's own words are above.\n"
        "  No network or a private registry: set PIP_INDEX_URL (and UV_DEFAULT_INDEX).\n"
        "  Versions in conflict: pyproject.toml and constraints.txt must agree; `git diff` shows a change,\n"
        "  `make constraints` writes the pins anew. No space: the packages need 6 GB.",
    )


def set_up(venv: Path, extras: set[str], detectron2: str, explicit_python: bool) -> None:
    started = time.monotonic()
    detectron2 = normalize_detectron2(detectron2)
    constraints = ROOT / "constraints.txt"
    inputs = input_hash(ROOT)
    stamp = read_stamp(venv)
    extras = extras | set(stamp.get("extras", []))
    recorded = stamp.get("detectron2")

    step = STEPS[0]
    try:
        make_venv(venv, explicit_python)
        if fits(stamp, inputs, extras, detectron2) and not what_is_wrong(venv, extras):
            print(f"set-up: {venv} is complete ({time.monotonic() - started:.1f} s)", flush=True)
            return
        # A set-up that is interrupted from here on must not look complete, but keeps what was chosen before.
        write_stamp(venv, {**stamp, "inputs": None})
        step = announce(2)
        install_installers(venv, constraints)
        step = announce(3)
        install_project(venv, ROOT, extras, constraints)
        step = announce(4)
        source = install_detectron2(venv, detectron2, recorded)
        step = announce(5)
        wrong = what_is_wrong(venv, extras)
        if wrong:
            raise SetupError(
                f"  {wrong}\n  `make doctor` tells more. To begin anew: make clean-venv, then as before."
            )
        write_stamp(venv, {"inputs": inputs, "extras": sorted(extras), "detectron2": source})
    except SetupError as error:
        number = STEPS.index(step) + 1
        raise SetupError(f"set-up: step {number} of {len(STEPS)} failed: {step}\n{error}") from error
    print(f"set-up: {venv} is ready ({time.monotonic() - started:.0f} s)", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the project's virtual environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="folder of the environment")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, separated by commas")
    parser.add_argument("--detectron2", default="", help="registry, a checkout or git+URL; empty: keep")
    options = parser.parse_args(arguments)
    try:
        set_up(
            options.venv.absolute(),
            {extra for extra in options.extras.split(",") if extra},
            options.detectron2,
            # Run by an interpreter from outside, it was either named or is needed for a new environment.
            explicit_python=Path(sys.prefix).resolve() != options.venv.resolve(),
        )
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; the same command takes it up again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

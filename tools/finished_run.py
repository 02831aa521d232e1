"""Runs of train_net.py that are made once: another call continues or reads what is there."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = "run.json"


@dataclass(frozen=True)
class FinishedRun:
    """What a run left: the content of its ``results.json``, and the seconds all its parts took together."""

    results: dict[str, Any]
    seconds: float


def finished_run(config: Path, output: Path, arguments: Sequence[str] = ()) -> FinishedRun:
    """Run ``train_net.py --config-file config ... OUTPUT_DIR output`` to its end, unless that was done.

    Args:
        config: a config file. output: the run's folder; ``run.json`` there says what made it.
        arguments: more of the command: flags first, ``KEY VALUE`` pairs after them.

    Raises:
        SystemExit: the run failed, or the folder holds the run of another command.
    """
    command = ["train_net.py", "--config-file", _shown(config), *arguments, "OUTPUT_DIR", str(output)]
    record = _read_record(output)
    if record and record["command"] != command:
        raise SystemExit(
            f"{output} was made by another command:\n  {shlex.join(record['command'])}\nexpected:\n"
            f"  {shlex.join(command)}\nRemove the folder, or name another one with --output"
        )
    seconds = record["seconds"] if record else 0.0
    results = output / "results.json"
    if record and record["finished"] and results.is_file():
        print(f"{output}: finished before; remove the folder to run it again", flush=True)
        return FinishedRun(json.loads(results.read_text()), seconds)
    print(f"$ python {shlex.join(command)} (--resume)", flush=True)
    start, status = time.monotonic(), None
    try:
        status = subprocess.run(
            [sys.executable, str(ROOT / command[0]), "--resume", *command[1:]], cwd=ROOT
        ).returncode
    finally:
        seconds += time.monotonic() - start
        _write_record(output, {"command": command, "seconds": seconds, "finished": status == 0})
    if status:
        raise SystemExit(f"the run failed (exit status {status}); its log is {output}/log.txt")
    return FinishedRun(json.loads(results.read_text()), seconds)


def closed_set_miou(results: dict[str, Any]) -> float:
    """mIoU in percent on the run's first closed-set data set."""
    return next(found["sem_seg"]["mIoU"] for found in results["datasets"].values() if "sem_seg" in found)


def anomaly_numbers(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{score: its pixel metrics, and component metrics where there are some}, on the run's first anomaly data
    set."""
    found = next(found for found in results["datasets"].values() if "anomaly" in found)
    components = found.get("components", {})
    return {score: components.get(score, {}) | numbers for score, numbers in found["anomaly"].items()}


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _read_record(output: Path) -> dict[str, Any] | None:
    path = output / RECORD
    return json.loads(path.read_text()) if path.is_file() else None


def _write_record(output: Path, record: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / f"{RECORD}.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, output / RECORD)

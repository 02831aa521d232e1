"""Commands that the set-up runs, and the error that a failed step raises. Standard library only."""

from __future__ import annotations

import subprocess
from pathlib import Path

PIP = ("-m", "pip", "--disable-pip-version-check")


class SetupError(Exception):
    """A step failed; the text says what to do."""


def python_of(venv: Path) -> Path:
    return venv / "bin" / "python"


def run(command: list[str | Path], advice: str, *, env: dict[str, str] | None = None) -> None:
    """Run ``command``, its output passed on; ``SetupError`` with ``advice`` when it fails or cannot start."""
    words = [str(word) for word in command]
    try:
        code = subprocess.run(words, env=env, check=False).returncode
    except OSError as error:
        raise SetupError(f"  {words[0]} could not be run: {error}\n  {advice}") from error
    if code:
        raise SetupError(f"  command (exit status {code}): {' '.join(words)}\n  {advice}")


def quiet(command: list[str | Path], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in command]
    try:
        return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))

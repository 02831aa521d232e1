"""The command `gmm-anomaly`: one verb for each thing a person does, thin over the tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from . import __version__
from .repository_files import ROOT

# Verb: what runs it (a module of this package with main(argv) -> exit status, or a script of the repository),
# and a line for --help. Nothing is imported before it is asked for.
VERBS = {
    "train": ("train_net.py", "train a model by config; --eval-only evaluates one"),
    "evaluate": ("tools/evaluate.py", "metrics of score maps that any program saved"),
    "predict": (
        "gmm_anomaly.predict.command",
        "heat maps, segmentation and anomalies of images and videos",
    ),
    "export": (
        "gmm_anomaly.export.command",
        "a trained model as ONNX, TorchScript or torch.export, checked and timed",
    ),
    "report": ("gmm_anomaly.reporting.command", "one HTML page of a run, or of several side by side"),
    "check-datasets": (
        "gmm_anomaly.data.checking",
        "which data sets are there, what to download and where to",
    ),
    "doctor": ("gmm_anomaly.doctor", "what is installed, and what is missing"),
}


def usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, (_, what) in VERBS.items())
    return (
        "usage: gmm-anomaly VERB [ARGUMENTS]\n\n"
        f"Anomaly segmentation of road scenes, version {__version__}.\n\n{verbs}\n\n"
        "`gmm-anomaly VERB --help` says what a verb takes; `gmm-anomaly --version` prints the version."
    )


def run_script(script: str, arguments: Sequence[str]) -> NoReturn:
    """Become a script of the repository: its process, its signals, its exit status."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(ROOT / script), *arguments])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns its exit status, 2 for one that does not exist."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    verb, *arguments = given
    if verb == "--version":
        print(f"gmm-anomaly {__version__}")
        return 0
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}\n\n{usage()}", file=sys.stderr)
        return 2
    target, _ = VERBS[verb]
    if target.endswith(".py"):
        run_script(target, arguments)
    # What argparse calls the program in its messages.
    sys.argv[0] = f"gmm-anomaly {verb}"
    return int(import_module(target).main(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())

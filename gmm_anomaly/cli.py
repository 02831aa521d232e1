"""The command line: `gmm-anomaly VERB …`. What verbs take is said in ``verbs``, what they do lies in modules
that are imported only to be run.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import re
import runpy
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from . import __version__, compat
from .compat import BUNDLED, ROOT, find_config
from .verbs import VERBS

# `run(args)` of the module does the work and returns the exit status; None is 0.
MODULES = {
    "fit": "gmm_anomaly.engine.fit_detector",
    "predict": "gmm_anomaly.predict.command",
    "score": "gmm_anomaly.evaluation.saved_scores",
    "export": "gmm_anomaly.export.command",
    "report": "gmm_anomaly.report.page",
    "datasets": "gmm_anomaly.data.checking",
    "convert": "gmm_anomaly.engine.weights",
    "submit": "gmm_anomaly.evaluation.submission",
    "find-queries": "gmm_anomaly.evaluation.anomaly_queries",
    "doctor": "gmm_anomaly.doctor",
}
# What runs the bundled model where no other is given.
BUNDLED_VERBS = ("predict", "evaluate", "export", "submit")
# What was called otherwise in version 0.1.
OLD_VERBS = {"datasets": ["check-datasets"]}
OLD_OPTIONS = {
    "--config": "--config-file",
    "--output": "--out",
    "--calibrate": "--fit-feature-distance",
    "--calibrate-on": "--threshold-on",
}
# Where KEY VALUE pairs begin. A picture may be called IMG_1.JPG, so only the sections of a config count.
KEY = re.compile(
    r"(MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST|GLOBAL)(\.[A-Z\d_]+)+"
    "|SEED|OUTPUT_DIR|CUDNN_BENCHMARK|FLOAT32_PRECISION|VIS_PERIOD|VERSION"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns its exit status: 1 after an error, which is told in one line, 2 for a config that
    cannot be one, 130 after an interruption. argparse leaves with 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    start = next((at for at, word in enumerate(given) if word == "--opts" or KEY.fullmatch(word)), len(given))
    words, pairs = given[:start], [word for word in given[start:] if word != "--opts"]
    words = [without_tilde(OLD_OPTIONS.get(word, word)) for word in words]
    if words[:1] == ["evaluate"] and "--scores" in words:
        words[0] = "score"
    parser, parsers = build_parsers()
    args, others = parser.parse_known_args(words)
    if others and others[0].startswith("-") or not hasattr(args, "config_file") and [*others, *pairs]:
        parsers[args.verb].error(f"unrecognized arguments: {' '.join([*others, *pairs])}")
    # A misspelt key comes this far, and the config knows what was meant.
    args.opts = [*others, *pairs]
    if hasattr(args, "config_file"):
        args.config_file = args.config_file or getattr(args, "weights", None)
        if not args.config_file and args.verb in BUNDLED_VERBS and "MODEL.WEIGHTS" not in args.opts:
            args.config_file = args.weights = BUNDLED
        if not args.config_file:
            inside = ", or --weights with a config inside" if hasattr(args, "weights") else ""
            parsers[args.verb].error(f"give --config-file{inside}")
        try:
            args.config_file = str(find_config(args.config_file))
        except FileNotFoundError as error:
            parsers[args.verb].error(str(error))
    if args.verb in ("train", "evaluate"):
        become_train_net(args)
    if args.verb in ("submit", "find-queries") and args.device:
        args.opts = ["MODEL.DEVICE", args.device, *args.opts]
    compat.silence_import_warnings()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        module = import_module(MODULES[args.verb])
        if hasattr(args, "trust_pickle"):
            import_module("gmm_anomaly.modeling.backbones.weights").trust_pickles(args.trust_pickle)
        for path in getattr(args, "register", ()):
            runpy.run_path(path)
        return int(module.run(args) or 0)
    except argparse.ArgumentError as error:
        parsers[args.verb].error(str(error))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        # The class itself lies beside Detectron2.
        return 2 if type(error).__name__ == "ConfigError" else 1
    except KeyboardInterrupt:
        print("interrupted; the files that are there are whole", file=sys.stderr)
        return 130


def without_tilde(word: str) -> str:
    """A word of the command line with the home folder for the ``~`` of a path: shells leave that of
    --out=~/a, and programs that start this one leave all."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + os.path.expanduser(value)


def build_parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and those of the verbs."""
    parser = argparse.ArgumentParser(
        "gmm-anomaly", description="Anomaly segmentation of road scenes.",
        epilog="`gmm-anomaly VERB --help` says what a verb takes.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"gmm-anomaly {__version__}")
    group = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parsers = {}
    for verb, declare in VERBS.items():
        text = inspect.getdoc(declare) or ""
        first = re.split(r"[.:](?:\s|$)", " ".join(text.split()))[0]
        own = parsers[verb] = group.add_parser(
            verb, aliases=OLD_VERBS.get(verb, []), help=first[0].lower() + first[1:], description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        declare(own)
        if any(action.dest == "config_file" for action in own._actions):
            own.epilog = "KEY VALUE pairs at the end override the config, as in SOLVER.MAX_ITER 1000"
        own.set_defaults(verb=verb)
    return parser, parsers


def become_train_net(args: argparse.Namespace) -> NoReturn:
    """Become train_net.py: its process, its signals, its exit status. It starts further processes."""
    words = []
    for name in ("config_file", "num_gpus", "num_machines", "machine_rank", "dist_url"):
        value = getattr(args, name)
        words += [] if value is None else [f"--{name.replace('_', '-')}", value]
    fits = ("fit_mixture", "fit_feature_distance", "fit_outliers")
    for name in ("eval_only", "resume", *fits, "trust_pickle"):
        words += [f"--{name.replace('_', '-')}"] if getattr(args, name, False) else []
    for path in args.register:
        words += ["--register", path]
    places = {"MODEL.WEIGHTS": args.weights, "MODEL.DEVICE": args.device, "OUTPUT_DIR": args.out}
    pairs = [word for key, value in places.items() if value for word in (key, value)]
    sys.stdout.flush()
    script = str(ROOT / "train_net.py")
    os.execv(sys.executable, [sys.executable, script, *words, *pairs, *args.opts])


if __name__ == "__main__":
    sys.exit(main())

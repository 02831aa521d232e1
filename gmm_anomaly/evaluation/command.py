"""What this package's verbs share: arguments, the model, and errors told in one line."""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Callable, Sequence

from detectron2.config import CfgNode
from torch import nn


def model_arguments(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser of what a verb needs for a model, and for data sets of one's own."""
    from gmm_anomaly.weight_files import add_trust_argument

    arguments = argparse.ArgumentParser(f"gmm-anomaly {verb}", description=description)
    arguments.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    arguments.add_argument(
        "--weights", metavar="FILE", help="checkpoint; default: the config's MODEL.WEIGHTS"
    )
    add_register_argument(arguments)
    add_trust_argument(arguments)
    arguments.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    return arguments


def add_register_argument(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument(
        "--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )  # fmt: skip


def model_config(args: argparse.Namespace, overrides: Sequence[str] = ()) -> CfgNode:
    """The config that the arguments ask for; registers their data sets. ``overrides`` come last."""
    from gmm_anomaly.engine import build_config
    from gmm_anomaly.weight_files import trust_pickles

    trust_pickles(args.trust_pickle)
    for path in args.register:
        runpy.run_path(path)
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    return build_config(args.config_file, [*args.opts, *weights, *overrides])


def load_model(cfg: CfgNode) -> nn.Module:
    """The trained model of a config, in evaluation mode."""
    from gmm_anomaly.engine import Checkpointer, Trainer, inference_config

    model = Trainer.build_model(inference_config(cfg))
    Checkpointer(model).load_for_evaluation(cfg.MODEL.WEIGHTS)
    return model.eval()


def exit_status(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a verb: 0, or after what a user can mend, told in one line, 1; 130 after an interruption."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0

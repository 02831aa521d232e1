#!/usr/bin/env python
"""Train or evaluate a model: python train_net.py --config-file FILE [--eval-only] [KEY VALUE ...].

Several processes: --num-gpus N, or torchrun --nproc-per-node N train_net.py ...; on the CPU add
MODEL.DEVICE cpu. With --resume it goes on from the last checkpoint in OUTPUT_DIR, or evaluates that, if there
is one; so torchrun --max-restarts N train_net.py --resume ... goes on by itself when a process was lost.
"""

from __future__ import annotations

import runpy
from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path

from gmm_anomaly.compat import silence_import_warnings

silence_import_warnings()

from detectron2.config import CfgNode  # noqa: E402
from detectron2.engine import default_argument_parser  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from detectron2.utils.logger import setup_logger  # noqa: E402

from gmm_anomaly.compat import find_config, keep_freed_memory  # noqa: E402
from gmm_anomaly.data.build import present  # noqa: E402
from gmm_anomaly.engine import (  # noqa: E402
    Checkpointer,
    Trainer,
    build_config,
    check_output_dir,
    evaluate,
    fit_feature_distance,
    fit_mixture,
    fit_outliers,
    fitting_config,
    inference_config,
    with_weights,
)
from gmm_anomaly.engine.checkpoint import TAG  # noqa: E402
from gmm_anomaly.engine.config import ConfigError, config_overrides, read_config  # noqa: E402
from gmm_anomaly.engine.evaluation import build_evaluator, verify_expected_results  # noqa: E402
from gmm_anomaly.engine.launch import launch  # noqa: E402
from gmm_anomaly.engine.output_dir import (  # noqa: E402
    held_log,
    locked,
    set_up,
    with_run_weights,
    write_config,
)
from gmm_anomaly.modeling.backbones.weights import trust_pickles  # noqa: E402
from gmm_anomaly.options import add_fits, add_register, add_trust  # noqa: E402


def parser() -> ArgumentParser:
    arguments = default_argument_parser()
    # What is not given can be known from elsewhere: from torchrun, or from the config.
    arguments.set_defaults(num_gpus=None, dist_url=None)
    for add in (add_register, add_fits, add_trust):
        add(arguments)
    return arguments


def main(args: Namespace) -> object:
    # In each process that is launched.
    keep_freed_memory()
    trust_pickles(args.trust_pickle)
    for path in args.register:
        runpy.run_path(path)
    overrides = config_overrides(args)
    if args.fit_mixture:
        # The config may be that of a twin without densities, the scores those of mixtures.
        overrides = [*overrides, "MODEL.CLASSIFIER.NAME", "gmm"]
    if args.fit_outliers and not read_config(args.config_file, overrides).MODEL.OUTLIER.NAME:
        overrides = [*overrides, "MODEL.OUTLIER.NAME", "linear"]
    with ExitStack() as running:
        with held_log("gmm_anomaly"):
            cfg = build_config(args.config_file, overrides)
            for name in present(cfg.DATASETS.TEST, "DATASETS.TEST"):
                # What an evaluation lacks is told now, not after hours of training.
                build_evaluator(cfg, name)
            evaluates = args.eval_only or args.fit_feature_distance or args.fit_outliers
            last = args.resume and (Path(cfg.OUTPUT_DIR) / TAG).is_file()
            if args.fit_mixture or evaluates and not last:
                cfg = with_run_weights(cfg, args.config_file, overrides)
            if args.fit_mixture:
                # Before anything is written: the folder may belong to a training.
                check_output_dir(cfg)
                cfg = fitting_config(cfg)
            if args.config_file.endswith(".pth"):
                # Of a detector, in which Detectron2 cannot read.
                args.config_file = ""
            running.enter_context(locked(cfg.OUTPUT_DIR))
            set_up(cfg, args)
            setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="gmm_anomaly")
        if not (args.fit_mixture or evaluates):
            return train(cfg, args)
        results = fit_or_evaluate(cfg, args)
        verify_expected_results(cfg, results)
        return results


def train(cfg: CfgNode, args: Namespace) -> object:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    write_config(cfg)
    return trainer.train()


def fit_or_evaluate(cfg: CfgNode, args: Namespace) -> object:
    if args.fit_mixture:
        return fit_mixture(cfg, resume=args.resume)
    model = Trainer.build_model(inference_config(cfg))
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, cfg=cfg, save_to_disk=comm.is_main_process())
    if args.resume and checkpointer.has_checkpoint():
        cfg = with_weights(cfg, checkpointer.get_checkpoint_file())
    checkpointer.load_for_evaluation(
        cfg.MODEL.WEIGHTS, distances=not args.fit_feature_distance, outliers=not args.fit_outliers
    )
    if args.fit_feature_distance or args.fit_outliers:
        fit = fit_outliers if args.fit_outliers else fit_feature_distance
        fit(cfg, model)
        name = "model_with_outliers" if args.fit_outliers else "model_with_distances"
        checkpointer.save_weights(name)
        cfg = with_weights(cfg, Path(cfg.OUTPUT_DIR) / f"{name}.pth")
    return evaluate(cfg, model)


def checked_arguments() -> Namespace:
    """The command line; one whose config cannot be read ends the program with status 2."""
    arguments = parser()
    args = arguments.parse_args()
    if args.eval_only + args.fit_mixture + args.fit_feature_distance + args.fit_outliers > 1:
        arguments.error(
            "--eval-only, --fit-mixture, --fit-feature-distance and --fit-outliers: give one of them"
        )
    try:
        if args.config_file:
            args.config_file = str(find_config(args.config_file))
        read_config(args.config_file, config_overrides(args))
    except (ConfigError, FileNotFoundError) as error:
        arguments.exit(2, f"train_net.py: error: {error}\n")
    return args


if __name__ == "__main__":
    launch(main, checked_arguments())

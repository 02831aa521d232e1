#!/usr/bin/env python
"""Train or evaluate a model: python train_net.py --config-file FILE [--eval-only] [KEY VALUE ...]."""

from __future__ import annotations

import runpy
from argparse import ArgumentParser, Namespace

import torch

from gmm_anomaly.compat import silence_import_warnings

silence_import_warnings()

from detectron2.engine import default_argument_parser, default_setup, launch  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from detectron2.utils.logger import setup_logger  # noqa: E402

from gmm_anomaly.engine import (  # noqa: E402
    Checkpointer,
    Trainer,
    build_config,
    calibrate,
    check_output_dir,
    evaluate,
    fit_mixture,
    fitting_config,
)


def parser() -> ArgumentParser:
    arguments = default_argument_parser()
    arguments.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="FILE.py",
        help="Python file that registers data sets of your own, run before the config is read; repeatable",
    )
    arguments.add_argument(
        "--calibrate",
        action="store_true",
        help="fit what the scores need to know of the training set (MODEL.FEATURE_DISTANCE) to the network "
        "in MODEL.WEIGHTS, save it as OUTPUT_DIR/model_calibrated.pth, and evaluate",
    )
    arguments.add_argument(
        "--fit-mixture",
        action="store_true",
        help="freeze the network in MODEL.WEIGHTS and fit mixtures onto its features by EM over the training "
        "set (MODEL.GMM.FIT_PASSES), save OUTPUT_DIR/mixtures_final.pth and config.yaml, and evaluate",
    )
    return arguments


def main(args: Namespace) -> object:
    for path in args.register:
        runpy.run_path(path)
    overrides = ["MODEL.DEVICE", "cpu", *args.opts] if args.num_gpus == 0 else args.opts
    if args.fit_mixture:
        # The config may be that of a twin without densities, the scores those of mixtures.
        overrides = [*overrides, "MODEL.CLASSIFIER.NAME", "gmm"]
    cfg = build_config(args.config_file, overrides)
    if args.fit_mixture:
        # Before anything is written: the folder may belong to a training.
        check_output_dir(cfg)
        cfg = fitting_config(cfg)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="gmm_anomaly")
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Checkpointer(model, cfg.OUTPUT_DIR).load_for_evaluation(cfg.MODEL.WEIGHTS)
        return evaluate(cfg, model)
    if args.calibrate:
        model = Trainer.build_model(cfg)
        checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, save_to_disk=comm.is_main_process())
        checkpointer.load_for_evaluation(cfg.MODEL.WEIGHTS, calibrated=False)
        calibrate(cfg, model)
        checkpointer.save_weights("model_calibrated")
        return evaluate(cfg, model)
    if args.fit_mixture:
        return fit_mixture(cfg, resume=args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def worker(args: Namespace) -> None:
    """One process: the job, then a common end (a process group that is left open may abort at exit)."""
    main(args)
    if comm.get_world_size() > 1:
        comm.synchronize()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    args = parser().parse_args()
    launch(
        worker,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )

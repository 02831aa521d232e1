#!/usr/bin/env python
"""Find the queries of a mask model that light up on anomalies, and on the road, for the score "maskomaly".

The queries hold for one checkpoint. They are found with labels: report no figures on the images used here.
The file written is a config: the given one with the query sets, the weights they hold for, and the overrides
of MODEL and INPUT in it.
"""

from __future__ import annotations

import argparse
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from gmm_anomaly.data import build_test_loader
from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.engine import Checkpointer, Trainer, build_config
from gmm_anomaly.engine.weights import add_trust_argument, trust_pickles
from gmm_anomaly.evaluation.query_overlap import (
    MASK_THRESHOLD,
    MINIMUM_IOU,
    anomaly_region,
    class_region,
    measure_overlap,
)
from gmm_anomaly.evaluation.query_report import known_class_names, query_config, query_table
from gmm_anomaly.evaluation.records import EvaluatedRecords


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--config-file", required=True, metavar="FILE", help="config of a mask model")
    arguments.add_argument(
        "--weights", metavar="FILE", help="checkpoint of train_net.py; default: the config's MODEL.WEIGHTS"
    )
    arguments.add_argument(
        "--dataset", required=True, metavar="NAME", help="registered anomaly data set with labels"
    )
    arguments.add_argument(
        "--road-dataset", metavar="NAME",
        help="registered closed set with labels; without it the config's road queries stay as they are",
    )  # fmt: skip
    arguments.add_argument("--road-class", default="road", metavar="NAME", help="its class; default: road")
    arguments.add_argument(
        "--output", type=Path, default=Path("output/maskomaly.yaml"), metavar="FILE",
        help="config to write; default: output/maskomaly.yaml",
    )  # fmt: skip
    arguments.add_argument(
        "--minimum-iou", type=float, default=MINIMUM_IOU,
        help=f"mean IoU that a query needs; default: {MINIMUM_IOU}, Maskomaly's",
    )  # fmt: skip
    arguments.add_argument(
        "--at-least", type=int, default=0, metavar="N",
        help="anomaly queries to take even if fewer reach it; default: 0",
    )  # fmt: skip
    arguments.add_argument(
        "--mask-threshold", type=float, default=MASK_THRESHOLD,
        help=f"mask value above which a pixel is covered; default: {MASK_THRESHOLD}, Maskomaly's",
    )  # fmt: skip
    arguments.add_argument(
        "--register", action="append", default=[], metavar="FILE.py",
        help="Python file that registers data sets of your own (may be repeated)",
    )  # fmt: skip
    add_trust_argument(arguments)
    arguments.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE ...")
    return arguments


def search(args: argparse.Namespace, cfg: CfgNode, model: nn.Module, *, road: bool) -> list[int]:
    """Queries for the anomalies of one data set, or for the road of the other; prints their table."""
    name = args.road_dataset if road else args.dataset
    what = args.road_class if road else "anomalies"
    records = EvaluatedRecords(name, "closed_set" if road else "anomaly")
    overlap = measure_overlap(
        model,
        build_test_loader(cfg, name),
        records,
        class_region(records, args.road_class) if road else anomaly_region,
        threshold=args.mask_threshold,
    )
    taken = overlap.chosen(minimum_iou=args.minimum_iou, at_least=0 if road else args.at_least)
    print(f"\n{name}: queries by mean IoU with the {what} of {overlap.images} images")
    print(query_table(overlap, taken, known_class_names(cfg, model.network.config.id2label)))
    weak = [query for query in taken if overlap.mean_iou[query] < args.minimum_iou]
    if weak:
        print(f"Below {args.minimum_iou:g}, taken because at least {len(taken)} were asked for: {weak}")
    if not taken:
        print(f"No query reaches a mean IoU of {args.minimum_iou:g}: none is taken (see --at-least)")
    return taken


def run(args: argparse.Namespace) -> None:
    trust_pickles(args.trust_pickle)
    for path in args.register:
        runpy.run_path(path)
    if not 0 < args.mask_threshold < 1:
        raise ValueError(f"--mask-threshold: expected a value between 0 and 1, found {args.mask_threshold:g}")
    weights = ["MODEL.WEIGHTS", args.weights] if args.weights else []
    cfg = build_config(args.config_file, [*args.opts, *weights])
    if cfg.MODEL.META_ARCHITECTURE != "MaskAnomalySegmentor":
        raise ValueError(
            f"--config-file: {args.config_file} describes no mask model; it needs MODEL.META_ARCHITECTURE "
            f'"MaskAnomalySegmentor", found {cfg.MODEL.META_ARCHITECTURE!r}'
        )
    model = Trainer.build_model(cfg)
    Checkpointer(model).load_for_evaluation(cfg.MODEL.WEIGHTS)
    queries = {"ANOMALY_QUERIES": search(args, cfg, model, road=False)}
    if args.road_dataset:
        queries["ROAD_QUERIES"] = search(args, cfg, model, road=True)
    text = query_config(
        cfg,
        args.config_file,
        args.output,
        queries,
        # What makes the model; which images were looked at is another matter.
        overridden=[key for key in args.opts[::2] if key.startswith(("MODEL.", "INPUT."))],
        found_with=[name for name in (args.dataset, args.road_dataset) if name],
    )
    with replacing(args.output) as temporary:
        temporary.write_text(text)
    print(f"\n{args.output} is the config with these queries: evaluate with --config-file {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        run(args)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Convert a checkpoint of MMSegmentation, the released GMMSeg's among them, or a file of a backbone alone
(torchvision's ResNets, official Swin and SegFormer files) to a checkpoint for MODEL.WEIGHTS.

Prints what matched. Nothing is written unless every tensor of the config's model is filled, but for those
that --allow-missing names:

python tools/convert_weights.py --config-file CONFIG INPUT.pth OUTPUT.pth
python tools/convert_weights.py --config-file CONFIG BACKBONE.pth OUTPUT.pth \\
    --allow-missing decoder. --allow-missing classifier.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.engine import build_config
from gmm_anomaly.engine.conversion import convert, read_source, report
from gmm_anomaly.weight_files import add_trust_argument, trust_pickles

# Everything comes from the input.
NO_WEIGHTS = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.WEIGHTS", ""),
    *("MODEL.MIT.WEIGHTS", "", "MODEL.VIT.WEIGHTS", ""),
]


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
    arguments.add_argument("input", type=Path, metavar="INPUT.pth", help="the checkpoint to convert")
    arguments.add_argument("output", type=Path, metavar="OUTPUT.pth", help="the checkpoint to write")
    arguments.add_argument(
        "--allow-missing", action="append", default=[], metavar="PREFIX",
        help="write without the model's tensors that begin so (may be repeated)",
    )  # fmt: skip
    arguments.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for the config"
    )
    add_trust_argument(arguments)
    return arguments


def model_config(config_file: str, overrides: Sequence[str]) -> CfgNode:
    cfg = build_config(config_file, [*overrides, *NO_WEIGHTS])
    if cfg.MODEL.META_ARCHITECTURE != "AnomalySegmentor":
        raise ValueError(
            "MODEL.META_ARCHITECTURE: checkpoints can be converted for AnomalySegmentor, found "
            f"{cfg.MODEL.META_ARCHITECTURE!r}"
        )
    if cfg.MODEL.CLASSIFIER.NAME == "gmm" and not cfg.MODEL.GMM.SAVE_MEMORY:
        # The memory itself is not written, and at the paper's sizes is gigabytes.
        small = ["MODEL.GMM.MEMORY_SIZE", cfg.MODEL.GMM.SAMPLES_PER_UPDATE]
        return build_config(config_file, [*overrides, *NO_WEIGHTS, *small])
    return cfg


def run(args: argparse.Namespace) -> None:
    if "" in args.allow_missing:
        raise ValueError('--allow-missing: expected the beginning of names, found ""')
    trust_pickles(args.trust_pickle)
    source = read_source(args.input)
    model = build_model(model_config(args.config_file, args.opts))
    result = convert(model, source)
    print(report(model, result))
    lacking = result.lacking(tuple(args.allow_missing))
    if lacking:
        raise ValueError(
            f"{args.input} does not fill {len(lacking)} tensors of the model, nothing is written: "
            f"{', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}. Use the config of the same "
            "architecture, or --allow-missing PREFIX for what may stay as it is initialised"
        )
    with replacing(args.output) as temporary:
        torch.save({"model": result.tensors}, temporary)
    print(f"written to {args.output}")


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

#!/usr/bin/env python
"""What models cost at inference: parameters and multiply-adds of their parts, as fvcore counts them.

python tools/analyze_model.py --config-file configs/cityscapes/*.yaml --size 1024 2048
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis, flop_count_table
from fvcore.nn.jit_handles import addmm_flop_jit, get_shape
from torch import nn

from gmm_anomaly.engine import build_config


def attention(inputs, outputs):
    """Both products of ``scaled_dot_product_attention``, which fvcore leaves out."""
    *batch, queries, width = get_shape(inputs[0])
    keys, values = get_shape(inputs[1])[-2], get_shape(inputs[2])[-1]
    return torch.Size(batch).numel() * queries * keys * (width + values)


class Network(nn.Module):
    """A segmentor's network as a function of images (B, 3, H, W) to logits."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.decoder, self.classifier = model.backbone, model.decoder, model.classifier

    def forward(self, images):
        return self.classifier(self.decoder(self.backbone(images)).features).logits


@torch.no_grad()
def table(config_file: str, size: tuple[int, int], overrides: list[str]) -> str:
    weights = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.WEIGHTS", ""]
    model = build_model(build_config(config_file, [*overrides, *weights])).eval()
    for module in model.modules():
        if isinstance(getattr(module, "fitted", None), torch.Tensor):
            # Mixtures that were never fitted refuse to run.
            module.fitted.fill_(True)
    counted = FlopCountAnalysis(Network(model), torch.zeros(1, 3, *size)).set_op_handle(
        "aten::scaled_dot_product_attention", attention, "aten::addmm_", addmm_flop_jit
    )
    counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    return flop_count_table(counted, max_depth=1)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", nargs="+", required=True, metavar="FILE")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), metavar=("H", "W"))
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    for config_file in args.config_file:
        print(f"{config_file}, one image of {args.size[0]} x {args.size[1]}")
        print(table(config_file, args.size, args.opts))


if __name__ == "__main__":
    main()

"""Which queries of a mask model light up on anomalies, and on the road, for the score "maskomaly".

The queries hold for one checkpoint. They are found with labels: report no figures on the images used here.
The file that `gmm-anomaly find-queries` writes is a config: the given one with the query sets, the weights
they hold for, and the overrides of MODEL and INPUT in it.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from tabulate import tabulate
from torch import Tensor, nn

from gmm_anomaly.data import build_test_loader
from gmm_anomaly.data.atomic import replacing
from gmm_anomaly.data.build import closed_set
from gmm_anomaly.data.reading import IGNORE_LABEL

from .command import load_model, model_config
from .records import EvaluatedRecords

# Maskomaly's rule: masks above 0.9 count, queries with a mean IoU of at least 0.25 are taken.
MASK_THRESHOLD = 0.9
MINIMUM_IOU = 0.25


class QueryOverlap(NamedTuple):
    """Overlap of each query's mask with a region, over the images of a data set that have the region.

    Attributes:
        mean_iou: (Q,) float64.
        class_probability: (Q, C + 1) float64, mean over the same images; the last is "no object".
        images: how many there are.
    """

    mean_iou: Tensor
    class_probability: Tensor
    images: int

    def ranking(self) -> list[int]:
        return self.mean_iou.argsort(descending=True, stable=True).tolist()

    def chosen(self, *, minimum_iou: float = MINIMUM_IOU, at_least: int = 0) -> list[int]:
        """Queries of at least ``minimum_iou``, best first, and the next best up to ``at_least`` in all."""
        enough = int((self.mean_iou >= minimum_iou).sum())
        return self.ranking()[: max(enough, at_least)]


@torch.no_grad()
def measure_overlap(
    model: nn.Module,
    batches: Iterable[Sequence[Mapping[str, Any]]],
    records: EvaluatedRecords,
    is_region: Callable[[np.ndarray], np.ndarray],
    *,
    threshold: float = MASK_THRESHOLD,
) -> QueryOverlap:
    """Run a mask model over a data set and measure its queries.

    Maskomaly's released code subtracts the image's whole void area from the union, whether or not the mask
    covers it, so that unions may come out too small or negative; here only void under the mask is left out.

    Args:
        model: gives ``mask_logits`` (Q, H, W) and ``class_logits`` (Q, C + 1) for each image; is put into
            evaluation mode.
        batches: the data set's test loader.
        records: the data set, with labels.
        is_region: an (H, W) uint8 label to the (H, W) bool region.
        threshold: masks above it count.

    Raises:
        ValueError: no image has the region. An image without it says nothing about which query covers it.
    """
    model.eval()
    found: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        for item, result in zip(batch, model(batch), strict=True):
            label = records.label(records.find(item))
            region = is_region(label)
            if not region.any():
                continue
            masks = result["mask_logits"]
            wanted, valid = (
                torch.from_numpy(part).to(masks.device) for part in (region, label != IGNORE_LABEL)
            )
            covered = (masks > math.log(threshold / (1 - threshold))) & valid
            both, either = (part.flatten(1).sum(1).double() for part in (covered & wanted, covered | wanted))
            found.append(((both / either).cpu(), result["class_logits"].double().softmax(dim=-1).cpu()))
    if not found:
        raise ValueError(
            f"{records.name}: none of its {len(records)} images has a pixel of the region looked for"
        )
    iou, probability = (torch.stack(part).mean(dim=0) for part in zip(*found, strict=True))
    return QueryOverlap(iou, probability, len(found))


def query_table(overlap: QueryOverlap, taken: Sequence[int], class_names: Sequence[str]) -> str:
    """The best queries with their IoU and the class they predict; those ``taken`` are marked."""
    rows = []
    for rank, query in enumerate(overlap.ranking()[: max(10, len(taken))], start=1):
        probability, best = overlap.class_probability[query].max(dim=0)
        name = [*class_names, "no object"][int(best)]
        iou = float(overlap.mean_iou[query])
        rows.append([rank, query, iou, f"{name} {probability:.2f}", "x" * (query in taken)])
    headers = ["rank", "query", "mean IoU", "class it predicts (mean probability)", "taken"]
    return tabulate(rows, headers, floatfmt=".3f", tablefmt="github")


def query_config(args: argparse.Namespace, cfg: CfgNode, queries: Mapping[str, Sequence[int]]) -> str:
    """Text of a config on top of the given one, with the query sets (by their key in ``MODEL.MASK2FORMER``),
    the weights they hold for, and overrides.
    """
    # What makes the model; which images were looked at is another matter.
    overridden = [key for key in args.opts[::2] if key.startswith(("MODEL.", "INPUT."))]
    keys = ["MODEL.WEIGHTS", "MODEL.MASK2FORMER.WEIGHTS", *overridden]
    plain = yaml.safe_load(cfg.dump())
    values: dict[str, Any] = {key: reduce(getitem, key.split("."), plain) for key in keys}
    values |= {f"MODEL.MASK2FORMER.{key}": list(found) for key, found in queries.items()}
    content: dict[str, Any] = {"_BASE_": os.path.relpath(args.config_file, args.out.parent)}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    found_with = " and ".join(name for name in (args.dataset, args.road_dataset) if name)
    return (
        "# Written by gmm-anomaly find-queries. The queries hold for these weights only, and were found\n"
        f"# with labels of {found_with}: report no figures on those images.\n"
        + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    )


def search(args: argparse.Namespace, cfg: CfgNode, model: nn.Module, *, road: bool) -> list[int]:
    """Queries for the anomalies of one data set, or for the road of the other; prints their table."""
    name = args.road_dataset if road else args.dataset
    records = EvaluatedRecords(name, "closed_set" if road else "anomaly")
    value, road_class = 1, args.road_class or "road"
    if road:
        classes = list(records.metadata.stuff_classes)
        if road_class not in classes:
            raise ValueError(f"{name} has no class {road_class!r}; its classes are {', '.join(classes)}")
        value = classes.index(road_class)
    overlap = measure_overlap(
        model,
        build_test_loader(cfg, name),
        records,
        lambda label: label == value,
        threshold=args.mask_threshold,
    )
    taken = overlap.chosen(minimum_iou=args.minimum_iou, at_least=0 if road else args.at_least)
    what = road_class if road else "anomalies"
    print(f"\n{name}: queries by mean IoU with the {what} of {overlap.images} images")
    # Of a closed set of DATASETS, else the weights' own.
    metadata, own = closed_set(cfg), model.network.config.id2label
    print(query_table(overlap, taken, metadata.stuff_classes if metadata else [own[i] for i in sorted(own)]))
    weak = [query for query in taken if overlap.mean_iou[query] < args.minimum_iou]
    if weak:
        print(f"Below {args.minimum_iou:g}, taken because at least {len(taken)} were asked for: {weak}")
    if not taken:
        print(f"No query reaches a mean IoU of {args.minimum_iou:g}: none is taken (see --at-least)")
    return taken


def run(args: argparse.Namespace) -> None:
    """`gmm-anomaly find-queries`."""
    if not 0 < args.mask_threshold < 1:
        raise ValueError(f"--mask-threshold: expected a value between 0 and 1, found {args.mask_threshold:g}")
    if args.road_class and not args.road_dataset:
        raise ValueError("--road-class: needs --road-dataset, whose class it is")
    cfg = model_config(args)
    if cfg.MODEL.META_ARCHITECTURE != "MaskAnomalySegmentor":
        raise ValueError(
            f"--config-file: {args.config_file} describes no mask model; it needs MODEL.META_ARCHITECTURE "
            f'"MaskAnomalySegmentor", found {cfg.MODEL.META_ARCHITECTURE!r}'
        )
    model = load_model(cfg)
    queries = {"ANOMALY_QUERIES": search(args, cfg, model, road=False)}
    if args.road_dataset:
        queries["ROAD_QUERIES"] = search(args, cfg, model, road=True)
    with replacing(args.out) as temporary:
        temporary.write_text(query_config(args, cfg, queries))
    print(f"\n{args.out} is the config with these queries: evaluate with --config-file {args.out}")

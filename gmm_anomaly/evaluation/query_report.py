"""What a search for queries leaves: a table to read, and a config to evaluate with."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from gmm_anomaly.data.label_rule import CLOSED_SET

from .query_overlap import QueryOverlap

ROWS = 10


def query_table(overlap: QueryOverlap, taken: Sequence[int], class_names: Sequence[str]) -> str:
    """The best queries with their IoU and the class they predict; those ``taken`` are marked."""
    rows = []
    for rank, query in enumerate(overlap.ranking()[: max(ROWS, len(taken))], start=1):
        probability, best = overlap.class_probability[query].max(dim=0)
        name = [*class_names, "no object"][int(best)]
        iou = float(overlap.mean_iou[query])
        rows.append([rank, query, iou, f"{name} {probability:.2f}", "x" * (query in taken)])
    headers = ["rank", "query", "mean IoU", "class it predicts (mean probability)", "taken"]
    return tabulate(rows, headers, floatfmt=".3f", tablefmt="github")


def known_class_names(cfg: CfgNode, labels: Mapping[int, str]) -> list[str]:
    """Names of the known classes: a closed set's of ``DATASETS``, else ``labels``, the weights' own."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") == CLOSED_SET:
            return list(metadata.stuff_classes)
    return [str(labels[index]) for index in sorted(labels)]


def query_config(
    cfg: CfgNode,
    config_file: str,
    target: Path,
    queries: Mapping[str, Sequence[int]],
    *,
    overridden: Iterable[str] = (),
    found_with: Sequence[str] = (),
) -> str:
    """Text of a config file on top of another one, with query sets and the weights they hold for.

    Args:
        cfg: the config that the queries were found with.
        config_file: the file it was read from.
        target: where the text will be written; the other file is named relative to it.
        queries: by the name of their key in ``MODEL.MASK2FORMER``.
        overridden: keys of ``cfg`` that differ from the file's and are to be kept.
        found_with: data sets whose labels were used.
    """
    keys = ["MODEL.WEIGHTS", "MODEL.MASK2FORMER.WEIGHTS", *overridden]
    values: dict[str, Any] = {key: reduce(getitem, key.split("."), cfg) for key in keys}
    values |= {f"MODEL.MASK2FORMER.{key}": list(found) for key, found in queries.items()}
    content: dict[str, Any] = {"_BASE_": os.path.relpath(config_file, target.parent)}
    for key, value in values.items():
        *parents, last = key.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return (
        "# Written by tools/find_anomaly_queries.py. The queries hold for these weights only, and were\n"
        f"# found with labels of {' and '.join(found_with)}: report no figures on those images.\n"
        + yaml.safe_dump(content, sort_keys=False, default_flow_style=None)
    )

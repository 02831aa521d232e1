"""Evaluation of a model on every data set of DATASETS.TEST, closed and anomaly sets together."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gmm_anomaly.data import build_test_loader
from gmm_anomaly.data.build import present
from gmm_anomaly.data.registration import require_known
from gmm_anomaly.evaluation import AnomalyEvaluator, ClosedSetEvaluator, format_results, write_results
from gmm_anomaly.evaluation.records import EVALUATOR_TYPES
from gmm_anomaly.evaluation.results import ANOMALY, CLOSED_SET, METRICS
from gmm_anomaly.gmm.collectives import broadcast_from_first
from gmm_anomaly.modeling.scoring import score_names
from gmm_anomaly.postprocess import chain_name, get_postprocesses

logger = logging.getLogger(__name__)


def reported_scores(cfg: CfgNode, dataset_name: str) -> list[str]:
    """Names of the scores reported on a data set: the model's, then each after the post-processes."""
    names = score_names(cfg)
    chain = cfg.TEST.POSTPROCESS_OVERRIDES.get(dataset_name, cfg.TEST.POSTPROCESS)
    return names + [chain_name(name, chain) for name in names] if chain else names


def check_postprocesses(cfg: CfgNode) -> None:
    """Raise ValueError for an unknown post-process, or a data set of the overrides that is not registered."""
    get_postprocesses(cfg.TEST.POSTPROCESS)
    for name, chain in cfg.TEST.POSTPROCESS_OVERRIDES.items():
        key = f"TEST.POSTPROCESS_OVERRIDES.{name}"
        try:
            require_known(name)
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        if isinstance(chain, str):
            raise ValueError(f"{key}: expected a list of post-processes, found {chain!r}")
        get_postprocesses(chain, key=key)


def check_result_names(cfg: CfgNode) -> None:
    """Raise ValueError for a name in ``TEST.EXPECTED_RESULTS`` or ``TEST.BEST_METRIC`` that no evaluation of
    the config gives."""
    datasets = cfg.DATASETS.TEST
    named = [("TEST.BEST_METRIC", cfg.TEST.BEST_METRIC)] if cfg.TEST.BEST_METRIC else []
    for task, metric, *_ in cfg.TEST.EXPECTED_RESULTS:
        named.append(("TEST.EXPECTED_RESULTS", f"{task}/{metric}"))
    for key, name in named:
        known = [f"{dataset}/{result}" for dataset in datasets for result in _result_names(cfg, dataset)]
        whole = key == "TEST.BEST_METRIC" or name.partition("/")[0] in datasets or len(datasets) != 1
        wanted = name if whole else f"{datasets[0]}/{name}"
        if not any(fnmatchcase(wanted, pattern) for pattern in known):
            closest = ", ".join(get_close_matches(wanted, known, cutoff=0))
            raise ValueError(
                f"{key}: expected a result as in results.json, DATA_SET/TASK/METRIC with a data set of "
                f"DATASETS.TEST ({', '.join(datasets) or 'which is empty'}), found {name!r}"
                + (f"; the closest are {closest}" if closest else "")
            )


def _result_names(cfg: CfgNode, dataset: str) -> Iterator[str]:
    """Patterns of what an evaluation of a data set may give, as far as it is registered."""
    protocol = "*"
    if dataset in DatasetCatalog:
        protocol = MetadataCatalog.get(dataset).get("protocol") or "pooled"
    for kind, metrics in METRICS.items():
        rule = protocol if kind == ANOMALY else "*"
        scored = [f"{kind}/{rule}/{score}" for score in reported_scores(cfg, dataset)]
        tasks = [kind] if kind == CLOSED_SET else scored
        yield from (f"{task}/{metric}" for task in tasks for metric in metrics)


def verify_expected_results(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Compare an evaluation with ``TEST.EXPECTED_RESULTS``, as Detectron2's ``verify_results``.

    Args:
        results: as :func:`evaluate` returns them; empty on the ranks that have none.

    Raises:
        ValueError: a number that is not there, or is further off than its tolerance; names all of them.
    """
    found = flatten_results_dict(results) if results else {}
    wrong = []
    for task, metric, number, tolerance in cfg.TEST.EXPECTED_RESULTS if results else ():
        name = task if task.partition("/")[0] in results else f"{next(iter(results))}/{task}"
        actual = found.get(f"{name}/{metric}", "none")
        if isinstance(actual, str) or not abs(actual - number) <= tolerance:
            wrong.append(f"{name}/{metric} is {actual}, expected {number} +- {tolerance}")
    if wrong:
        raise ValueError(f"TEST.EXPECTED_RESULTS: {'; '.join(wrong)}")


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator of a data set; also for the method of this name of a ``DefaultTrainer`` of your own.

    Raises:
        ValueError: ``evaluator_type`` of the data set is neither "anomaly" nor, for one with classes,
            "closed_set" or "sem_seg"; others as the evaluators.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    options: dict[str, Any] = {
        "output_dir": cfg.OUTPUT_DIR,
        "num_visualizations": cfg.TEST.NUM_VISUALIZATIONS,
    }
    if kind in EVALUATOR_TYPES["closed_set"]:
        return ClosedSetEvaluator(dataset_name, **options)
    if kind == "anomaly":
        return AnomalyEvaluator(
            dataset_name,
            reported_scores(cfg, dataset_name),
            component_track=cfg.TEST.COMPONENT_TRACK or None,
            save_scores=cfg.TEST.SAVE_SCORES,
            num_best_worst=cfg.TEST.NUM_VISUALIZATIONS // 2,
            **options,
        )
    raise ValueError(
        f'{dataset_name}: expected evaluator_type "closed_set", "sem_seg" or "anomaly", found {kind!r}'
    )


def share_statistics(model: nn.Module) -> None:
    """Give the batch norms of every rank the running statistics of rank 0, which its checkpoints have.

    Those that are not synchronised drift apart in training, and each rank would evaluate another model.
    Collective: every rank must call.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for buffer in module.buffers(recurse=False):
                broadcast_from_first(buffer)


@torch.no_grad()
def evaluate(cfg: CfgNode, model: nn.Module, *, iteration: int | None = None) -> dict[str, Any]:
    """Evaluate on every data set of ``DATASETS.TEST``, print the tables and write ``results.json``.

    Collective: every rank must call. One forward pass per image serves all of ``TEST.SCORES``. Of several
    sets those that are not on disk are left out, with a line in the log.

    Returns:
        {data set: {task: {metric: number}}} on rank 0, as Detectron2 nests results; {} on the other ranks.

    Raises:
        FileNotFoundError: none of the sets is on disk.
    """
    share_statistics(model)
    results: dict[str, Any] = OrderedDict()
    for name in present(cfg.DATASETS.TEST, "DATASETS.TEST"):
        found = inference_on_dataset(model, build_test_loader(cfg, name), build_evaluator(cfg, name))
        if comm.is_main_process():
            results[name] = found
    if results:
        logger.info("Results\n%s", format_results(results))
        unseen = getattr(getattr(model, "classifier", None), "unseen_classes", [])
        context = {"iteration": iteration, "weights": cfg.MODEL.WEIGHTS} | (
            {"unseen_classes": unseen} if unseen else {}
        )
        write_results(results, cfg.OUTPUT_DIR, **context)
        path = Path(cfg.OUTPUT_DIR) / "results.json"
        logger.info("Results are in %s; weights: %s", path, cfg.MODEL.WEIGHTS or "not saved")
    return results

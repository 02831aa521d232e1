"""Which post-processes the config asks for, data set by data set."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from gmm_anomaly.data.reading import CLOSED_SET
from gmm_anomaly.data.registration import require_known
from gmm_anomaly.modeling.scoring import score_names
from gmm_anomaly.postprocess import chain_name, get_postprocesses


def postprocesses_for(cfg: CfgNode, dataset_name: str) -> list[str]:
    """Names of the post-processes on a data set, in the order they are applied; none on a closed set, where
    no score is measured."""
    if dataset_name and MetadataCatalog.get(dataset_name).get("evaluator_type") == CLOSED_SET:
        return []
    return list(cfg.TEST.POSTPROCESS_OVERRIDES.get(dataset_name, cfg.TEST.POSTPROCESS))


def reported_scores(cfg: CfgNode, dataset_name: str) -> list[str]:
    """Names of the scores reported on a data set: the model's, then each after the post-processes."""
    names = score_names(cfg)
    chain = postprocesses_for(cfg, dataset_name)
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

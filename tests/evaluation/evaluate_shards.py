"""One process of several distributed evaluations, started by test_ranks.py: evaluate_shards.py JOB RANK."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

from gmm_anomaly.data import register_anomaly_dataset, register_segmentation_dataset
from gmm_anomaly.evaluation import AnomalyEvaluator, ClosedSetEvaluator

CLASSES = ["road", "car", "sky", "tree"]


def main(job_file: str, rank: int) -> None:
    job = json.loads(Path(job_file).read_text())
    store = f"file://{Path(job_file).with_name('store')}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    outcomes = {
        run: evaluate(job, shards[rank], Path(job_file).parent / run) for run, shards in job["runs"].items()
    }
    Path(job_file).with_name(f"outcomes_{rank}.pickle").write_bytes(pickle.dumps(outcomes))
    # gloo's threads abort a process that exits before the other has finished with it.
    distributed.barrier()
    distributed.destroy_process_group()


def evaluate(job: dict[str, Any], image_ids: list[str], output_dir: Path) -> dict[str, Any]:
    """What both evaluators return (or the message of their error) for this process's images."""
    torch.set_num_threads(1)
    anomaly, closed = (f"shards_{kind}_{output_dir.name}" for kind in ("anomaly", "closed"))
    for name, register, options in (
        (anomaly, register_anomaly_dataset, {}),
        (closed, register_segmentation_dataset, {"classes": CLASSES}),
    ):
        root = Path(job["closed" if options else "anomaly"])
        register(name, root / "images", root / "labels", **options)
    scores, logits = np.load(job["scores"]), np.load(job["logits"])
    anomaly_evaluator = AnomalyEvaluator(
        anomaly,
        ["good", "bad"],
        protocol="smiyc",
        component_track="obstacle",
        num_visualizations=3,
        num_best_worst=1,
        output_dir=output_dir,
    )
    closed_evaluator = ClosedSetEvaluator(closed, num_visualizations=3, output_dir=output_dir)
    for one in image_ids:
        maps = {name: torch.tensor(scores[f"{name}/{one}"]) for name in ("good", "bad")}
        anomaly_evaluator.process([{"image_id": one}], [{"anomaly_scores": maps}])
        closed_evaluator.process([{"image_id": one}], [{"sem_seg": torch.tensor(logits[one])}])
    found: dict[str, Any] = {}
    for kind, evaluator in (("anomaly", anomaly_evaluator), ("closed", closed_evaluator)):
        try:
            results = evaluator.evaluate()
            found[kind] = results and {
                task: (dict(result), result.details) for task, result in results.items()
            }
        except ValueError as error:
            found[kind] = str(error)
    return found


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

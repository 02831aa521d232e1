"""Two processes with unequal shards give the results of one process, to the last bit."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from gmm_anomaly.evaluation import AnomalyEvaluator, ClosedSetEvaluator

IDS = [f"frame_{number:02d}" for number in range(5)]
RUNS = {
    "unequal": [[IDS[3]], [IDS[2], IDS[0], IDS[4], IDS[1]]],
    "empty": [[], IDS],
    "repeated": [IDS[:2], IDS[1:]],
}


@pytest.fixture
def logits(closed_tree) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {one: rng.normal(size=(4, *label.shape)).astype("f4") for one, label in closed_tree.labels.items()}


def evaluate(job: tuple, image_ids: list[str], output_dir: Path) -> dict[str, Any]:
    """What both evaluators return (or the message of their error) for this process's images."""
    anomaly, closed, scores, logits = job
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
        maps = {name: torch.tensor(found[one]) for name, found in scores.items()}
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


def one_of_two(rank: int, job: tuple, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outcomes = {run: evaluate(job, shards[rank], folder / run) for run, shards in RUNS.items()}
    (folder / f"outcomes_{rank}.pickle").write_bytes(pickle.dumps(outcomes))
    # gloo's threads abort a process that exits before the other has finished with it.
    distributed.barrier()
    distributed.destroy_process_group()


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_two_ranks_equal_one_process(anomaly_tree, closed_tree, scores, logits, tmp_path):
    job = anomaly_tree.name, closed_tree.name, scores, logits
    fork = multiprocessing.get_context("fork")  # Detectron2 need not be imported again
    processes = [fork.Process(target=one_of_two, args=(rank, job, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    outcomes = [pickle.loads((tmp_path / f"outcomes_{rank}.pickle").read_bytes()) for rank in range(2)]

    alone = evaluate(job, IDS, tmp_path / "alone")
    assert [len(alone["anomaly"]), len(alone["closed"])] == [4, 1]
    expected = files(tmp_path / "alone")
    # Curves, the first three images of either data set, and those with the highest and the lowest AP; of the
    # anomaly set two files each.
    assert 10 <= len(expected) <= 14
    for run in ("unequal", "empty"):
        # As bytes: equality of floats would miss NaN, and == of arrays is an array.
        assert pickle.dumps(outcomes[0][run]) == pickle.dumps(alone)
        assert outcomes[1][run] == {"anomaly": None, "closed": None}
        assert files(tmp_path / run) == expected
    for outcome in outcomes:
        for message in outcome["repeated"].values():
            assert "'frame_01'" in message and "1 images were evaluated by more" in message

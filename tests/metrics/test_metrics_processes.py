"""Metrics of two real gloo processes, each with half of the frames, against one process that sees all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from gmm_anomaly.metrics import CalibrationMetrics, ComponentMetrics, ConfusionMetrics, PixelMetrics

ROOT = Path(__file__).parents[2]

# What the workers and the test itself make, and how they count a frame.
MADE = """
made = [
    PixelMetrics("pooled", max_distinct=2000),
    PixelMetrics("pooled"),
    PixelMetrics("pooled", "float16"),
    PixelMetrics("smiyc", "float16"),
    PixelMetrics("per_image"),
    ComponentMetrics(3, 2, 0.5),
    ConfusionMetrics(2),
    CalibrationMetrics(),
]

def count(metrics, score, label):
    if isinstance(metrics, ConfusionMetrics):
        metrics.update((score > 1).astype(int), label)
    elif isinstance(metrics, CalibrationMetrics):
        metrics.update(1 / (1 + np.exp(-score)), pred=(score > 1).astype(int), label=label)
    else:
        metrics.update(score, label)
"""

WORKER = f"""
import sys
import numpy as np
import torch
import torch.distributed as dist
from gmm_anomaly.metrics import CalibrationMetrics, ComponentMetrics, ConfusionMetrics, PixelMetrics
{MADE}
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{{folder}}/rendezvous", rank=rank, world_size=2)
frames = np.load(f"{{folder}}/frames.npz")
for number, metrics in enumerate(made):
    for index in range(rank, len(frames["score"]), 2):
        count(metrics, frames["score"][index], frames["label"][index])
    states = [None, None]
    dist.all_gather_object(states, metrics.state())
    joined = type(metrics).from_state(states[1 - rank])
    joined.merge(type(metrics).from_state(states[rank]))
    np.savez(f"{{folder}}/rank{{rank}}_{{number}}.npz", **joined.state())
dist.destroy_process_group()
"""


def test_two_gloo_processes_give_the_same_state_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 255], (7, 24, 31), p=[0.8, 0.1, 0.1]).astype(np.uint8)
    scores = (rng.normal(size=labels.shape) + (labels == 1)).astype(np.float32)
    np.savez(tmp_path / "frames.npz", score=scores, label=labels)
    (tmp_path / "worker.py").write_text(WORKER)
    workers = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), str(rank), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors.decode()

    here = {
        "np": np,
        "PixelMetrics": PixelMetrics,
        "ComponentMetrics": ComponentMetrics,
        "ConfusionMetrics": ConfusionMetrics,
        "CalibrationMetrics": CalibrationMetrics,
    }
    exec(MADE, here)  # the very same metrics as in the workers
    for number, metrics in enumerate(here["made"]):
        for score, label in zip(scores, labels, strict=True):
            here["count"](metrics, score, label)
        expected = metrics.state()
        for rank in range(2):
            with np.load(tmp_path / f"rank{rank}_{number}.npz") as joined:
                assert set(joined) == set(expected)
                for key, value in expected.items():
                    assert joined[key].tobytes() == np.asarray(value).tobytes(), (number, key)
            with np.load(tmp_path / f"rank{rank}_{number}.npz") as joined:
                assert str(type(metrics).from_state(joined).compute()) == str(metrics.compute())

"""All metrics: the same state for any order, shards and processes, saved and read back without loss."""

from __future__ import annotations

import io
import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch import distributed

from gmm_anomaly.metrics import (
    CalibrationMetrics,
    ComponentMetrics,
    ConfusionMetrics,
    PixelMetrics,
)

# 100 different scores is far fewer than the frames have, 100 000 far more than they have pixels.
PIXELS = [("pooled", precision, limit) for precision in ("float32", None) for limit in (100, 2000, 100_000)]
PIXELS += [("per_image", "float32", 100)]
PIXELS += [(protocol, "float16", 2**16) for protocol in ("pooled", "per_image", "smiyc")]
PIXELS += [(protocol, "float32", 2**16) for protocol in ("smiyc", "smiyc_uniform")]
MADE = {
    f"{protocol}, {precision}, {limit}": (PixelMetrics, (protocol, precision), {"max_distinct": limit})
    for protocol, precision, limit in PIXELS
} | {
    "components": (ComponentMetrics, (3, 2, 0.5), {}),
    "confusion": (ConfusionMetrics, (2,), {}),
    "confusion, named": (ConfusionMetrics, (2, ["road", "car"]), {}),
    "calibration": (CalibrationMetrics, (), {}),
}


def fill(name: str, data: list, metrics=None):
    """The metrics ``name``, or the given ones, with the frames counted."""
    kind, arguments, options = MADE[name]
    metrics = kind(*arguments, **options) if metrics is None else metrics
    for score, label in data:
        if kind is ConfusionMetrics:
            metrics.update((score > 1).astype(int), label)
        elif arguments == ("pooled", None):  # some frames are float64, some float32
            metrics.update(score + np.float64(1e-12) if score[0, 5] > 0 else score, label)
        elif kind is CalibrationMetrics:
            metrics.update(1 / (1 + np.exp(-score)), pred=(score > 1).astype(int), label=label)
        else:
            metrics.update(score, label)
    return metrics


def by_numpy(state: dict) -> dict:
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return dict(np.load(file, allow_pickle=False))


def by_json(state: dict) -> dict:
    return json.loads(
        json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in state.items()})
    )


def by_pickle(state: dict) -> dict:
    return pickle.loads(pickle.dumps(state))


def by_torch(state: dict) -> dict:
    file = io.BytesIO()
    torch.save({k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", MADE)
def test_state_depends_only_on_the_pixels(name, frames, as_bytes):
    data = frames()
    whole = fill(name, data)
    expected, numbers = as_bytes(whole.state()), str(whole.compute())  # as text, so that NaN equals NaN
    assert as_bytes(fill(name, data[::-1]).state()) == expected
    for shards in ([data[:1], data[1:]], [data[4:], data[2:4], data[:2]], [[], data[3:], [], data[:3]]):
        joined = fill(name, [])
        for shard in shards:
            part = fill(name, shard)
            before = as_bytes(part.state())
            joined.merge(part)
            assert as_bytes(part.state()) == before
        assert as_bytes(joined.state()) == expected and str(joined.compute()) == numbers
    interrupted = fill(name, data[:4])
    interrupted.compute()
    assert str(fill(name, data[4:], interrupted).compute()) == numbers


@pytest.mark.parametrize("saved", [by_numpy, by_json, by_torch, by_pickle])
@pytest.mark.parametrize("name", MADE)
def test_a_saved_state_is_read_back_and_counted_on(name, saved, frames, as_bytes):
    data = frames(3)
    for first in (0, 1):
        kept, other = fill(name, data[:first]), fill(name, data[2:])
        back = type(kept).from_state(saved(kept.state()))
        assert as_bytes(back.state()) == as_bytes(kept.state())
        for metrics in (back, kept):
            fill(name, data[1:2], metrics)
            metrics.merge(other)
        assert as_bytes(back.state()) == as_bytes(kept.state())
        assert str(back.compute()) == str(kept.compute())


def count_every_second_frame(rank: int, data: list, folder: str) -> None:
    """One of two processes: counts its frames, and saves what both found together."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for number, name in enumerate(MADE):
        own = fill(name, data[rank::2])
        states = [None, None]
        distributed.all_gather_object(states, own.state())
        joined = type(own).from_state(states[1 - rank])
        joined.merge(type(own).from_state(states[rank]))
        np.savez(f"{folder}/{rank}_{number}.npz", **joined.state())
    distributed.barrier()
    distributed.destroy_process_group()


def test_two_gloo_processes_give_the_same_state_to_the_last_bit(frames, as_bytes, tmp_path):
    fork = multiprocessing.get_context("fork")  # torch need not be imported again
    processes = [
        fork.Process(target=count_every_second_frame, args=(rank, frames(), str(tmp_path)))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    for number, name in enumerate(MADE):
        expected = fill(name, frames())
        for rank in range(2):
            with np.load(tmp_path / f"{rank}_{number}.npz") as joined:
                assert as_bytes(dict(joined)) == as_bytes(expected.state())
                assert str(type(expected).from_state(joined).compute()) == str(expected.compute())

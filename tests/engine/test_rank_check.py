"""The hashes by which ranks compare their mixtures; tests/engine/test_ranks.py has real processes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.engine import rank_check
from gmm_anomaly.engine.em_hook import EMHook
from gmm_anomaly.engine.rank_check import check_ranks_agree, row_hashes
from gmm_anomaly.gmm import GaussianMixtureBank

CLASSES = 3


def make_bank():
    torch.manual_seed(0)
    return GaussianMixtureBank(CLASSES, 2, 4, memory_size=6, samples_per_update=4, warm_start_features=5)


def other_rank(monkeypatch, change):
    """As if rank 1's mixtures were those of this process after ``change``."""

    def gather(own):
        bank = make_bank()
        change(bank)
        other = []
        monkeypatch.setattr(rank_check, "gather_stack", lambda hashes: other.append(hashes) or hashes[None])
        check_ranks_agree(bank, "")
        monkeypatch.setattr(rank_check, "gather_stack", gather)
        return torch.stack([own, other[0]])

    monkeypatch.setattr(rank_check, "gather_stack", gather)


def nudge(tensor, index):
    """The next floating-point number, or the next integer."""
    found = tensor[index]
    more = torch.tensor(torch.inf, dtype=tensor.dtype) if tensor.is_floating_point() else None
    tensor[index] = torch.nextafter(found, more) if more is not None else found + 1


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool]
)
def test_a_hash_is_of_the_bits_of_its_row(dtype):
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (5, 40))).to(dtype)
    hashes = row_hashes(rows)
    assert torch.equal(row_hashes(rows.clone()), hashes)
    for row, column in ((0, 0), (3, 17), (4, 39)):
        changed = rows.clone()
        changed[row, column] = 1 - changed[row, column] if dtype != torch.bool else ~changed[row, column]
        assert (row_hashes(changed) != hashes).tolist() == [index == row for index in range(5)]


def test_a_hash_sees_the_last_bit_and_the_order_and_takes_nan_as_it_is():
    rows = torch.tensor([[1.0, 2.0, torch.nan], [1.0, 2.0, torch.nan], [2.0, 1.0, torch.nan]])
    first, same, swapped = row_hashes(rows).tolist()
    assert first == same != swapped
    nudge(rows, (0, 1))
    assert row_hashes(rows)[0] != same


@pytest.mark.parametrize(
    ("name", "index", "place"),
    [
        ("means", (2, 1, 3), "means of class 2"),
        ("scales", (0, 0, 0), "scales of class 0"),
        ("memory.total_square", (3, 1), "memory.total_square of class 1"),
        ("memory.count", (5,), "memory.count of class 2"),
        ("fitted", (1, 1), "fitted of class 1"),
        ("started", (2,), "started of class 2"),
        ("reseeded", (), "reseeded"),
    ],
)
def test_what_differs_is_named(monkeypatch, name, index, place):
    def change(bank):
        tensor = dict(bank.named_buffers())[name]
        if tensor.dtype == torch.bool:
            tensor[index] = ~tensor[index]
        else:
            nudge(tensor, index)

    other_rank(monkeypatch, change)
    with pytest.raises(
        RuntimeError, match=rf"all ranks after iteration 7\. Different from rank 0: {place} on rank 1\. "
    ):
        check_ranks_agree(make_bank(), "after iteration 7")


def test_what_a_rank_holds_by_itself_may_differ(monkeypatch):
    def change(bank):
        for tensor in (bank.memory.ring, bank.memory.slot_state, bank.warm_start.features):
            tensor.add_(1)
        bank.warm_start.count.add_(1)

    other_rank(monkeypatch, change)
    check_ranks_agree(make_bank(), "")


def test_many_differences_are_cut_short(monkeypatch):
    other_rank(monkeypatch, lambda bank: [tensor.logical_not_() for tensor in bank.buffers()])
    with pytest.raises(RuntimeError, match=r"means of class 0, 1, 2 on rank 1; .* and \d+ more\. Something"):
        check_ranks_agree(make_bank(), "")


def test_hook_checks_at_the_start_and_after_every_so_many_em_steps(monkeypatch):
    asked = []
    monkeypatch.setattr("gmm_anomaly.engine.em_hook.check_ranks_agree", lambda bank, when: asked.append(when))
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    cfg.merge_from_list(["MODEL.GMM.UPDATE_INTERVAL", 2, "MODEL.GMM.CHECK_RANKS_EVERY", 3])
    for period, expected in (
        (3, ["before the first iteration", "after iteration 4", "after iteration 10"]),
        (0, []),
    ):
        cfg.MODEL.GMM.CHECK_RANKS_EVERY = period
        hook = EMHook.from_config(cfg, make_bank())
        storage = SimpleNamespace(put_scalar=lambda *arguments, **options: None)
        hook.trainer = SimpleNamespace(iter=0, max_iter=12, storage=storage)
        hook.before_train()
        for hook.trainer.iter in range(12):
            hook.after_step()
        assert asked == expected
        asked.clear()
    with pytest.raises(ValueError, match=r"MODEL\.GMM\.CHECK_RANKS_EVERY: expected at least 0, found -1"):
        EMHook(make_bank(), check_ranks_every=-1)

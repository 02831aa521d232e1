"""Where the processes of one torchrun round meet, apart from those of the rounds before."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

PREFIX = "gmm_anomaly"
PAUSE = 0.05


def round_store(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """A part of ``store`` that only the processes of this round know.

    torchrun's store outlives its workers. After a restart it still has the addresses of the dead ones, and a
    process that reads them before they are overwritten connects to nobody (pytorch issue 135712). Restart
    counts tell rounds apart on one machine only. So rank 0 names the round, and tells the name only in answer
    to a question that nobody can have asked before. When a round starts, all processes of the last one are
    gone: torchrun waits for that.

    Collective: every process of the round must call.

    Raises:
        TimeoutError: on rank 0, when processes do not come; elsewhere what the store raises then.
    """
    if rank > 0:
        question = uuid4().hex
        store.set(f"{PREFIX}/question/{rank}", question)
        name = store.get(f"{PREFIX}/answer/{question}").decode()
        store.set(f"{PREFIX}/{name}/knows/{rank}", "1")
        return dist.PrefixStore(f"{PREFIX}/{name}/", store)
    name, missing = uuid4().hex, list(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:
            key = f"{PREFIX}/question/{other}"
            if store.check([key]):
                # It may be a dead process's. The new one's will overwrite it.
                store.set(f"{PREFIX}/answer/{store.get(key).decode()}", name)
        missing = [other for other in missing if not store.check([f"{PREFIX}/{name}/knows/{other}"])]
        if missing and time.monotonic() > deadline:
            raise TimeoutError(
                f"processes {', '.join(map(str, missing))} of {world_size} that torchrun has started did not "
                f"come within {timeout.total_seconds():.0f} s; their own output says why"
            )
        time.sleep(PAUSE)
    return dist.PrefixStore(f"{PREFIX}/{name}/", store)

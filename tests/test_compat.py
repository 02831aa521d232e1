"""What differs between ways to install Detectron2, and the heap. Several ranks: engine/test_ranks.py."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gmm_anomaly import compat


def test_missing_detectron2_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(ImportError, match=r"Detectron2 is not installed.*make setup DETECTRON2=/path/to/che"):
        compat.require_detectron2()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import a_package_that_is_not_there", "package a_package_that_is_not_there that it imports is not"),
        ("raise OSError('undefined symbol')", r"importing it fails \(OSError: undefined symbol\)"),
    ],
)
def test_detectron2_that_fails_to_import(tmp_path, monkeypatch, body, message):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(body + "\n")
    monkeypatch.delitem(sys.modules, "detectron2", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=message):
        compat.require_detectron2()


def test_upstream_keys_let_a_newer_config_be_read():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    compat.add_upstream_keys(cfg)
    cfg.merge_from_list(["FLOAT32_PRECISION", "high"])
    compat.add_upstream_keys(cfg)
    assert cfg.FLOAT32_PRECISION == "high"


# Page faults of twenty tensors of 64 MB that are made and freed, before and after the heap keeps them.
PROGRAM = """
import resource
import torch
from gmm_anomaly.compat import keep_freed_memory

def faults():
    # Small blocks that stay take pieces of the first ones.
    for _ in range(20):
        torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_tensors_reuse_the_pages_of_those_before():
    tuned = ("MALLOC_", "GLIBC_TUNABLES")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(tuned)}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    anew, said, kept = done.stdout.split()
    if said == "False":
        pytest.skip("the C library has no mallopt")
    # Each tensor's pages, of 4 kB or of up to 2 MB where the system uses huge ones.
    assert int(anew) >= 20 * 64 // 2 and int(kept) < int(anew) / 10


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_a_heap_that_is_tuned_already_is_left_alone(name):
    assert compat.keep_freed_memory({name: "1"}) is False

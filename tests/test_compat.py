"""What differs between ways to install Detectron2. Distributed wrapping: engine/test_ranks.py."""

from __future__ import annotations

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


def test_single_process_model_is_not_wrapped():
    from torch import nn

    model = nn.Linear(2, 1)
    assert compat.wrap_distributed(model) is model

"""docs/configuration.md is what the comments of the config modules say, and lists every key with its default."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from gmm_anomaly.config import add_gmm_anomaly_config
from gmm_anomaly.config_reference import COMMAND, entries, page, read, write

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        # An empty node takes any names, so it is a key itself.
        if isinstance(value, CfgNode) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def test_the_page_is_in_step_with_the_comments():
    assert PAGE.read_text(encoding="utf-8") == page(read()), (
        f"docs/configuration.md is not what the comments of the config modules say; write it anew: {COMMAND}"
    )


def test_every_key_that_is_added_or_changed_is_listed_with_its_default():
    ours, upstream = get_cfg(), dict(leaves(get_cfg()))
    add_gmm_anomaly_config(ours)
    ours = dict(leaves(ours))
    changed = {key for key, value in ours.items() if key not in upstream or upstream[key] != value}
    listed = {key: default for entry in entries(read()) for key, default in entry.keys}
    # A key of Detectron2's may be named with the default it has there anyway.
    assert changed <= set(listed) <= set(ours)
    assert {key: ast.literal_eval(default) for key, default in listed.items()} == {
        key: dict(ours[key]) if isinstance(ours[key], CfgNode) else ours[key] for key in listed
    }
    text = PAGE.read_text(encoding="utf-8")
    for key, default in listed.items():
        assert text.count(f"`{key}`: `{default}`") == 1, key


def test_every_key_has_a_comment():
    found = entries(read())
    introduced = {entry.section for entry in found if not entry.keys}
    for entry in found:
        assert entry.text or entry.section in introduced, entry.keys


def test_keys_in_the_texts_exist():
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    known = {key for key, _ in leaves(cfg)}
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(key.count("."))}
    for key in re.findall(r"`([A-Z]+(?:\.[A-Z0-9_]+)+)(?:\.\*)?`", PAGE.read_text(encoding="utf-8")):
        assert key in known | nodes, key


def test_comments_reach_the_keys_below_them(tmp_path):
    source = tmp_path / "config.py"
    source.write_text(
        "def _add(cfg):\n"
        "    # What the section is for.\n"
        "    node = cfg.MODEL.PART = CN()\n"
        "    # Two keys, _one and the other, of\n"
        "    # <this>: see MODEL.PART.FIRST...\n"
        "    node.FIRST = 1e-2\n"
        "    node.SECOND = [1, 2]\n"
        "\n"
        "    # Elsewhere.\n"
        "    cfg.SEED = -1\n"
    )
    target = tmp_path / "page.md"
    write(target, [source])
    assert target.read_text(encoding="utf-8").split("## ", 1)[1] == (
        "MODEL.PART\n\nWhat the section is for.\n\n"
        "- `MODEL.PART.FIRST`: `1e-2`, `MODEL.PART.SECOND`: `[1, 2]`<br>\n"
        "  Two keys, \\_one and the other, of &lt;this>: see `MODEL.PART.FIRST`…\n"
        "\n## SEED\n\n- `SEED`: `-1`<br>\n  Elsewhere.\n"
    )
    assert list(tmp_path.glob("*.new")) == []

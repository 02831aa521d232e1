"""docs/configuration.md is what the comments of gmm_anomaly/config.py say, and lists every key."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg

from gmm_anomaly.config import add_gmm_anomaly_config
from tools import config_reference as tool


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        key = f"{prefix}{name}"
        # An empty node takes any names, so it is a key itself.
        if isinstance(value, CfgNode) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def test_the_page_is_in_step_with_the_comments():
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page(tool.SOURCE.read_text()), (
        f"docs/configuration.md is not what the comments of gmm_anomaly/config.py say: {tool.COMMAND}"
    )


def test_every_key_that_is_added_or_changed_is_listed_with_its_default_and_a_comment():
    ours, upstream = get_cfg(), dict(leaves(get_cfg()))
    add_gmm_anomaly_config(ours)
    ours = dict(leaves(ours))
    changed = {key for key, value in ours.items() if key not in upstream or upstream[key] != value}
    found = tool.entries(tool.SOURCE.read_text())
    listed = {key: default for entry in found for key, default in entry.keys}
    # A key of Detectron2's may be named with the default it has there anyway.
    assert changed <= set(listed) <= set(ours)
    assert {key: ast.literal_eval(default) for key, default in listed.items()} == {
        key: dict(ours[key]) if isinstance(ours[key], CfgNode) else ours[key] for key in listed
    }
    introduced = {entry.section for entry in found if not entry.keys}
    text = tool.page(tool.SOURCE.read_text())
    for entry in found:
        assert entry.text or entry.section in introduced, entry.keys
        for key, default in entry.keys:
            assert text.count(f"`{key}`: `{default}`") == 1, key
    # Keys that the texts name exist.
    nodes = {key.rsplit(".", depth)[0] for key in ours for depth in range(key.count("."))}
    for key in re.findall(r"`([A-Z]+(?:\.[A-Z0-9_]+)+)(?:\.\*)?`", text):
        assert key in set(ours) | nodes, key


def test_comments_reach_the_keys_below_them():
    source = (
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
    assert tool.page(source).split("## ", 1)[1] == (
        "MODEL.PART\n\nWhat the section is for.\n\n"
        "- `MODEL.PART.FIRST`: `1e-2`, `MODEL.PART.SECOND`: `[1, 2]`<br>\n"
        "  Two keys, \\_one and the other, of &lt;this>: see `MODEL.PART.FIRST`…\n"
        "\n## SEED\n\n- `SEED`: `-1`<br>\n  Elsewhere.\n"
    )

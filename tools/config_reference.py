#!/usr/bin/env python
"""Write docs/configuration.md anew: every key of gmm_anomaly/config.py with its default and its comment."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "gmm_anomaly" / "config.py"
PAGE = ROOT / "docs" / "configuration.md"
COMMAND = "python tools/config_reference.py"

INTRODUCTION = f"""# Configuration

Every key that this project adds to Detectron2's, or gives another default. Written by
`{COMMAND}` from the comments of [gmm_anomaly/config.py](../gmm_anomaly/config.py);
a test keeps them in step.

A key is set in a YAML file (`MODEL: {{GMM: {{NUM_COMPONENTS: 3}}}}`; `_BASE_: FILE` continues another file)
or at the end of a command line, where it wins:

```sh
python train_net.py --config-file configs/camvid/effnetlite0_deeplabv3plus_gmm.yaml MODEL.GMM.NUM_COMPONENTS 3
```

A run writes all its keys, Detectron2's too, to `OUTPUT_DIR/config.yaml`. An unknown key or a value of another
type stops it before it starts.

**Detectron2's own keys apply** with its meanings and defaults (`detectron2/config/defaults.py`). Those that a
run needs most: `DATASETS.TRAIN`, `DATASETS.TEST`, `OUTPUT_DIR`, `SEED`, `MODEL.DEVICE`,
`MODEL.BACKBONE.NAME`, `MODEL.RESNETS.*`, `MODEL.PIXEL_MEAN`, `MODEL.PIXEL_STD`, `INPUT.FORMAT`,
`INPUT.CROP.*`, `SOLVER.IMS_PER_BATCH` (images of all processes together), `SOLVER.BASE_LR`,
`SOLVER.MAX_ITER`, `SOLVER.WARMUP_ITERS`, `SOLVER.WEIGHT_DECAY`, `SOLVER.CHECKPOINT_PERIOD`,
`SOLVER.AMP.ENABLED`, `SOLVER.CLIP_GRADIENTS.*`, `TEST.EVAL_PERIOD`, `TEST.AUG.ENABLED`, `TEST.AUG.FLIP`,
`DATALOADER.NUM_WORKERS` and `DATALOADER.SAMPLER_TRAIN`.
Those of its detectors (`MODEL.RPN`, `MODEL.ROI_HEADS`, …) do nothing here; a run warns of those that are set.
"""

ASSIGNMENT = re.compile(r"    (?:(\w+) = )?(\w+)\.([\w.]+) = (.+)")
KEY = re.compile(r"\b(?:MODEL|DATASETS|INPUT|DATALOADER|SOLVER|TEST)(?:\.[A-Z0-9_]+)+")


class Entry(NamedTuple):
    """Keys that one comment explains: their section, dotted names with their defaults as they are written
    (none where the comment introduces the section), and the comment as one line."""

    section: str
    keys: list[tuple[str, str]]
    text: str


def entries(source: str) -> list[Entry]:
    """The keys of a config module in the order of their lines; adjacent keys share the comment above them.

    Args:
        source: functions that assign to attributes of ``cfg``, or of names bound to its nodes
            (``keys = cfg.MODEL.Y = CN()``), one line each.
    """
    found: list[Entry] = []
    prefixes, comment = {"cfg": ""}, ""
    for line in source.splitlines():
        if line.strip().startswith("#"):
            comment = f"{comment} {line.strip(' #')}".strip()
            continue
        match = ASSIGNMENT.fullmatch(line)
        if match and match[2] in prefixes:
            key, value = prefixes[match[2]] + match[3], match[4]
            if match[1]:
                prefixes[match[1]] = f"{key}."
            section = key.rpartition(".")[0] if key.count(".") > 1 else key.partition(".")[0]
            if value == "CN()" and comment:
                found.append(Entry(key, [], comment))
            elif value != "CN()":
                if comment or not found or not found[-1].keys or found[-1].section != section:
                    found.append(Entry(section, [], comment))
                found[-1].keys.append((key, "{}" if value.startswith("CN(") else value))
        comment = ""
    return found


def page(source: str) -> str:
    """The page in Markdown, of the text of a config module."""
    sections: dict[str, list[Entry]] = {}
    for entry in entries(source):
        sections.setdefault(entry.section, []).append(entry)
    return INTRODUCTION + "".join(
        f"\n## {name}\n\n{''.join(map(_lines, sections[name]))}" for name in sections
    )


def _lines(entry: Entry) -> str:
    text = entry.text.replace("...", "…").replace("+-", "±").replace("<", "&lt;")
    text = KEY.sub(lambda match: f"`{match[0]}`", re.sub(r"(?<!\w)_", r"\_", text))
    indent = "  " if entry.keys else ""
    lines = textwrap.wrap(text, 118 - len(indent), break_long_words=False, break_on_hyphens=False)
    text = "\n".join(indent + line for line in lines)
    if not entry.keys:
        return f"{text}\n\n"
    keys = ", ".join(f"`{key}`: `{value}`" for key, value in entry.keys)
    return f"- {keys}<br>\n{text}\n" if entry.text else f"- {keys}\n"


if __name__ == "__main__":
    PAGE.write_text(page(SOURCE.read_text(encoding="utf-8")), encoding="utf-8")

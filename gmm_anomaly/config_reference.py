"""The page docs/configuration.md: every key of the config modules with its default and the comment above it."""

from __future__ import annotations

import ast
import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

COMMAND = "python tools/config_reference.py"
CONFIGS = tuple(Path(__file__).with_name(f"{name}.py") for name in ("config", "config_gmm"))

INTRODUCTION = f"""# Configuration

Every key that this project adds to Detectron2's, or gives another default. Written by
`{COMMAND}` from the comments of {" and ".join(f"[gmm_anomaly/{path.name}](../gmm_anomaly/{path.name})" for path in CONFIGS)};
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
Those of its detectors (`MODEL.RPN`, `MODEL.ROI_HEADS`, …) do nothing here.
"""

_KEY = re.compile(r"\b(?:MODEL|DATASETS|INPUT|DATALOADER|SOLVER|TEST)(?:\.[A-Z0-9_]+)+")
_WIDTH = 118
_WHOLE_WORDS = {"break_long_words": False, "break_on_hyphens": False}


@dataclass(frozen=True)
class Entry:
    """Keys that one comment explains.

    Attributes:
        section: dotted name of the node that they belong to.
        keys: dotted name and default, as written in the source, of each; none where the comment introduces
            the section.
        text: the comment as one line; "" where there is none.
    """

    section: str
    keys: tuple[tuple[str, str], ...]
    text: str


def entries(source: str) -> list[Entry]:
    """The keys of a config module in the order of its lines; adjacent keys share the comment above them.

    Args:
        source: a module whose functions assign to attributes of ``cfg`` (``cfg.MODEL.X = 1``) or of names
            bound to its nodes (``keys = cfg.MODEL.Y = CN()``).
    """
    lines = source.splitlines()
    found: list[Entry] = []
    nodes: set[str] = set()
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        names = {"cfg": ""}
        for statement in function.body:
            if not isinstance(statement, ast.Assign):
                continue
            key = next(filter(None, (_dotted(target, names) for target in statement.targets)))
            names |= {target.id: key for target in statement.targets if isinstance(target, ast.Name)}
            text = _comment_above(lines, statement.lineno)
            value = ast.get_source_segment(source, statement.value) or ""
            section = _section(key, nodes)
            if value == "CN()":
                nodes.add(key)
                if text:
                    found.append(Entry(key, (), text))
            elif text or not found or not found[-1].keys or found[-1].section != section:
                found.append(Entry(section, ((key, _plain(value)),), text))
            else:
                last = found.pop()
                found.append(Entry(section, (*last.keys, (key, _plain(value))), last.text))
    return found


def _dotted(target: ast.expr, names: dict[str, str]) -> str:
    """``MODEL.X`` of ``cfg.MODEL.X``; "" of a bare name."""
    parts: list[str] = []
    while isinstance(target, ast.Attribute):
        parts.insert(0, target.attr)
        target = target.value
    assert isinstance(target, ast.Name)
    return ".".join(filter(None, [names.get(target.id, ""), *parts])) if parts else ""


def _comment_above(lines: list[str], number: int) -> str:
    """The comment lines that end right above line ``number``, counted from 1, as one line."""
    above = []
    for line in reversed(lines[: number - 1]):
        if not line.strip().startswith("#"):
            break
        above.insert(0, line.strip().lstrip("#").strip())
    return " ".join(above)


def _section(key: str, nodes: set[str]) -> str:
    """The longest node, of those the project makes, that holds the key; else the key's first part."""
    parts = key.split(".")
    parents = [".".join(parts[:length]) for length in range(len(parts) - 1, 1, -1)]
    return next((parent for parent in parents if parent in nodes), parts[0])


def _plain(value: str) -> str:
    return "{}" if value.startswith("CN(") else value


def page(source: str) -> str:
    """The page in Markdown, of the text of config modules."""
    sections: dict[str, list[Entry]] = {}
    for entry in entries(source):
        sections.setdefault(entry.section, []).append(entry)
    # A section stands behind the one that holds it.
    first = {name: place for place, name in reversed(list(enumerate(sections)))}
    parts = [INTRODUCTION]
    for name in sorted(sections, key=lambda name: [first.get(node, first[name]) for node in _chain(name)]):
        parts += [f"\n## {name}\n\n", *_section_lines(sections[name])]
    return "".join(parts)


def _chain(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _section_lines(section: list[Entry]) -> Iterator[str]:
    for entry in section:
        text = _markdown(entry.text)
        if not entry.keys:
            yield textwrap.fill(text, _WIDTH, **_WHOLE_WORDS) + "\n\n"
            continue
        yield "- " + ", ".join(f"`{key}`: `{value}`" for key, value in entry.keys)
        indent = {"initial_indent": "  ", "subsequent_indent": "  "}
        yield f"<br>\n{textwrap.fill(text, _WIDTH, **indent, **_WHOLE_WORDS)}\n" if text else "\n"


def _markdown(text: str) -> str:
    """Plain text as Markdown that shows it as it is, keys as code."""
    text = text.replace("...", "…").replace("+-", "±").replace("<", "&lt;")
    text = re.sub(r"(?<!\w)_", r"\_", text)
    return _KEY.sub(lambda match: f"`{match[0]}`", text)


def read(sources: Iterable[Path] = CONFIGS) -> str:
    """The text of config modules, one after the other."""
    return "\n".join(source.read_text(encoding="utf-8") for source in sources)


def write(target: Path, sources: Iterable[Path] = CONFIGS) -> None:
    """Write the page anew, complete or not at all."""
    temporary = target.with_name(target.name + ".new")
    temporary.write_text(page(read(sources)), encoding="utf-8")
    os.replace(temporary, target)

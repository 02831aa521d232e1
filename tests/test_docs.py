"""The pages of the documentation: links lead somewhere; keys, files and pages that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from gmm_anomaly.config import add_gmm_anomaly_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
KEY = re.compile(r"\b((?:MODEL|INPUT|DATASETS|DATALOADER|SOLVER|TEST)(?:\.[A-Z0-9_]+)+)(?!\w)(\*?)")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text(page), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_keys_and_files_that_are_named_exist(page):
    cfg = get_cfg()
    add_gmm_anomaly_config(cfg)
    for key, star in KEY.findall(text(page)):
        node = cfg
        *parents, last = key.split(".")
        for name in parents:
            assert isinstance(node, CfgNode) and name in node, key
            node = node[name]
        assert any(name.startswith(last) for name in node) if star else last in node, key
    for path in re.findall(r"\b((?:tools|gmm_anomaly|tests)/[\w/]+\.py|configs/[\w/]+\.yaml)", text(page)):
        assert (ROOT / path).is_file(), path


def test_the_index_lists_every_page():
    index = text(ROOT / "docs" / "README.md")
    for page in ROOT.glob("docs/*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_figures_that_appear_twice_agree():
    """Every AP / FPR95 of the README and of the methods' page on the benchmarks stands in the results too."""
    results = text(ROOT / "docs" / "results.md")
    readme = text(ROOT / "README.md").partition("## Results")[2]
    methods = text(ROOT / "docs" / "methods.md").partition("\nFitted to the 100 frames")[2]
    pairs = re.findall(r"\d+\.\d / \d+\.\d", readme + methods.partition("Few frames")[0])
    assert len(pairs) > 15
    assert not [pair for pair in pairs if pair not in results]


def test_the_documentation_stays_short():
    lines = {page: len(text(page).splitlines()) for page in PAGES if page.name != "configuration.md"}
    assert lines[ROOT / "README.md"] <= 120
    pages = [count for page, count in lines.items() if page.parent.name in ("docs", "datasets")]
    assert len(pages) <= 12 and sum(pages) <= 1500

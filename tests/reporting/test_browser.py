"""The page in a real browser: headless Chromium at the widths of a phone and of a desktop."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import pytest

from gmm_anomaly.reporting import read_run, render_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEIGHT = 1600
# Tells the frame around it how wide the page is, and which elements end outside the window without one of
# their ancestors scrolling.
PROBE = """
<script>
const root = document.documentElement;
const scrolls = element => element && (getComputedStyle(element).overflowX !== "visible" ||
  scrolls(element.parentElement));
const outside = [...document.body.querySelectorAll("*")].filter(element =>
  element.getBoundingClientRect().right > root.clientWidth + 1 && !scrolls(element.parentElement));
parent.postMessage(JSON.stringify({
  inner: root.clientWidth, page: root.scrollWidth,
  outside: outside.slice(0, 5).map(element => element.outerHTML.slice(0, 120)),
  broken: [...document.images].filter(image => image.complete && !image.naturalWidth).length,
  background: getComputedStyle(document.body).backgroundColor,
}), "*");
</script>
"""
# Chromium's windows are at least 500 pixels wide; a frame can be as narrow as a phone.
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe src="page.html" width="{width}" height="{height}"
style="border:0"></iframe><script>
onmessage = event => document.documentElement.dataset.found = event.data;
</script>"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)


def browse(folder: Path, *options: str) -> str:
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}", *options,
        (folder / "frame.html").as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


def open_page(folder: Path, text: str, width: int, *options: str) -> dict:
    (folder / "page.html").write_text(text.replace("</body>", f"{PROBE}</body>"))
    (folder / "frame.html").write_text(FRAME.format(width=width, height=HEIGHT))
    dom = browse(folder, "--dump-dom", f"--window-size={max(width, 500)},{HEIGHT}", *options)
    found = re.search(r'data-found="([^"]*)"', dom)
    assert found, dom[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def page(run_folders) -> str:
    return render_page([read_run(folder) for folder in run_folders])


@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_nothing_overflows_and_the_picture_is_not_blank(page, tmp_path, width):
    found = open_page(tmp_path, page, width)
    assert found["inner"] == width
    assert found["outside"] == [] and found["page"] <= width
    assert found["broken"] == 0
    target = tmp_path / "page.png"
    browse(tmp_path, f"--screenshot={target}", f"--window-size={max(width, 500)},{HEIGHT}")
    picture = cv2.imread(str(target))[:, :width]
    assert picture.shape == (HEIGHT, width, 3)
    # Text and lines everywhere: each fifth of the page shows something on its background.
    background = picture[2, 2].astype(int)
    drawn = abs(picture.astype(int) - background).max(axis=2) > 40
    assert all(
        part.mean() > 0.005 for part in (drawn[start : start + 320] for start in range(0, HEIGHT, 320))
    )


def test_a_wide_element_is_noticed(page, tmp_path):
    """The probe finds what it is there to find."""
    wide = page.replace("</header>", '<div style="width:900px">wide</div></header>')
    found = open_page(tmp_path, wide, 390)
    assert found["page"] >= 900 and "wide" in found["outside"][0]


def test_dark_where_the_reader_wants_it(page, tmp_path):
    light = open_page(tmp_path, page, 1280)["background"]
    dark = open_page(tmp_path, page, 1280, "--force-dark-mode", "--blink-settings=preferredColorScheme=0")
    assert light == "rgb(255, 255, 255)" and dark["background"] == "rgb(18, 22, 28)"

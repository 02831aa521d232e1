"""The page in a real browser: headless Chromium at the widths of a phone, dark, and of a desktop."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import cv2
import pytest

from gmm_anomaly.report.run import read_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DARK = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")
# Tells the frame around it which elements end outside the window without an ancestor that scrolls.
PROBE = """
<div style="width:900px">wide</div><script>
const width = document.documentElement.clientWidth;
const scrolls = element => element && (getComputedStyle(element).overflowX !== "visible" ||
  scrolls(element.parentElement));
const outside = [...document.body.querySelectorAll("*")].filter(element =>
  element.getBoundingClientRect().right > width + 1 && !scrolls(element.parentElement));
const slider = document.querySelector(".viewer input");
const said = () => parent.postMessage(JSON.stringify({
  width, outside: outside.map(element => element.textContent.slice(0, 80)),
  broken: [...document.images].filter(image => image.complete && !image.naturalWidth).length,
  background: getComputedStyle(document.body).backgroundColor,
  curve: getComputedStyle(document.querySelector('svg path[style*="--s0"]')).stroke,
  slider: document.querySelector(".slider output").textContent,
  rates: document.querySelector(".rates").textContent,
}), "*");
// By then the pictures are decoded.
setTimeout(() => { slider.value = 100; slider.oninput(); said(); }, 2000);
</script></body>"""
# Chromium's windows are at least 500 pixels wide; a frame can be as narrow as a phone.
FRAME = """<!DOCTYPE html><body style="margin:0"><iframe src="page.html" width="{width}" height="900"
style="border:0"></iframe><script>
onmessage = event => document.documentElement.dataset.found = event.data;
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.parametrize(
    ("width", "options", "background", "curve", "outside"),
    [
        # The probe's own wide line shows that one would be noticed.
        (390, DARK, "rgb(18, 22, 28)", "rgb(95, 176, 255)", ["wide"]),
        (1280, (), "rgb(255, 255, 255)", "rgb(11, 102, 195)", []),
    ],
    ids=["dark phone", "desktop"],
)
def test_the_page_in_either_colours(
    run_folders, both_runs, tmp_path, width, options, background, curve, outside
):
    ((dataset, curves),) = read_run(run_folders[0]).curves.items()
    frames = curves["frames"]
    best = max(frames["AP"], key=frames["AP"].get)
    levels, label = cv2.imread(str(run_folders[0] / "curves" / dataset / f"{best}.png"))[..., :0:-1].T
    called = levels >= 100
    numbers = (called[label == 1].mean(), called[label == 0].mean())
    numbers += tuple(frames["steps"][key][99] for key in ("recall", "fpr"))
    (tmp_path / "page.html").write_text(both_runs.replace("</body>", PROBE))
    (tmp_path / "frame.html").write_text(FRAME.format(width=width))
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={max(width, 500)},900", "--dump-dom", *options, (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', dom)[1]))
    assert float(found.pop("slider")) == pytest.approx(frames["steps"]["threshold"][99], rel=1e-3)
    # Frame and data set; both round to a tenth of a percent.
    rates = [float(rate) / 100 for rate in re.findall(r"[TF]PR ([\d.]+) %", found.pop("rates"))]
    assert rates == pytest.approx(numbers, abs=6e-4)
    assert found == {
        "width": width, "outside": outside, "broken": 0, "background": background, "curve": curve
    }  # fmt: skip

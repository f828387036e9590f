"""A real browser opens the report: everything is shown, nothing is asked of the network, no width cuts anything off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apl_guard.trainer.evaluate.curves import Curve
from apl_guard.trainer.evaluate.page import write_report
from apl_guard.trainer.evaluate.result import Asked, EvalResult

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")

PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
pytestmark = pytest.mark.skipif(
    None in PROGRAMS.values(), reason="needs Chromium and its driver (apt-get install chromium-driver)"
)

ARMS = ("plain", "neutral", "guarded")
LOOK = """
const inView = e => e.getBoundingClientRect().right <= innerWidth + 1;
return {
  broken: [...document.images].filter(i => !i.naturalWidth || !i.alt).length,
  images: document.images.length,
  asked: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
  cutOff: [...document.querySelectorAll('main *')].filter(e => !inView(e) && !e.closest('.scroll, pre')).length,
  ground: getComputedStyle(document.body).backgroundColor,
  text: document.body.innerText,
}
"""


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = PROGRAMS["chromium"]
    # Without a sandbox, which root may not have; the pages are our own.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.chrome.service.Service(PROGRAMS["chromedriver"])
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


@pytest.fixture(name="page", scope="module")
def _page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    rate = {"images": 3, "leak_far_1e-3": 0.5, "leak_far_1e-3_ci": [0.1, 0.9]}
    further = {"fewer_steps": rate, "other_sampler": rate}
    result = EvalResult(
        {"seen": {arm: rate for arm in ARMS} | further, "attack misspelt name": {"plain": rate, "guarded": rate}},
        {"model": "0123abc" * 9, "versions": {"torch": "1.2.3"}},
        {"seen": {arm: rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8) for arm in ARMS}},
        {"seen": [Asked("a <i>photo</i> of somebody with a long description " * 3, "", n, {}, {}) for n in "ABC"]},
    )
    curve = Curve("Leak", "vectors", [{"x": x, "label": f"N = {x}", "leak": 0.1, "leak_ci": [0, 0.2]} for x in (5, 9)])
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(write_report(result, "apl-guard eval " + "--suite seen " * 20, [curve]), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [1280, 360])
def test_the_report_is_whole_in_a_browser(browser: Any, page: Path, width: int) -> None:
    """On a desk and on a telephone every picture is decoded, nothing reaches beyond the edge, nothing is fetched."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())

    seen = browser.execute_script(LOOK)

    assert browser.get_log("browser") == []
    assert (seen["broken"], seen["asked"], seen["cutOff"]) == (0, [], 0)
    assert seen["images"] >= 3 * len(ARMS)
    for text in ("50.0 % [10.0, 90.0]", "a <i>photo</i> of somebody", "torch 1.2.3"):
        assert text in " ".join(seen["text"].split())


def test_a_printed_report_has_every_column(browser: Any, page: Path) -> None:
    """Nobody can scroll on paper: on a sheet of A4 every cell is within the page, black on white whatever the reader's
    system is."""
    size = {"width": 700, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [dark]})
    browser.get(page.as_uri())

    beyond, ink = browser.execute_script("""
return [[...document.querySelectorAll('th, td, pre code')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
  .map(e => e.innerText), getComputedStyle(document.querySelector('td')).color]
""")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

    assert beyond == []
    assert sum(int(part) for part in ink.strip("rgb()").split(",")) < 200


def test_the_report_follows_the_light_or_dark_of_the_reader(browser: Any, page: Path) -> None:
    """The ground is bright where the reader's system is, and dark where it is dark."""
    browser.get(page.as_uri())
    brightness = {}
    for scheme in ("light", "dark"):
        wanted = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
        ground = browser.execute_script(LOOK)["ground"]
        brightness[scheme] = sum(int(part) for part in ground.strip("rgb()").split(","))

    assert brightness["light"] > 600 > 200 > brightness["dark"]

"""Measure pages in headless Chromium: a large case in full resolution, and a page of many cases.

Writes two results pages of synthetic chests, opens them from disk with real pointer events, and
prints the seconds to the first picture, frames per second while the wheel turns, memory of the
browser's process for the page, and the number of HTML elements.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.speed import PagesBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, PagesBenchmarkOptions, __doc__ or "")  # the imports below are slow

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from util.cli import UserError, run_command
from util.files import write_json
from util.web.figures import Panel
from util.web.results_page import ResultsPage

log = logging.getLogger(__name__)

WINDOW = (-1000.0, 400.0)
CHROMIUM = Path("/usr/bin/chromium")
SCROLL_SECONDS = 8.0
RATE = 30.0  # turns of the wheel a second


def chest(shape: tuple[int, int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """Return the mask and HU of an ellipsoid chest with noise that compresses like that of a CT."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    mask = np.zeros(shape, np.uint8)
    for label, centre in ((1, -0.4), (2, 0.4)):
        mask[((x - centre) / 0.3) ** 2 + (y / 0.6) ** 2 + (z / 0.85) ** 2 < 1] = label
    body = (x / 0.95) ** 2 + (y / 0.85) ** 2 < 1
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32) * 50, 0.7)
    hu = np.where(mask > 0, -850, np.where(body, 40, -1000)) + noise
    return mask, np.rint(hu).astype(np.int16)


def case_panels(shape: tuple[int, int, int], seed: int = 0) -> list[Panel]:
    """Return the six pictures of a case: mask, real, generated, two variants, their difference."""
    spacing = (0.7, 0.7, 1.0)
    mask, hu = chest(shape, seed)
    first = Panel("A", "ct", hu, spacing)
    change = np.where(mask == 1, np.float32(12.3), np.float32(0))
    return [
        Panel("mask", "mask", mask, spacing),
        Panel("real scan", "ct", hu, spacing),
        Panel("generated", "ct", hu[::-1], spacing),
        first,
        Panel("B", "ct", hu + (mask == 1) * np.int16(12), spacing),
        Panel("B minus A", "difference", change, spacing, before=first),
    ]


def write_large(folder: Path, panels: Sequence[Panel]) -> tuple[Path, float]:
    """Write a page of one large case; return its path and the seconds it took to write."""
    folder.mkdir(parents=True, exist_ok=True)
    page = ResultsPage(folder, "One large case", WINDOW)
    start = time.monotonic()
    page.add_case("large", "Patient age: 60.", [], panels)
    return page.save({}), time.monotonic() - start


def write_many(folder: Path, cases: int) -> Path:
    """Write a page of many small cases."""
    panels = case_panels((48, 40, 32))
    folder.mkdir(parents=True, exist_ok=True)
    page = ResultsPage(folder, "Many cases", WINDOW)
    for number in range(cases):
        page.add_case(f"case{number:04d}", f"Patient age: {number % 90}.", [], panels)
    return page.save({})


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a headless Chromium.

    Raises:
        UserError: Chromium or playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise UserError("Playwright is missing; install requirements-dev.txt.") from error
    if not CHROMIUM.is_file():
        raise UserError(f"{CHROMIUM} does not exist; install Chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


def page_memory(browser: Any) -> float:
    """Return the private and shared memory of the largest page process, MiB."""
    session = browser.new_browser_cdp_session()
    sizes = []
    for process in session.send("SystemInfo.getProcessInfo")["processInfo"]:
        if process["type"] == "renderer":
            rollup = Path(f"/proc/{process['id']}/smaps_rollup").read_text()
            line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
            sizes.append(int(line.split()[1]) / 1024)
    return max(sizes)


def open_page(browser: Any, path: Path, pictures: int) -> tuple[Any, float]:
    """Open a page; return it, and the seconds until its first pictures were drawn."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    start = time.monotonic()
    page.goto(path.as_uri())
    page.click("button[data-value=small]")  # the row does not break; now all of it is seen
    first = page.locator(".case").first
    first.locator(".panel[data-state=ready]").nth(pictures - 1).wait_for(timeout=120_000)
    return page, time.monotonic() - start


# Moves one slice at a time, up and down, and counts the slices that all pictures showed.
SCROLL = """async ([seconds, perSecond]) => {
  const viewer = Mask2CT.viewers[0], axis = Mask2CT.config.planes[viewer.plane()][2];
  const stage = viewer.panels[1].stage, start = performance.now();
  let shown = 0, turns = 0, direction = -1;
  const ready = () => viewer.panels.every(({ shownAt }) => shownAt === viewer.at[axis]);
  for (const panel of viewer.panels) panel.shownAt = viewer.at[axis];
  const read = viewer.read;
  viewer.read = function (panel) {
    if (panel.sources) panel.shownAt = this.at[axis];
    read.call(this, panel);
  };
  const drawn = viewer.draw;
  viewer.draw = function (panel) {
    Object.assign(panel, { shownAt: -1, sources: null });
    drawn.call(this, panel);
  };
  while (performance.now() - start < seconds * 1000) {
    if (turns % 90 === 89) direction = -direction;
    stage.dispatchEvent(new WheelEvent("wheel", { deltaY: 100 * direction, cancelable: true }));
    turns += 1;
    const due = start + (turns * 1000) / perSecond;
    do { await new Promise(requestAnimationFrame); } while (performance.now() < due);
    if (ready()) shown += 1;
  }
  Object.assign(viewer, { read, draw: drawn });
  return { turns: turns / seconds, shown: shown / seconds };
}"""


def scroll(page: Any) -> float:
    """Turn the wheel `RATE` times per second; return the slices per second that were shown."""
    page.locator(".stage").nth(1).hover()
    result = page.evaluate(SCROLL, [SCROLL_SECONDS, RATE])
    return float(result["shown"])


def measure_large(folder: Path, panels: Sequence[Panel]) -> dict[str, float]:
    """Write a page of one large case, and measure it."""
    path, seconds = write_large(folder, panels)
    size = sum(file.stat().st_size for file in folder.rglob("*.js")) / 2**20
    results = {"seconds to write": seconds, "MiB on disk": size}
    with chromium() as browser:
        page, results["seconds to all pictures"] = open_page(browser, path, len(panels))
        results["MiB of the page, open"] = page_memory(browser)
        results["axial slices a second"] = scroll(page)
        start = time.monotonic()
        page.keyboard.press("c")
        page.wait_for_function(
            "Mask2CT.viewers[0].panels.every((panel) => panel.sources && "
            "panel.canvases[0].height === Mask2CT.viewers[0].grid.shape[2])"
        )
        results["seconds to coronal pictures"] = time.monotonic() - start
        results["coronal slices a second"] = scroll(page)
        results["MiB of the page, scrolled"] = page_memory(browser)
    return results


def measure(options: PagesBenchmarkOptions) -> dict[str, Any]:
    """Write the pages and measure them."""
    out = Path(options.OUT)
    results: dict[str, Any] = {}
    panels = case_panels(options.size)
    for name, shown in (("one volume", panels[:2]), ("six volumes", panels)):
        measured = measure_large(out / name.replace(" ", "_"), shown)
        results |= {f"{name}: {key}": value for key, value in measured.items()}
    many = write_many(out / "many", options.cases)
    with chromium() as browser:
        page, opened = open_page(browser, many, 6)
        results[f"{options.cases} cases: seconds to all pictures of the first"] = opened
        results[f"{options.cases} cases: elements"] = page.evaluate("document.all.length")
        results[f"{options.cases} cases: page MiB"] = page_memory(browser)
        for share in np.linspace(0, 1, 40):
            page.evaluate("share => scrollTo(0, share * document.body.scrollHeight)", float(share))
            page.wait_for_timeout(100)
        results[f"{options.cases} cases: page MiB, scrolled to the end"] = page_memory(browser)
    return {name: round(float(value), 2) for name, value in results.items()}


def main() -> None:
    """Parse the command line and measure."""
    options = parse(PagesBenchmarkOptions, __doc__ or "")
    results = measure(options)
    write_json(Path(options.OUT) / "pages.json", results)
    for name, value in results.items():
        log.info("%-60s %10.2f", name, value)


if __name__ == "__main__":
    run_command(main)

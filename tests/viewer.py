"""A page of drawn chests, and what tests ask of its viewer in a browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from util.web.figures import Panel
from util.web.results_page import ResultsPage

SHAPE, SPACING = (24, 20, 16), (2.0, 2.0, 4.0)
WINDOW = (-1000.0, 400.0)
Visit = Callable[[Path], Any]


def volumes() -> dict[str, NDArray[Any]]:
    """A chest of two ellipsoid lungs; the left one (label 1) lies at low x."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    mask = np.zeros(SHAPE, np.uint8)
    for label, centre in ((1, -0.45), (2, 0.45)):
        mask[((x - centre) / 0.35) ** 2 + (y / 0.7) ** 2 + (z / 0.8) ** 2 < 1] = label
    hu = np.where(mask > 0, -850 + 30 * z + 40 * y, 40 + 100 * x).astype(np.float32)
    return {"mask": mask, "hu": hu, "diff": np.where(mask == 1, 12.34, -0.3).astype(np.float32)}


def add_case(page: ResultsPage, case: str, prompt: str = "Age is 60.", **changed: Any) -> None:
    v = volumes() | changed
    page.add_case(
        case,
        prompt,
        ["PACK-YEARS dropped."],
        [
            Panel("Mask", "mask", v["mask"], SPACING, "volumes/a mask.nii.gz"),
            Panel("Generated", "ct", v["hu"], SPACING, "volumes/a.nii.gz"),
            Panel("A to B", "difference", v["diff"], SPACING, caption="lungs +6 HU"),
        ],
    )


def wait_for_panels(page: Any, case: str = ".case") -> None:
    """Wait until all three pictures of a case are drawn."""
    page.locator(case).first.locator(".panel[data-state=ready]").nth(2).wait_for()


def pixels(page: Any, panel: int) -> NDArray[Any]:
    """Return the pixels of a picture of the first case, (rows, columns, 3)."""
    url = page.evaluate(
        "i => document.querySelectorAll('.case canvas.voxels')[i].toDataURL('image/png')", panel
    )
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
    )


def press(page: Any, value: str) -> None:
    page.click(f"button[data-value={value}]")


def open_case(tmp_path: Path, visit: Visit, at: str = "") -> Any:
    """Open a page of one case, its pictures drawn; `at` is the view in its address."""
    results = ResultsPage(tmp_path, "run", WINDOW)
    add_case(results, "a")
    file = results.save({})
    page = visit(file)
    if at:
        page.goto(f"{file.as_uri()}#{at}")
    wait_for_panels(page)
    return page


def viewer_state(page: Any, expression: str) -> Any:
    """Return an expression of the first viewer `v` and the page's `view`."""
    return page.evaluate(f"(([v], view) => {expression})(Mask2CT.viewers, Mask2CT.view)")

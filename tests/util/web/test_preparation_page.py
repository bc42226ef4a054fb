"""The page of prepared scans."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.review import REVIEW_FILE, Review, read_review
from tests.chests import SIZE, SPACING, chest
from tests.pages import shows_picture_first
from util.web.figures import LUNG, ct_gray, mask_rgb, radiological_slice
from util.web.outlines import outlined_montage, spread_slices
from util.web.preparation_page import CaseCard, CaseSlices, PreparationFacts, write_preparation_page
from util.web.web_data import PageGrid, write_volume

# A choice of files that keeps what is written in a variable of the page.
PICKER = """() => { window.showSaveFilePicker = async ({ suggestedName }) => ({
  createWritable: async () => ({
    write: async (text) => { window.saved = [suggestedName, text]; },
    close: async () => {},
  }),
}) }"""


def montage() -> bytes:
    """Return the montage of a chest."""
    hu, labels = chest()
    return outlined_montage(hu, labels, labels, SPACING)


def test_report_page_in_a_browser(tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    evil = "<script>window.evil = 1</script>"
    facts = {"Left lung": "2.1 l"}
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.png").write_bytes(montage())
    page = visit(
        write_preparation_page(
            tmp_path,
            "report/voxels/",
            [CaseCard("broken", "", {}, ("It is cut off",))],
            [
                CaseCard("a", "report/a.png", facts, (), (), (("series 2 (MR)", evil),)),
                CaseCard("b", "report/a.png", facts, (evil,)),
            ],
            PreparationFacts({"KVP": "DICOM header"}, [evil], {"grid": "--spacing 1,1,1"}),
        )
    )
    assert page.evaluate("window.evil") is None
    assert "Ready: 2, of which with a warning: 1. Not prepared: 1." in page.inner_text(".top")
    assert page.locator(".case").evaluate_all("all => all.map(c => c.id)") == ["broken", "b", "a"]
    mark = page.evaluate(
        "getComputedStyle(document.querySelector('#broken h2'), '::after').content"
    )
    assert mark == '"not prepared"'
    page.check("#warned")
    assert page.locator(".case:visible").count() == 2
    page.uncheck("#warned")
    page.fill("#filter", "cut off")
    assert page.locator(".case:visible").evaluate_all("all => all.map(c => c.id)") == ["broken"]
    page.fill("#filter", "")
    page.locator("#a").scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 300)")


def test_the_montage_shows_the_outline() -> None:
    hu, labels = chest()
    shown = np.asarray(Image.open(io.BytesIO(montage())).convert("RGB"))
    plain = outlined_montage(hu, labels * 0, labels, SPACING)
    bare = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    assert (bare.max(-1) - bare.min(-1) <= 6).all()  # grey, and the dark ground
    assert (shown.max(-1) - shown.min(-1) > 60).sum() > 500
    for label in (1, 2, 3):  # not hidden by the body around them
        colour = mask_rgb(np.array([label]))[0]
        assert (shown == colour).all(-1).sum() > 20
    lungs = np.flatnonzero((labels > 0).any((0, 1)))
    places = spread_slices(labels, 2, 8)
    assert places == sorted(set(places)) and lungs[0] < places[0] and places[-1] < lungs[-1]


def review_page(folder: Path) -> Path:
    """Write a page of two cases with all their slices."""
    hu, labels = chest()
    cards = []
    for case in ("a", "b"):
        keys = (f"{case}/scan", f"{case}/mask")
        voxels = folder / "report" / "voxels"
        volumes = {
            keys[0]: write_volume(voxels, keys[0], hu, "ct", 4.0),
            keys[1]: write_volume(voxels, keys[1], labels, "mask"),
        }
        (folder / "report" / f"{case}.png").write_bytes(montage())
        grid = PageGrid.around(labels > 0, SPACING)
        slices = CaseSlices(grid, volumes, *keys, (1, 2, 3, 4))
        facts = {"Left lung": "2.1 l"}
        cards.append(CaseCard(case, f"report/{case}.png", facts, slices=slices))
    return write_preparation_page(folder, "report/voxels/", [], cards)


def test_every_slice_of_a_case_with_its_outline(
    tmp_path: Path, visit: Callable[[Path], Any]
) -> None:
    hu, _ = chest()
    page = shows_picture_first(visit, review_page(tmp_path), ".montage")
    page.locator("#a .panel[data-state=ready]").wait_for()
    for index in (0, SIZE[2] - 1):
        page.evaluate(f"Mask2CT.viewers[0].move('axial', {index})")
        url = page.evaluate("document.querySelector('#a canvas.voxels').toDataURL('image/png')")
        png = io.BytesIO(base64.b64decode(url.partition(",")[2]))
        shown = np.asarray(Image.open(png).convert("L")).astype(int)
        expected = ct_gray(radiological_slice(np.rint(hu / 4) * 4, "axial", index), LUNG)
        np.testing.assert_allclose(shown, expected, atol=1, rtol=0)
    page.locator("#a .stage").hover()
    page.keyboard.press("c")
    assert page.evaluate("Mask2CT.view.plane") == "coronal"
    assert page.is_checked("#lines")
    lines = "document.querySelector('#a canvas.lines').getContext('2d')"
    drawn = f"{lines}.getImageData(0, 0, 9999, 9999).data.some((v) => v > 0)"
    assert page.evaluate(drawn)


@pytest.mark.parametrize("picker", [False, True])
def test_marks_are_saved(tmp_path: Path, visit: Callable[[Path], Any], picker: bool) -> None:
    page = visit(review_page(tmp_path))
    replaced = PICKER if picker else "window.showSaveFilePicker = undefined"
    page.evaluate(replaced)
    assert page.inner_text("#review-state") == "0 accepted, 0 rejected, 2 open"
    page.click("#a button[data-mark=accept]")
    page.locator("#b h2").hover()
    page.keyboard.press("n")
    page.fill("#b .review input", '=the mask, "leaks"')
    page.reload()  # marks that are not saved survive
    page.evaluate(replaced)
    assert page.inner_text("#review-state") == "1 accepted, 1 rejected, 0 open · not saved"
    if picker:
        page.click("#save-review")
        page.wait_for_function("window.saved")
        name, text = page.evaluate("window.saved")
    else:
        with page.expect_download() as download:
            page.click("#save-review")
        name = download.value.suggested_filename
        text = Path(download.value.path()).read_bytes().decode()
    assert name == REVIEW_FILE and "not saved" not in page.inner_text("#review-state")
    (tmp_path / REVIEW_FILE).write_bytes(text.encode())
    assert read_review(tmp_path) == {
        "a": Review("accept"),
        "b": Review("reject", '=the mask, "leaks"'),
    }

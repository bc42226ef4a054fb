"""The page of prepared scans."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.chests import SPACING, chest
from util.web.outlines import outlined_slices
from util.web.preparation_page import CaseCard, write_preparation_page


def test_report_page_in_a_browser(tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    evil = "<script>window.evil = 1</script>"
    facts = {"Left lung": "2.1 l"}
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "a.png").write_bytes(outlined_slices(*chest(), SPACING))
    page = visit(
        write_preparation_page(
            tmp_path,
            [CaseCard("broken", "", {}, ("It is cut off",))],
            [
                CaseCard("a", "report/a.png", facts, (), (), (("series 2 (MR)", evil),)),
                CaseCard("b", "report/a.png", facts, (evil,)),
            ],
            {"KVP": "DICOM header"},
            [evil],
            {"grid": "--spacing 1,1,1"},
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


def test_pictures_show_the_outline() -> None:
    hu, labels = chest()
    shown = np.asarray(Image.open(io.BytesIO(outlined_slices(hu, labels, SPACING))).convert("RGB"))
    bare = np.asarray(
        Image.open(io.BytesIO(outlined_slices(hu, labels * 0, SPACING))).convert("RGB")
    )
    assert (bare.max(-1) == bare.min(-1)).mean() > 0.98 and (
        shown.max(-1) - shown.min(-1) > 60
    ).sum() > 500

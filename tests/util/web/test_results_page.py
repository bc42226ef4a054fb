"""The page of results: its content, and what it says first."""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pages import MAX_TOP, first_picture_top
from tests.viewer import (
    SHAPE,
    SPACING,
    WINDOW,
    Visit,
    add_case,
    pixels,
    press,
    volumes,
    wait_for_panels,
)
from util.cli import UserError
from util.notices import Notice
from util.web.attribute_list import AttributeFacts
from util.web.figures import (
    LUNG,
    Panel,
    ct_gray,
    difference_rgb,
    fullest_slices,
    mask_rgb,
    radiological_slice,
)
from util.web.results_page import ResultsPage, ResultsReport


def test_bad_volumes_are_refused(tmp_path: Path) -> None:
    page = ResultsPage(tmp_path, "t", WINDOW)
    with pytest.raises(UserError, match=r"Case a.*shape \(3, 3, 3\)"):
        add_case(page, "a", hu=np.zeros((3, 3, 3)))
    with pytest.raises(UserError, match=r"Case a.*not finite"):
        add_case(page, "a", hu=np.full(SHAPE, np.nan))


def test_everything_is_escaped_and_old_cases_go(tmp_path: Path) -> None:
    evil = '"><script>window.evil = 1</script>'
    (tmp_path / "web" / "case-0009-old").mkdir(parents=True)
    page = ResultsPage(tmp_path, evil, WINDOW)
    add_case(page, evil, evil)
    text = page.save({evil: {evil: evil}}, ResultsReport(cautions=[evil])).read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "volumes/a%20mask.nii.gz" in text
    assert "http" not in text and "//" not in text.replace("</", "")  # nothing from outside
    assert not (tmp_path / "web" / "case-0009-old").exists()


def test_results_page_in_a_browser(tmp_path: Path, visit: Visit) -> None:
    v, results = volumes(), ResultsPage(tmp_path, "run", WINDOW)
    add_case(results, "a", "<script>window.evil = 1</script>")
    page = visit(results.save({"Data": {"dataroot": "d"}}))
    wait_for_panels(page)
    assert page.evaluate("window.evil") is None and "<script>" in page.inner_text(".prompt")

    i, j, k = fullest_slices(v["mask"])
    hu = np.rint(v["hu"])
    assert np.array_equal(pixels(page, 0), mask_rgb(radiological_slice(v["mask"], "axial", k)))
    # (javascript rounds halves up, numpy to even)
    expected = ct_gray(radiological_slice(hu, "axial", k), LUNG)
    np.testing.assert_allclose(pixels(page, 1)[..., 0].astype(int), expected, atol=1, rtol=0)
    assert page.inner_text(".bar .high") == "+20 HU"  # no smaller range, whatever the changes
    limit = 20
    shown = difference_rgb(radiological_slice(v["diff"], "axial", k), limit)
    np.testing.assert_allclose(pixels(page, 2).astype(int), shown, atol=4, rtol=0)

    slider = page.locator(".slices input")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert np.array_equal(pixels(page, 0), mask_rgb(radiological_slice(v["mask"], "axial", k + 1)))
    assert f"{k + 2} of {SHAPE[2]}" in page.inner_text(".slices output")
    for name, window in (("mediastinum", (-160, 240)), ("model", WINDOW), ("lung", LUNG)):
        press(page, name)
        expected = ct_gray(radiological_slice(hu, "axial", k + 1), window)
        np.testing.assert_allclose(pixels(page, 1)[..., 0].astype(int), expected, atol=1, rtol=0)
    for plane, index in (("coronal", j), ("sagittal", i)):
        press(page, plane)
        assert np.array_equal(
            pixels(page, 0), mask_rgb(radiological_slice(v["mask"], plane, index))
        )
    box = page.locator(".stage").nth(0).bounding_box()
    assert box["width"] / box["height"] == pytest.approx(
        SHAPE[1] * SPACING[1] / (SHAPE[2] * SPACING[2]), rel=0.02
    )

    before = pixels(page, 2)
    page.select_option("#limit", "100")
    assert (
        not np.array_equal(before, pixels(page, 2)) and page.inner_text(".bar .high") == "+100 HU"
    )


def test_cases_load_when_seen_and_are_freed(tmp_path: Path, visit: Visit) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    for number in range(30):
        add_case(results, f"patient {number}")
    page = visit(results.save({}))
    wait_for_panels(page)
    page.wait_for_timeout(300)

    def loaded() -> int:
        return len({url for url in page.requests if "/web/case-" in url})

    assert 3 <= loaded() <= 18
    page.locator(".case").nth(29).scroll_into_view_if_needed()
    wait_for_panels(page, "#case-0030-patient_29")
    page.wait_for_timeout(300)
    assert loaded() <= 36
    assert page.get_attribute("#case-0001-patient_0 .panel", "data-state") is None
    assert page.evaluate("document.querySelector('canvas').width") == 0
    page.fill("#filter", "patient 17")
    wait_for_panels(page, "#case-0018-patient_17")
    assert page.locator(".case:visible").count() == 1


def test_pages_have_one_global_name(tmp_path: Path, visit: Visit) -> None:
    results = ResultsPage(tmp_path / "results", "run", WINDOW)
    add_case(results, "a")
    (tmp_path / "empty.html").write_text("<title>empty</title>")
    names = []
    for path in (results.save({}), tmp_path / "empty.html"):
        page = visit(path)
        names.append(set(page.evaluate("Object.getOwnPropertyNames(window)")))
    assert names[0] - names[1] == {"Mask2CT"}


def effects(changes: dict[str, float], column: str = "SMOKING") -> list[dict[str, Any]]:
    return [
        {
            "case": case,
            "column": column,
            "from": "Never",
            "to": "Current",
            "region": "lungs",
            "mean_diff_hu": change,
            "draws": 2,
            "mc_error_hu": 0.1,
        }
        for case, change in changes.items()
    ]


def varied_page(folder: Path, sizes: dict[str, float], report: ResultsReport) -> Path:
    """Write a page of cases whose attribute SMOKING changes the lungs by so many HU."""
    v, results = volumes(), ResultsPage(folder, "run", WINDOW)
    lungs = v["mask"] > 0
    for case, size in sizes.items():
        diff = np.where(lungs, size, 0).astype(np.float32)
        common: dict[str, Any] = {"attribute": "SMOKING", "phrases": ("SMOKING is Never",)}
        pair, current = ("Never", "Current"), v["hu"] + diff
        panels = [
            Panel("mask", "mask", v["mask"], SPACING),
            Panel("generated", "ct", v["hu"], SPACING, role="generated"),
            Panel("real scan", "ct", v["hu"] + 5, SPACING, role="real"),
            Panel("SMOKING = Never", "ct", v["hu"], SPACING, values=("Never",), **common),
            Panel("SMOKING = Current", "ct", current, SPACING, values=("Current",), **common),
            Panel("change", "difference", diff, SPACING, values=pair, **common),
            Panel("again", "difference", diff, SPACING, values=pair, role="control", **common),
        ]
        results.add_case(case, "Age is 60.", [], panels)
    return results.save({"Data": {}}, report)


def test_a_page_begins_with_the_clearest_case_and_its_sentence(
    tmp_path: Path, visit: Visit
) -> None:
    changes = {"a": 3.0, "b": 9.0, "c": 6.0}
    notices = [
        Notice("Low.", "low relevance", "SMOKING"),
        Notice("Unseen.", "value not seen in training", "SMOKING", "Current"),
        Notice("Trained.", "trained on this case", cases=("b",)),
        Notice("Plain."),
    ]
    page = visit(varied_page(tmp_path, changes, ResultsReport(effects(changes), notices=notices)))
    assert first_picture_top(page) < MAX_TOP
    first = page.locator("#clearest .panel")
    page.locator("#clearest .panel[data-state=ready]").nth(5).wait_for()
    assert page.inner_text(".headline").startswith("Means nothing (see below): SMOKING, Current")
    titles = [text.partition("\n")[0] for text in first.all_inner_texts()]
    wanted = ["real scan", "generated", "Never", "Current", "Current minus Never"]
    assert titles == [*wanted, "control: other noise"]
    tops = {round(box["y"]) for i in range(6) if (box := first.nth(i).bounding_box())}
    assert len(tops) == 1  # one row
    assert page.inner_text("#clearest h2").startswith("b: the largest change of SMOKING")
    assert page.inner_text("#clearest h2 .badge") == "trained on this case"
    badges = [first.nth(i).locator(".badge").all_inner_texts() for i in range(6)]
    both = ["low relevance", "value not seen in training"]
    assert badges == [[], [], both[:1], both, both, both]
    text = page.inner_text("main")
    assert all(notice.text in text for notice in notices)
    assert "trained on this case" not in page.inner_text("#case-0001-a")


def test_a_small_change_looks_small_and_a_large_one_is_marked(tmp_path: Path, visit: Visit) -> None:
    changes = {"a": 2.0, "b": 2.0}
    page = visit(varied_page(tmp_path / "null", changes, ResultsReport(effects(changes))))
    page.locator("#clearest .panel.difference[data-state=ready]").first.wait_for()
    ends = page.locator("#clearest .bar .high, #clearest .bar .low").all_inner_texts()
    assert ends == ["−20", "+20 HU"] * 2
    page.select_option("#limit", "20")
    changes = {"a": 2.0, "b": 150.0}
    page = visit(varied_page(tmp_path / "large", changes, ResultsReport(effects(changes))))
    page.locator("#case-0001-a .panel.difference[data-state=ready]").first.wait_for()
    ends = page.locator(".bar .high").all_inner_texts()
    assert set(ends) == {"+200 HU"}  # one range, in the case of 2 HU too
    page.select_option("#limit", "100")
    shown = page.locator("#clearest .bar .high").first
    assert shown.inner_text() == "≥ +100 HU"
    assert page.locator("#case-0001-a .bar .high").first.inner_text() == "+100 HU"
    yellow = """() => {
      const c = document.querySelector('#clearest .difference canvas.lines');
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      let n = 0;
      for (let i = 0; i < d.length; i += 4) if (d[i] > 240 && d[i + 2] < 100 && d[i + 3] > 200) n++;
      return n;
    }"""
    assert page.evaluate(yellow) > 50


def test_why_an_attribute_shows_nothing(tmp_path: Path) -> None:
    facts = AttributeFacts(
        "SMOKING", 0.05, {"Never": 30, "Current": 4}, {("Never", "Current"): 31.2}, "Labels alone."
    )
    report = ResultsReport(effects({"a": 0.1, "b": -0.1}), facts={"SMOKING": facts})
    text = html.unescape(varied_page(tmp_path, {"a": 0.1, "b": -0.1}, report).read_text())
    for reason in (
        "Training patients by value: Never 30, Current 4.",
        "31.2 HU is the smallest difference",
        "0.05 of 1 (too low to show",
        "Labels alone.",
    ):
        assert reason in text.partition("Why does it show nothing?")[2]
    unknown = AttributeFacts("SMOKING", None, {"Never": 30}).reasons([])
    assert any("the same value" in text for text in unknown)


def test_the_print_view_is_not_black(tmp_path: Path, browser: Any) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    for number in range(4):
        add_case(results, f"patient {number}")
    page = browser.new_page(color_scheme="dark", viewport={"width": 800, "height": 600})
    page.goto(results.save({}).as_uri())
    wait_for_panels(page)
    page.emulate_media(media="print")
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")
    assert (np.asarray(shot) < 60).mean() < 0.25
    assert not page.locator(".toolbar").is_visible()
    page.close()

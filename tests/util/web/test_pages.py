"""Pages: their content, and their behaviour in a real browser, opened from disk."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from tests.pages import MAX_TOP, first_picture_top, shows_picture_first
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
    save_slices_png,
)
from util.web.results_page import ResultsPage, ResultsReport
from util.web.tables import effect_summary, effects_by_case, metric_summary
from util.web.training_page import (
    TrackedEffect,
    TrainingImage,
    TrainingState,
    binned,
    curves,
    write_progress,
    write_training_page,
)
from util.web.web_data import PageGrid, brick_shape, bricks, halve, write_volume

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


def add(page: ResultsPage, case: str, prompt: str = "Age is 60.", **changed: Any) -> None:
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


# --- content ---


def stored_values(path: Path, step: float) -> NDArray[Any]:
    """Return the values of a brick's file."""
    key, number, packed = json.loads(f"[{path.read_text().partition('(')[2].rpartition(')')[0]}]")
    assert path.match(f"{key}.{number}.js")
    planes = np.frombuffer(gzip.decompress(base64.b64decode(packed)), np.uint8).reshape(2, -1)
    values = np.ascontiguousarray(planes.T).view("<i2")
    return values.ravel() * step


def test_voxels_come_back(tmp_path: Path) -> None:
    page = ResultsPage(tmp_path, "t", WINDOW)
    v = volumes()
    add(page, "a/b c")
    for number, (name, step) in enumerate((("mask", 1.0), ("hu", 1.0), ("diff", 0.1))):
        values = stored_values(tmp_path / "web" / "case-0001-a_b_c" / f"{number}.0.js", step)
        assert np.abs(values.reshape(SHAPE, order="F") - v[name]).max() <= 0.501 * step


def test_large_volumes_are_written_in_bricks_of_full_resolution(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-900, 900, (150, 140, 101)).astype(np.int16)
    array[:, :, 100] = 5
    assert brick_shape(array.shape) == (128, 128, 16) and brick_shape(SHAPE) == SHAPE
    grid = PageGrid.around(array > 0, SPACING)
    assert grid.shape == array.shape and grid.spacing == SPACING
    write_volume(tmp_path, "case/a", array, "ct")
    parts = list(bricks(array))
    assert len(list(tmp_path.rglob("a.*.js"))) == len(parts) == 2 * 2 * 7
    assert np.array_equal(parts[1], array[128:, :128, :16])  # the first axis first
    for number, part in enumerate(parts):
        values = stored_values(tmp_path / "case" / f"a.{number}.js", 1.0)
        assert np.array_equal(values, part.ravel(order="F"))


def test_large_volumes_are_written_in_half_the_resolution_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-900, 900, (151, 140, 101)).astype(np.int16)
    coarse = PageGrid.around(array > 0, SPACING).halved()
    assert coarse is not None and coarse.shape == (76, 70, 101)
    assert coarse.spacing == pytest.approx((2 * 151 / 76, 4.0, 4.0))
    write_volume(tmp_path, "a", array, "ct")
    means = halve(array, "ct")
    assert means[3, 5, 7] == array[6:8, 10:12, 7].mean() and means.shape == coarse.shape
    assert means[75, 5, 7] == array[150, 10:12, 7].mean()
    for number, part in enumerate(bricks(means)):
        values = stored_values(tmp_path / f"a~.{number}.js", 1.0)
        assert np.array_equal(values, np.rint(part.ravel(order="F")))
    labels = rng.integers(0, 3, (5, 4, 3))
    assert np.array_equal(halve(labels, "mask"), labels[::2, ::2])
    small = PageGrid.around(np.ones(SHAPE), SPACING)
    write_volume(tmp_path, "small", np.zeros(SHAPE), "ct")
    assert small.halved() is None and not list(tmp_path.glob("small~*"))


def test_slices_that_fly_past_are_in_half_the_resolution(tmp_path: Path, visit: Visit) -> None:
    rng = np.random.default_rng(0)
    hu = rng.integers(-900, 100, (160, 150, 96)).astype(np.float32)
    results = ResultsPage(tmp_path, "run", WINDOW)
    panels = [Panel("A", "ct", hu, SPACING), Panel("B", "ct", -hu - 800, SPACING)]
    results.add_case("a", "", [], panels)
    page = visit(results.save({}))
    page.locator(".panel[data-state=ready]").nth(1).wait_for()
    expected = ct_gray(radiological_slice(hu, "axial", 48), LUNG)
    np.testing.assert_allclose(pixels(page, 0)[..., 0].astype(int), expected, atol=1, rtol=0)
    page.locator(".stage").first.hover()
    # Far from what is loaded: first in half the resolution, once at rest in the full one.
    sizes = page.evaluate("""async () => {
      const [viewer] = Mask2CT.viewers, panel = viewer.panels[0], sizes = [];
      const pause = async () => {
        await new Promise((resolve) => setTimeout(resolve, 30));
        sizes.push(panel.canvases[0].width);
      };
      for (let k = 50; k < 90; k++) {
        viewer.move("axial", k);
        await pause();
      }
      do await pause(); while (panel.drawn.suffix || viewer.moving);
      return sizes;
    }""")
    assert 80 in sizes and sizes[-1] == 160
    expected = ct_gray(radiological_slice(hu, "axial", 89), LUNG)
    np.testing.assert_allclose(pixels(page, 0)[..., 0].astype(int), expected, atol=1, rtol=0)


def test_bad_volumes_are_refused(tmp_path: Path) -> None:
    page = ResultsPage(tmp_path, "t", WINDOW)
    with pytest.raises(UserError, match=r"Case a.*shape \(3, 3, 3\)"):
        add(page, "a", hu=np.zeros((3, 3, 3)))
    with pytest.raises(UserError, match=r"Case a.*not finite"):
        add(page, "a", hu=np.full(SHAPE, np.nan))


def test_everything_is_escaped_and_old_cases_go(tmp_path: Path) -> None:
    evil = '"><script>window.evil = 1</script>'
    (tmp_path / "web" / "case-0009-old").mkdir(parents=True)
    page = ResultsPage(tmp_path, evil, WINDOW)
    add(page, evil, evil)
    text = page.save({evil: {evil: evil}}, ResultsReport(cautions=[evil])).read_text()
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "volumes/a%20mask.nii.gz" in text
    assert "http" not in text and "//" not in text.replace("</", "")  # nothing from outside
    assert not (tmp_path / "web" / "case-0009-old").exists()


def test_effects_are_summed_up_over_cases_for_the_lungs() -> None:
    rows = [
        {
            "case": case,
            "column": "SMOKING",
            "from": "Never",
            "to": "Current",
            "region": region,
            "voxels": 9,
            "mean_diff_hu": value,
            "sd_over_voxels_hu": 1.0,
        }
        for case, region, value in (
            ("a", "lungs", 10.0),
            ("b", "lungs", -4.0),
            ("a", "airway", 99.0),
        )
    ]
    row = effect_summary(rows).iloc[0]
    assert (row["mean HU"], row["lowest HU"], row["highest HU"]) == (3.0, -4.0, 10.0)
    assert row["denser in"] == "1 of 2 cases"
    assert "detail SD, HU" not in row  # tables of earlier versions
    measured = [{**r, "change_detail_sd_hu": 2.0, "change_share_below_-950_hu": 0.1} for r in rows]
    row = effect_summary(measured).iloc[0]
    assert (row["detail SD, HU"], row["below -950 HU, %"]) == (2.0, 10.0)
    wide = effects_by_case(rows)
    assert wide.loc[wide["case"] == "a", ["lungs", "airway"]].to_numpy().tolist() == [[10.0, 99.0]]
    metrics = [
        {"case": case, "region": "body", "metric": "mae_hu", "value": v}
        for case, v in (("a", 1), ("b", 3))
    ]
    summary = metric_summary(metrics)
    assert summary.iloc[0].tolist() == ["mae_hu", "body", 2.0, 1.0, 3.0, 2]


def test_training_page_lists_newest_first_and_every_curve(tmp_path: Path) -> None:
    log = [
        {"step": s, "loss_G_l1": 1 / s, "lr": 0.1, **({"val_ssim": 0.5} if s == 20 else {})}
        for s in (10, 20)
    ]
    images = [TrainingImage(s, f"case{s}", "<b>bold</b>", f"{s}.png") for s in (10, 30, 20)]
    text = write_training_page(tmp_path, "run", log, images, {"Model": {"ngf": 64}}).read_text()
    text = text.partition("</header>")[2].partition("</div>")[2]  # after the progress
    assert text.index("Step 30") < text.index("Step 20") < text.index("Step 10")
    assert "<b>bold" not in text and "ngf" in text
    for name in ("losses", "validation", "other"):
        assert f"{name}.svg" in text and (tmp_path / f"{name}.svg").stat().st_size > 1000
    assert curves(log)["Validation"] == {"val_ssim": ([20.0], [0.5])}
    assert write_training_page(tmp_path, "run", [], [], {}).exists()


def test_training_page_says_when_volumes_are_smooth_or_do_not_vary(tmp_path: Path) -> None:
    log = [{"step": s, "val_lung_detail_ratio": r} for s, r in ((10, 0.9), (20, 0.1), (30, 0.8))]
    log[1]["val_lung_noise_correlation"] = 0.99
    early = write_training_page(tmp_path, "run", log[:2], [], {}).read_text()
    assert "too smooth" in early and "hardly vary" in early
    late = write_training_page(tmp_path, "run", log, [], {}).read_text()  # the newest counts
    assert "too smooth" not in late and "hardly vary" in late
    assert "Read before judging" not in write_training_page(tmp_path, "run", [], [], {}).read_text()


def test_binned() -> None:
    assert binned([1.0, 2.0], 5) == [1.0, 2.0]
    assert binned([0.0, 2.0, 4.0, 6.0, 9.0], 3) == [1.0, 5.0, 9.0]


# --- in a browser ---


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


def test_results_page_in_a_browser(tmp_path: Path, visit: Visit) -> None:
    v, results = volumes(), ResultsPage(tmp_path, "run", WINDOW)
    add(results, "a", "<script>window.evil = 1</script>")
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


def test_value_under_the_cursor(tmp_path: Path, visit: Visit) -> None:
    v, results = volumes(), ResultsPage(tmp_path, "run", WINDOW)
    add(results, "a")
    page = visit(results.save({}))
    wait_for_panels(page)
    k = fullest_slices(v["mask"])[2]
    box = page.locator("canvas.voxels").nth(1).bounding_box()
    for row, column in ((3, 5), (9, 17), (10, 6)):
        x, y = (column + 0.5) / SHAPE[0] * box["width"], (row + 0.5) / SHAPE[1] * box["height"]
        page.mouse.move(box["x"] + x, box["y"] + y)
        label, hu, change = (
            radiological_slice(v[n], "axial", k)[row, column] for n in ("mask", "hu", "diff")
        )
        shown = [text.replace("−", "-") for text in page.locator(".value").all_inner_texts()]
        assert shown[0] == ("background", "left lung", "right lung")[label]
        assert float(shown[1].removesuffix(" HU")) == pytest.approx(hu, abs=0.501)
        assert float(shown[2].removesuffix(" HU")) == pytest.approx(change, abs=0.0501)


def test_cases_load_when_seen_and_are_freed(tmp_path: Path, visit: Visit) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    for number in range(30):
        add(results, f"patient {number}")
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


def open_case(tmp_path: Path, visit: Visit, at: str = "") -> Any:
    """Open a page of one case, its pictures drawn; `at` is the view in its address."""
    results = ResultsPage(tmp_path, "run", WINDOW)
    add(results, "a")
    file = results.save({})
    page = visit(file)
    if at:
        page.goto(f"{file.as_uri()}#{at}")
    wait_for_panels(page)
    return page


def state(page: Any, expression: str) -> Any:
    """Return an expression of the first viewer `v` and the page's `view`."""
    return page.evaluate(f"(([v], view) => {expression})(Mask2CT.viewers, Mask2CT.view)")


def test_wheel_and_arrow_keys_go_through_the_slices(tmp_path: Path, visit: Visit) -> None:
    v = volumes()
    page = open_case(tmp_path, visit)
    k = fullest_slices(v["mask"])[2]
    page.locator(".stage").nth(1).hover()
    scrolled = page.evaluate("scrollY")
    page.mouse.wheel(0, -100)
    page.wait_for_function(f"Mask2CT.viewers[0].at[2] === {k + 1}")
    assert page.evaluate("scrollY") == scrolled
    assert np.array_equal(pixels(page, 0), mask_rgb(radiological_slice(v["mask"], "axial", k + 1)))
    assert page.locator(".value").nth(1).inner_text().endswith("HU")  # the pointer's voxel follows
    last = int(np.flatnonzero(v["mask"].any((0, 1)))[-1])
    for key, index in (("ArrowUp", k + 2), ("ArrowLeft", k + 1), ("PageDown", 0), ("End", last)):
        page.keyboard.press(key)
        assert state(page, "v.at[2]") == max(0, index)
    page.mouse.move(5, 5)  # beside the pictures, the keys are the browser's
    page.keyboard.press("ArrowDown")
    assert state(page, "v.at[2]") == last


def test_drag_and_keys_set_the_window(tmp_path: Path, visit: Visit) -> None:
    v = volumes()
    page = open_case(tmp_path, visit)
    k = fullest_slices(v["mask"])[2]
    page.locator(".stage").nth(1).hover()
    box = page.locator(".stage").nth(1).bounding_box()
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2 + 40)
    page.mouse.up()
    low, high = page.evaluate("Mask2CT.config.windows.own")
    assert high - low < LUNG[1] - LUNG[0] and low + high > sum(LUNG)  # narrower, and higher
    assert page.inner_text("#window-range") == f"{low} to {high} HU".replace("-", "−")
    expected = ct_gray(radiological_slice(np.rint(v["hu"]), "axial", k), (low, high))
    np.testing.assert_allclose(pixels(page, 1)[..., 0].astype(int), expected, atol=1, rtol=0)
    assert page.locator("dialog.enlarged").count() == 0  # a drag is no click
    page.keyboard.press("b")
    assert page.inner_text("#window-range") == "−450 to 1050 HU"
    assert page.get_attribute("button[data-value=bone]", "aria-pressed") == "true"


def test_zoom_pan_and_the_scale(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    stage = page.locator(".stage").nth(1)
    box = stage.bounding_box()
    ruler = stage.locator(".ruler")
    length = ruler.bounding_box()["width"] / box["width"]
    assert length == pytest.approx(float(ruler.inner_text().split()[0]) / 48, rel=0.02)
    x, y = round(box["x"] + 0.3 * box["width"]), round(box["y"] + 0.6 * box["height"])
    page.mouse.move(x, y)
    voxel = state(page, "v.cursor")
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("Mask2CT.viewers[0].zooms.axial?.scale > 3")
    page.mouse.move(x + 1, y)
    assert state(page, "v.cursor") == voxel  # the place under the pointer stays
    page.mouse.down(button="middle")
    page.mouse.move(x + 60, y)
    page.mouse.up(button="middle")
    assert state(page, "v.cursor") == voxel  # it went with the pointer
    page.keyboard.press("0")
    assert state(page, "v.zooms.axial.scale") == 1


def test_click_enlarges_and_escape_goes_back(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    order = page.locator(".case .title").all_inner_texts()
    page.locator(".stage").nth(1).click()
    large = page.locator("dialog.enlarged .stage")
    assert large.bounding_box()["width"] > 600 and large.bounding_box()["height"] < 800
    at = state(page, "v.at[2]")
    page.keyboard.press("ArrowUp")
    assert state(page, "v.at[2]") == at + 1
    assert f"axial {at + 2} of 16" in page.inner_text("dialog.enlarged output")
    page.keyboard.press("3")
    assert page.inner_text("dialog.enlarged .title") == "A to B"
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('.gap')")  # back after the event `close`
    assert page.locator("dialog.enlarged[open]").count() == 0
    assert page.locator(".case .title").all_inner_texts() == order
    page.keyboard.press("?")
    assert "window" in page.inner_text("dialog.help")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('dialog.help')")


def test_address_holds_the_view(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    press(page, "coronal")
    press(page, "bone")
    page.locator(".stage").nth(1).hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function("location.hash.includes('at=')")
    shown = page.evaluate("location.hash").removeprefix("#")
    place = state(page, "v.at")
    again = open_case(tmp_path, visit, shown)
    assert state(again, "[v.at, view.plane, view.window]") == [place, "coronal", "bone"]
    damaged = open_case(
        tmp_path, visit, "plane=x&window=a,b&limit=-1&case=case-0001-a&at=1,<b>,9e9"
    )
    assert state(damaged, "[view.plane, view.window]") == ["axial", "lung"]


def test_outlines_of_the_mask_in_every_picture(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    lines = "document.querySelectorAll('.case canvas.lines')[1].toDataURL()"
    blank = page.evaluate(lines)
    page.check("#lines")
    page.wait_for_function(f"blank => {lines} !== blank", arg=blank)
    page.locator(".stage").nth(1).hover()
    page.keyboard.press("o")
    assert page.evaluate(lines) == blank and not page.is_checked("#lines")


def test_three_planes_with_a_linked_crosshair(tmp_path: Path, visit: Visit) -> None:
    v = volumes()
    page = open_case(tmp_path, visit)
    press(page, "three")
    page.wait_for_function("document.querySelectorAll('.case .stage').length === 9")
    coronal = page.locator(".ct .stage").nth(1)
    box = coronal.bounding_box()
    column, row = 6, 3
    place = ((column + 0.5) / SHAPE[0], (row + 0.5) / SHAPE[2])
    page.mouse.click(box["x"] + place[0] * box["width"], box["y"] + place[1] * box["height"])
    i, _, k = state(page, "v.at")
    assert (i, k) == (SHAPE[0] - 1 - column, SHAPE[2] - 1 - row)
    for number, (plane, index) in enumerate(
        (("axial", k), ("coronal", fullest_slices(v["mask"])[1]), ("sagittal", i))
    ):
        expected = mask_rgb(radiological_slice(v["mask"], plane, index))
        assert np.array_equal(pixels(page, number), expected)
    line = page.locator(".ct .stage").nth(0).locator(".hair.across").bounding_box()
    assert line["x"] - box["x"] == pytest.approx(place[0] * box["width"], abs=1.5)
    page.keyboard.press("x")
    assert not page.locator(".hair.across").first.is_visible()
    page.keyboard.press("a")
    page.wait_for_function("document.querySelectorAll('.case .stage').length === 3")
    assert page.locator(".panel > .stage").count() == 3


def test_differences_on_the_ct(tmp_path: Path, visit: Visit) -> None:
    v, results = volumes(), ResultsPage(tmp_path, "run", WINDOW)
    ct = Panel("A", "ct", v["hu"], SPACING)
    change = np.where(v["mask"] == 1, 5.0, 0.0)
    panels = [
        Panel("Mask", "mask", v["mask"], SPACING),
        ct,
        Panel("B minus A", "difference", change, SPACING, before=ct),
    ]
    results.add_case("a", "Age is 60.", [], panels)
    page = visit(results.save({}))
    wait_for_panels(page)
    page.select_option("#limit", "20")
    page.check("#overlay")
    page.fill("#opacity", "60")
    k = fullest_slices(v["mask"])[2]
    ground = ct_gray(radiological_slice(np.rint(v["hu"]), "axial", k), LUNG)[..., None]
    values = radiological_slice(change, "axial", k)
    share = 0.6 * np.clip(np.abs(values) / 10, 0, 1)[..., None]  # full from half of the range on
    expected = ground * (1 - share) + difference_rgb(values, 20) * share
    np.testing.assert_allclose(pixels(page, 2), expected, atol=3, rtol=0)
    page.locator(".stage").nth(1).hover()
    page.keyboard.press("d")
    assert not page.is_checked("#overlay")
    np.testing.assert_allclose(pixels(page, 2), difference_rgb(values, 20), atol=4, rtol=0)


def test_size_and_smoothing(tmp_path: Path, visit: Visit) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    add(results, "a")
    page = visit(results.save({}))
    width = page.locator(".stage").first.bounding_box()["width"]
    press(page, "small")
    assert page.locator(".stage").first.bounding_box()["width"] < width
    rendering = "getComputedStyle(document.querySelector('.ct canvas.voxels')).imageRendering"
    assert page.evaluate(rendering) == "auto"
    page.uncheck("#smooth")
    assert page.evaluate(rendering) == "pixelated"


def test_voxels_that_are_missing_are_named(tmp_path: Path, browser: Any) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    add(results, "a")
    file = tmp_path / "web" / "case-0001-a" / "1.0.js"
    file.unlink()
    page = browser.new_page()
    page.goto(results.save({}).as_uri())
    page.wait_for_selector(".ct[data-state=failed]")
    assert page.inner_text(".ct .value") == "The voxels are missing: web/case-0001-a/1.0.js"
    page.wait_for_selector(".mask[data-state=ready]")
    page.close()


def test_pages_have_one_global_name(tmp_path: Path, visit: Visit) -> None:
    results = ResultsPage(tmp_path / "results", "run", WINDOW)
    add(results, "a")
    (tmp_path / "empty.html").write_text("<title>empty</title>")
    names = []
    for path in (results.save({}), tmp_path / "empty.html"):
        page = visit(path)
        names.append(set(page.evaluate("Object.getOwnPropertyNames(window)")))
    assert names[0] - names[1] == {"Mask2CT"}


def test_training_page_in_a_browser(tmp_path: Path, visit: Visit) -> None:
    v = volumes()
    save_slices_png(tmp_path / "10.png", [Panel("generated", "ct", v["hu"], SPACING)])
    log = [{"step": 10, "loss_G": 1.0}]
    path = write_training_page(tmp_path, "run", log, [TrainingImage(10, "a", "text", "10.png")], {})
    page = shows_picture_first(visit, path, ".step img")
    page.wait_for_function(
        "[...document.images].every(i => i.complete && i.naturalWidth > 50)"
    )  # loaded when seen
    assert page.locator("img").count() == 2  # the losses and the slices


def test_a_training_page_follows_the_run(tmp_path: Path, visit: Visit) -> None:
    state = TrainingState(15, 150, 5400.0, "running", 1, ["One patient."])
    page = visit(write_training_page(tmp_path, "run", [], [], {}, state))
    page.wait_for_function("document.getElementById('state').textContent.includes('h left')")
    assert page.inner_text("#state") == "Step 15 of 150: running, about 1.5 h left."
    assert "One patient." in page.inner_text("#warnings")
    page.evaluate("window.old = true")
    write_progress(tmp_path, replace(state, step=20, seconds_left=600.0))
    page.wait_for_function("document.getElementById('steps').value === 20", timeout=15000)
    assert "about 10 min left" in page.inner_text("#state") and page.evaluate("window.old")
    write_training_page(tmp_path, "run", [], [], {}, replace(state, state="stopped", page=2))
    page.wait_for_function("!window.old && document.getElementById('state')", timeout=15000)
    assert page.inner_text("#state") == "Step 15 of 150: stopped."


def test_a_followed_effect_stands_beside_the_real_scans(tmp_path: Path) -> None:
    log = [{"step": s, "val_lung_effect_hu": 2.0 * s} for s in (10, 20)]
    effect = TrackedEffect("val_lung_effect_hu", "SMOKING: Current minus Never", 42.0, 30.0, 54.0)
    state = TrainingState(20, 20, tracked=[effect])
    text = write_training_page(tmp_path, "run", log, [], {}, state).read_text()
    sentence = "SMOKING: Current minus Never: +40.0 HU in the generated lungs, +42.0 [30.0, 54.0]"
    assert sentence in text and "It is not adjusted for other columns." in text
    assert (tmp_path / "effect_0.svg").stat().st_size > 1000


# --- what a page says first ---


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


def test_fingers_go_through_slices_and_zoom(tmp_path: Path, browser: Any) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    add(results, "a")
    context = browser.new_context(has_touch=True, viewport={"width": 400, "height": 800})
    page = context.new_page()
    page.goto(results.save({}).as_uri())
    page.locator(".ct .stage").scroll_into_view_if_needed()
    page.locator(".ct[data-state=ready]").wait_for()
    box = page.locator(".ct .stage").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = context.new_cdp_session(page)

    def touch(kind: str, *points: tuple[float, float]) -> None:
        places = [{"x": a, "y": b, "id": n} for n, (a, b) in enumerate(points)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    at = state(page, "v.at[2]")
    touch("touchStart", (x - 40, y))
    touch("touchMove", (x - 20, y))
    touch("touchMove", (x - 4, y))
    touch("touchEnd")
    assert state(page, "v.at[2]") == at + 3  # 36 pixels, 12 for a slice
    touch("touchStart", (x - 20, y), (x + 20, y))
    touch("touchMove", (x - 40, y), (x + 40, y))
    touch("touchMove", (x - 50, y), (x + 50, y))
    touch("touchEnd")
    assert 2 <= state(page, "v.zooms.axial.scale") <= 3
    assert state(page, "v.at[2]") == at + 3
    enlarged = page.locator("dialog.enlarged[open]")
    for _ in range(10):  # the browser swallows a tap that ends the fling of a pinch
        page.touchscreen.tap(x, y)
        page.wait_for_timeout(1000)
        if enlarged.count():
            break
    assert enlarged.count() == 1
    context.close()


def test_the_print_view_is_not_black(tmp_path: Path, browser: Any) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    for number in range(4):
        add(results, f"patient {number}")
    page = browser.new_page(color_scheme="dark", viewport={"width": 800, "height": 600})
    page.goto(results.save({}).as_uri())
    wait_for_panels(page)
    page.emulate_media(media="print")
    shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")
    assert (np.asarray(shot) < 60).mean() < 0.25
    assert not page.locator(".toolbar").is_visible()
    page.close()


def test_differences_differ_for_the_colour_blind() -> None:
    """The ends of the range stay apart for deuteranopia and protanopia (Machado et al. 2009)."""
    ends = difference_rgb(np.array([-20.0, 0.0, 20.0]), 20) / 255
    linear = np.where(ends <= 0.04045, ends / 12.92, ((ends + 0.055) / 1.055) ** 2.4)
    deuteranopia = (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.01182, 0.04294, 0.968881),
    )
    protanopia = (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    )
    for matrix in (deuteranopia, protanopia):
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.4)
        low, middle, high = rgb2lab(seen)
        for one, two in ((low, middle), (middle, high), (low, high)):
            assert deltaE_ciede2000(one, two) > 20  # 1 is just seen

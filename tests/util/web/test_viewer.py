"""The viewer of pages in a real browser, opened from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viewer import (
    SHAPE,
    SPACING,
    WINDOW,
    Visit,
    add_case,
    open_case,
    pixels,
    press,
    viewer_state,
    volumes,
    wait_for_panels,
)
from util.web.figures import (
    LUNG,
    Panel,
    ct_gray,
    difference_rgb,
    fullest_slices,
    mask_rgb,
    radiological_slice,
)
from util.web.results_page import ResultsPage
from util.web.web_data import pack


def open_large(tmp_path: Path, visit: Visit) -> Any:
    """Open a page of one case of several bricks, its two pictures drawn."""
    results = ResultsPage(tmp_path, "run", WINDOW)
    hu = np.zeros((160, 150, 96), np.float32)
    results.add_case("a", "", [], [Panel(title, "ct", hu, SPACING) for title in "AB"])
    page = visit(results.save({}))
    page.locator(".panel[data-state=ready]").nth(1).wait_for()
    return page


def test_bricks_not_used_for_long_leave_the_memory(tmp_path: Path, visit: Visit) -> None:
    page = open_large(tmp_path, visit)
    page.locator(".stage").first.hover()
    half = pack(np.zeros((2**26 + 2**20, 1, 1), np.int16), 1.0)  # more than half of what is kept
    page.evaluate(
        "async (half) => { for (const n of [0, 1]) await Mask2CT.addBrick('old', n, half); }", half
    )
    there = "(name) => Mask2CT.voxels.areThere([name])"
    assert page.evaluate(there, "old.0") and page.evaluate(there, "old.1")
    page.evaluate("Mask2CT.viewers[0].move('axial', 95)")  # loads others
    page.wait_for_function("!Mask2CT.voxels.areThere(['old.0'])")
    assert page.evaluate(there, "old.1")  # the rest fits
    page.wait_for_function("Mask2CT.viewers[0].panels.every((panel) => panel.drawn.index === 95)")


def test_a_case_shown_twice_loads_what_both_places_show(tmp_path: Path, visit: Visit) -> None:
    page = open_large(tmp_path, visit)
    # The clearest case stands a second time below, at another place.
    drawn = page.evaluate("""async () => {
      const root = document.querySelector("[data-viewer]"), twin = root.cloneNode(true);
      for (const stage of twin.querySelectorAll(".stage")) stage.replaceChildren();
      root.after(twin);
      const [one] = Mask2CT.viewers, other = Mask2CT.viewerOf(twin);
      const pause = () => new Promise((resolve) => setTimeout(resolve, 20));
      while (!other.panels.every((panel) => panel.drawn)) await pause();
      one.at = [80, 140, 48];
      other.at = [80, 10, 48];
      // More bricks than are loaded at a time.
      document.querySelector("button[data-value=coronal]").click();
      one.move("coronal", 141); // while the other one waits for its bricks
      const drawn = () => other.panels.every((panel) => panel.drawn.through === 1);
      for (let k = 0; k < 250 && !drawn(); k++) await pause();
      return drawn();
    }""")
    assert drawn


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


def test_value_under_the_cursor(tmp_path: Path, visit: Visit) -> None:
    v, results = volumes(), ResultsPage(tmp_path, "run", WINDOW)
    add_case(results, "a")
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
        assert viewer_state(page, "v.at[2]") == max(0, index)
    page.mouse.move(5, 5)  # beside the pictures, the keys are the browser's
    page.keyboard.press("ArrowDown")
    assert viewer_state(page, "v.at[2]") == last


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


def test_a_place_is_picked_by_clicks_alone_and_its_mark_stays_there(
    tmp_path: Path, visit: Visit
) -> None:
    page = open_case(tmp_path, visit)
    page.evaluate("""() => {
      const [viewer] = Mask2CT.viewers;
      viewer.onPick = (voxel) => { viewer.pinned = voxel; };
    }""")
    stage = page.locator(".stage").nth(1)
    box = stage.bounding_box()
    stage.click(position={"x": (6 + 0.5) / SHAPE[0] * box["width"], "y": box["height"] / 2})
    assert page.locator("dialog.enlarged").count() == 0
    picked = viewer_state(page, "v.pinned")
    assert picked[0] == SHAPE[0] - 1 - 6 and picked[2] == viewer_state(page, "v.at[2]")
    page.mouse.down()  # a drag sets the window, which is no choice of a place
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.up()
    assert viewer_state(page, "[v.pinned, view.window]") == [picked, "own"]
    pins = page.locator(".pin:visible")
    assert pins.count() == 3  # one in each picture
    page.keyboard.press("ArrowUp")
    page.wait_for_function("Mask2CT.viewers[0].panels.every(({ pin }) => pin.hidden)")
    page.keyboard.press("ArrowDown")
    page.wait_for_function("Mask2CT.viewers[0].panels.every(({ pin }) => !pin.hidden)")
    stage.locator(".enlarge").click()
    assert page.locator("dialog.enlarged[open]").count() == 1
    assert viewer_state(page, "v.pinned") == picked


def test_zoom_pan_and_the_scale(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    stage = page.locator(".stage").nth(1)
    box = stage.bounding_box()
    ruler = stage.locator(".ruler")
    length = ruler.bounding_box()["width"] / box["width"]
    assert length == pytest.approx(float(ruler.inner_text().split()[0]) / 48, rel=0.02)
    x, y = round(box["x"] + 0.3 * box["width"]), round(box["y"] + 0.6 * box["height"])
    page.mouse.move(x, y)
    voxel = viewer_state(page, "v.cursor")
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    page.wait_for_function("Mask2CT.viewers[0].zooms.axial?.scale > 3")
    page.mouse.move(x + 1, y)
    assert viewer_state(page, "v.cursor") == voxel  # the place under the pointer stays
    page.mouse.down(button="middle")
    page.mouse.move(x + 60, y)
    page.mouse.up(button="middle")
    assert viewer_state(page, "v.cursor") == voxel  # it went with the pointer
    page.keyboard.press("0")
    assert viewer_state(page, "v.zooms.axial.scale") == 1


def test_click_enlarges_and_escape_goes_back(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    order = page.locator(".case .title").all_inner_texts()
    page.locator(".stage").nth(1).click()
    large = page.locator("dialog.enlarged .stage")
    assert large.bounding_box()["width"] > 600 and large.bounding_box()["height"] < 800
    at = viewer_state(page, "v.at[2]")
    page.keyboard.press("ArrowUp")
    assert viewer_state(page, "v.at[2]") == at + 1
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


def test_digits_choose_a_picture_of_the_same_row(tmp_path: Path, visit: Visit) -> None:
    v, results = volumes(), ResultsPage(tmp_path, "run", WINDOW)
    panels = [Panel("Generated", "ct", v["hu"], SPACING, role="generated")]
    for attribute in ("AGE", "SEX"):
        for name in (f"{attribute} a", f"{attribute} b"):
            panels.append(Panel(name, "ct", v["hu"], SPACING, values=(name,), attribute=attribute))
    results.add_case("a", "", [], panels)
    page = visit(results.save({}))
    page.locator(".panel[data-state=ready]").nth(5).wait_for()
    row = page.locator(".together").nth(1)
    titles = row.locator(".title").all_inner_texts()
    row.locator(".stage").nth(1).click()
    for number in (3, 1, 2):
        page.keyboard.press(str(number))
        assert page.inner_text("dialog.enlarged .title") == titles[number - 1]


def test_address_holds_the_view(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    press(page, "coronal")
    press(page, "bone")
    page.locator(".stage").nth(1).hover()
    page.mouse.wheel(0, 100)
    page.wait_for_function("location.hash.includes('at=')")
    shown = page.evaluate("location.hash").removeprefix("#")
    place = viewer_state(page, "v.at")
    again = open_case(tmp_path, visit, shown)
    assert viewer_state(again, "[v.at, view.plane, view.window]") == [place, "coronal", "bone"]
    damaged = open_case(
        tmp_path, visit, "plane=x&window=a,b&limit=-1&case=case-0001-a&at=1,<b>,9e9"
    )
    assert viewer_state(damaged, "[view.plane, view.window]") == ["axial", "lung"]


def test_address_follows_the_keys(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    page.keyboard.press("d")
    page.wait_for_function("location.hash.includes('overlay=0.8')")
    page.fill("#opacity", "50")
    page.wait_for_function("location.hash.includes('overlay=0.5')")
    page.evaluate("location.hash = 'plane=axial&limit=50&overlay=0.4'")
    page.wait_for_function("Mask2CT.view.limit === 50 && Mask2CT.view.overlay === 0.4")
    page.evaluate("location.hash = 'plane=axial&limit=0'")
    page.wait_for_function("Mask2CT.view.limit === 0 && Mask2CT.view.overlay === 0")
    assert page.input_value("#limit") == "0" and not page.is_checked("#overlay")


def test_no_picture_is_cut_off_on_paper(tmp_path: Path, visit: Visit) -> None:
    page = open_case(tmp_path, visit)
    width = 640
    page.set_viewport_size({"width": width, "height": 900})
    right = """Math.max(
      ...[...document.querySelectorAll(".stage")].map((s) => s.getBoundingClientRect().right)
    )"""
    assert page.evaluate(right) > width  # on the screen, the row is scrolled
    page.emulate_media(media="print")
    assert page.evaluate(right) <= width


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
    i, _, k = viewer_state(page, "v.at")
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
    add_case(results, "a")
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
    add_case(results, "a")
    file = tmp_path / "web" / "case-0001-a" / "1.0.js"
    file.unlink()
    page = browser.new_page()
    page.goto(results.save({}).as_uri())
    page.wait_for_selector(".ct[data-state=failed]")
    assert page.inner_text(".ct .value") == "The voxels are missing: web/case-0001-a/1.0.js"
    page.wait_for_selector(".mask[data-state=ready]")
    page.close()


def test_fingers_go_through_slices_and_zoom(tmp_path: Path, browser: Any) -> None:
    results = ResultsPage(tmp_path, "run", WINDOW)
    add_case(results, "a")
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

    at = viewer_state(page, "v.at[2]")
    touch("touchStart", (x - 40, y))
    touch("touchMove", (x - 20, y))
    touch("touchMove", (x - 4, y))
    touch("touchEnd")
    assert viewer_state(page, "v.at[2]") == at + 3  # 36 pixels, 12 for a slice
    touch("touchStart", (x - 20, y), (x + 20, y))
    touch("touchMove", (x - 40, y), (x + 40, y))
    touch("touchMove", (x - 50, y), (x + 50, y))
    touch("touchEnd")
    assert 2 <= viewer_state(page, "v.zooms.axial.scale") <= 3
    assert viewer_state(page, "v.at[2]") == at + 3
    enlarged = page.locator("dialog.enlarged[open]")
    for _ in range(10):  # the browser swallows a tap that ends the fling of a pinch
        page.touchscreen.tap(x, y)
        page.wait_for_timeout(1000)
        if enlarged.count():
            break
    assert enlarged.count() == 1
    context.close()

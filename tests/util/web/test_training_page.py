"""The page of a training."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tests.pages import shows_picture_first
from tests.viewer import SPACING, Visit, volumes
from util.web.figures import Panel, save_slices_png
from util.web.training_page import (
    TrackedEffect,
    TrainingImage,
    TrainingState,
    binned,
    curves,
    write_progress,
    write_training_page,
)

log = logging.getLogger(__name__)


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
        file = f"{name}_0.svg"
        assert file in text and (tmp_path / file).stat().st_size > 1000
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


def test_curves_and_effects_stay_readable_on_a_telephone(tmp_path: Path, visit: Visit) -> None:
    names = ("loss_G", "loss_D", "val_ssim", "val_lung_effect_hu", "lr")
    log = [{"step": s, **dict.fromkeys(names, float(s))} for s in (10, 20)]
    effect = TrackedEffect("val_lung_effect_hu", "SMOKING: Current minus Never", 42.0, 30.0, 54.0)
    page = visit(
        write_training_page(tmp_path, "run", log, [], {}, TrainingState(20, 20, tracked=[effect]))
    )
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    scales = page.evaluate("[...document.images].map(i => i.clientWidth / i.naturalWidth)")
    assert len(scales) == 1 + len(names) and min(scales) > 0.65  # letters of 9 pixels
    page.set_viewport_size({"width": 1400, "height": 800})
    first, second = (page.locator(".curves img").nth(i).bounding_box()["y"] for i in (0, 1))
    assert first == second  # side by side


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

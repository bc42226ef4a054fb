"""The live page in a browser, from the start of the command to the exported files."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from tests.commands import ROOT, TrainedRun
from tests.pipelines.app.test_server import free_port

pytest.importorskip("gradio", reason="requirements-app.txt is not installed")

START_S = 400  # on a machine that does much else
WAIT_MS = 180_000
SMOKING = "SMOKING HISTORY"
# Gradio's own remarks on its translations and on the end of an upload.
HARMLESS = ("svelte-i18n", "Method not implemented.")


CASE_SET = f"""\
title: Two questions
cases:
- {{case: phantom_010, column: {SMOKING}, from: Never smoker, to: Current smoker}}
- {{case: phantom_011, column: AGE, from: 50, to: 80, note: The last one.}}
"""


@pytest.fixture(scope="module")
def address(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of the tiny run with a quiz, served by the command; it ends well on Ctrl-C."""
    port, folder = free_port(), tmp_path_factory.mktemp("page")
    log = folder / "app.log"
    (folder / "cases.yaml").write_text(CASE_SET)
    words = [*trained_run.flags(), "--dataroot", str(trained_run.cohort), "--port", port]
    words += ["--teach", "--case_set", str(folder), "--no-open_browser", "--gpu_ids=-1"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "scripts/app.py", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
        )
        try:
            end = time.monotonic() + START_S
            while "The page is at" not in log.read_text():
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
    assert "Traceback" not in log.read_text()


@pytest.fixture()
def page(browser: Any, address: str) -> Iterator[Any]:
    """A visitor of the page; a request to another computer or an error fails the test."""
    requests: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(viewport={"width": 1500, "height": 1000}, accept_downloads=True)
    context.set_default_timeout(WAIT_MS)
    visitor = context.new_page()
    visitor.on("request", lambda request: requests.append(request.url))
    visitor.on("pageerror", lambda error: complaints.append(str(error)))
    visitor.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    yield visitor
    context.close()
    assert [text for text in complaints if not any(word in text for word in HARMLESS)] == []
    own = (address, "data:", "blob:")
    assert [url for url in requests if not url.startswith(own)] == []


def choose(page: Any, name: str, value: str) -> None:
    """Choose a value of a column, of volume A or B."""
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=value, exact=True).last.click()


def number_of(page: Any, column: str) -> int:
    """Return the number of a column in the form."""
    labels = page.locator("[id^=a-] label").all_inner_texts() or []
    names = [text.strip().splitlines()[0] for text in labels]
    if column in names:
        return names.index(column)
    cells = page.locator("#form [id^=a-]").all_inner_texts()
    return next(k for k, text in enumerate(cells) if text.strip().startswith(column))


def generated(page: Any) -> Any:
    """Wait for an answer; return the frame with its pictures drawn."""
    page.locator("#done").wait_for()
    frame = page.frame_locator("#answer-frame")
    frame.locator(".panel.difference[data-state=ready]").first.wait_for()
    return frame


def test_from_the_form_to_the_files(page: Any, address: str, tmp_path: Path) -> None:
    page.goto(address)
    page.locator("#prompts strong").first.wait_for()
    assert "click on Generate" in page.inner_text("#answer")
    number = number_of(page, SMOKING)
    choose(page, f"a-{number}", "Ex smoker")
    choose(page, f"b-{number}", "Never smoker")
    page.locator("#prompts mark", has_text="Never smoker").wait_for()
    assert "SMOKING HISTORY is Ex smoker" in page.inner_text("#prompts")
    page.click("#generate")
    frame = generated(page)
    titles = frame.locator(".panel .title").all_inner_texts()
    assert titles == ["real scan", "A", "B", "B minus A", "B minus A", "mask"]
    assert "Never smoker against Ex smoker" in frame.locator(".headline").inner_text()
    assert "both lungs" in frame.locator("#effects").inner_text()
    assert "9 scans" in frame.locator("#warnings").inner_text()
    frame.locator(".panel.difference .stage").first.hover()
    assert re.search(r"HU", frame.locator(".panel.difference .value").first.inner_text())
    # The address is the state: another visitor of it sees the same volumes.
    link = page.locator("#link textarea, #link input").first.input_value()
    page.wait_for_url(link)
    assert "Never+smoker" in link
    page.locator("#formats label", has_text="GIF").click()
    page.click("#export")
    page.locator("#files a").first.wait_for()
    with page.expect_download() as download:
        page.locator("#files a").first.click()
    download.value.save_as(tmp_path / "files.zip")
    with zipfile.ZipFile(tmp_path / "files.zip") as archive:
        names = {Path(name).name for name in archive.namelist()}
        archive.extractall(tmp_path)
    assert names >= {"a.nii.gz", "b.nii.gz", "difference.nii.gz", "slices.png", "slices.gif"}
    (volume,) = tmp_path.rglob("a.nii.gz")
    assert nib.load(volume).shape == (24, 24, 16)


def test_a_link_another_draw_and_what_training_does_not_support(page: Any, address: str) -> None:
    query = "?case=phantom_003&seed=1&a.AGE=60&b.AGE=130&b.SMOKING+HISTORY=Pipe+smoker"
    page.goto(f"{address}/{query}")
    frame = generated(page)
    assert "phantom_003, noise 1" in frame.locator("h1").inner_text()
    attributes = frame.locator("#attributes").inner_text()
    assert "outside the range of training" in attributes
    assert "value not seen in training" in attributes
    page.set_viewport_size({"width": 400, "height": 800})
    page.click("#another")
    page.frame_locator("#answer-frame").locator("h1", has_text="noise 2").wait_for()
    # On a phone the answer stands below the form, and comes into view.
    page.wait_for_function("document.getElementById('answer').getBoundingClientRect().top < 99")
    assert page.locator("#seed input").input_value() == "2"


def test_mistakes_are_said_on_the_page(page: Any, address: str, trained_run: TrainedRun) -> None:
    page.goto(f"{address}/?case=nobody")
    page.get_by_text("There is no case 'nobody'").first.wait_for()
    page.goto(address)
    page.locator("#prompts strong").first.wait_for()
    page.get_by_text("Free text instead").first.click()
    page.locator("#text-a textarea").press_sequentially("Patient age: 144.")
    page.locator("#prompts", has_text="Patient age: 144.").first.wait_for()  # the last key, too
    page.locator("#text-a textarea").fill("")
    box = page.locator(f"#b-{number_of(page, 'AGE')} input")
    box.fill("old")
    box.press("Enter")
    page.locator("#prompts .problem", has_text="must hold a number").wait_for()
    page.click("#export")
    page.get_by_text("must hold a number").last.wait_for()


def test_a_mask_is_dropped(
    page: Any, address: str, trained_run: TrainedRun, tmp_path: Path
) -> None:
    page.goto(address)
    page.locator("#prompts strong").first.wait_for()
    page.get_by_text("Drop a mask").click()
    source = sorted((trained_run.cohort / "gtlung").glob("*.nii.gz"))[0]
    mask = tmp_path / "dropped.nii.gz"
    mask.write_bytes(source.read_bytes())
    page.locator("#mask input[type=file]").set_input_files(mask)
    page.locator("#prompts em").first.wait_for()  # nothing is known
    assert page.locator("#case input").input_value() == "dropped.nii.gz"
    choose(page, f"b-{number_of(page, SMOKING)}", "Never smoker")
    page.locator("#prompts mark").wait_for()
    page.click("#generate")
    assert "real scan" not in generated(page).locator(".panel .title").all_inner_texts()


def test_a_quiz_is_played(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("tab", name="Quiz").click()
    page.click("#quiz-start")
    frame = page.frame_locator("#quiz-question-frame")
    frame.locator(".panel[data-state=ready]").nth(1).wait_for()
    assert "Never smoker" not in frame.locator("body").inner_text()
    frame.locator(".panel .stage").nth(1).click(position={"x": 120, "y": 120})
    frame.locator(".pin").nth(1).wait_for()
    assert frame.locator("dialog[open]").count() == 0  # the click marks, it does not enlarge
    page.locator("#quiz-choice label", has_text=SMOKING).click()
    page.click("#quiz-answer")
    page.locator("#quiz-feedback li", has_text=f"{SMOKING} is right.").wait_for()
    answer = page.frame_locator("#quiz-answer-frame")
    answer.locator(".panel.difference").first.wait_for()
    assert "Current smoker against Never smoker" in answer.locator(".headline").inner_text()
    score = page.inner_text("#quiz-score")
    assert score.startswith("Question 1 of 2 · ") and score.endswith("of 2 points")
    page.click("#quiz-next")
    page.locator("#quiz-score", has_text="Question 2 of 2").wait_for()
    page.click("#quiz-answer")
    page.get_by_text("Choose the attribute that was changed.").first.wait_for()


def test_a_differential_and_attention_maps(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_role("tab", name="Differential").click()
    page.click("#compare")
    frame = page.frame_locator("#differential-frame")
    frame.locator(".panel.difference[data-state=ready]").first.wait_for()
    assert "own text" in frame.locator(".panel .title").first.inner_text()
    assert "need the cohort's own CLIP" in frame.locator("#similar").inner_text()
    page.click("#attention")
    frame = page.frame_locator("#attention-frame")
    frame.locator(".panel.share[data-state=ready]").first.wait_for()
    frame.locator(".panel.share .stage").first.hover()
    assert frame.locator(".panel.share .value").first.inner_text().endswith("%")

"""Fixtures of all tests: a small phantom cohort, a run trained on it, and a browser.

Commands are started by `tests/commands.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.phantom.write import make_phantom_cohort
from options.phantom_options import PhantomOptions
from tests.commands import TINY, TrainedRun, command

CHROMIUM = Path("/usr/bin/chromium")
CANCELLED = "net::ERR_ABORTED"  # of a page that was left while it was loading: no fault
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def cohort_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom cohort: 9 training, 1 validation and 2 test cases of 24x24x16 voxels. Not to be
    changed; copy it.
    """
    out = tmp_path_factory.mktemp("phantoms") / "cohort"
    return make_phantom_cohort(
        PhantomOptions(
            OUT=str(out),
            cases=12,
            size=(24, 24, 16),
            seed=1,
            test_cases=2,
            val_cases=1,
            missing=0.12,
            patient_sd=0.0,
        )
    )


@pytest.fixture(scope="session")
def trained_run(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A tiny run of four steps on `cohort_dir`, with the `table` text encoder."""
    run = TrainedRun(tmp_path_factory.mktemp("checkpoints"), "tiny", cohort_dir)
    done = command("train.py", "--dataroot", cohort_dir, *run.flags(), *TINY)
    assert done.code == 0, done.text
    return run


@pytest.fixture()
def cohort_copy(cohort_dir: Path, tmp_path: Path) -> Path:
    """A copy of the cohort, to be changed."""
    return Path(shutil.copytree(cohort_dir, tmp_path / "cohort"))


@pytest.fixture()
def run_copy(trained_run: TrainedRun, tmp_path: Path) -> TrainedRun:
    """A copy of the trained run, to be changed."""
    copy = shutil.copytree(trained_run.checkpoints, tmp_path / "checkpoints")
    return TrainedRun(Path(copy), trained_run.name, trained_run.cohort)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that need one are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=list(CHROMIUM_ARGUMENTS)
        )
        yield chromium
        chromium.close()


@pytest.fixture()
def visit(browser: Any) -> Iterator[Callable[[Path], Any]]:
    """A function that opens a file as a page.

    Messages on the console, failed requests, errors, and requests to the network fail the test at
    its end.
    """
    complaints: list[str] = []
    requests: list[str] = []
    context = browser.new_context(viewport={"width": 1200, "height": 800})

    loading: set[Any] = set()

    def begin(request: Any) -> None:
        requests.append(request.url)
        if request.url.startswith("file:"):
            loading.add(request)

    def fail(request: Any) -> None:
        loading.discard(request)
        if request.failure != CANCELLED:
            complaints.append(f"failed: {request.url} ({request.failure})")

    def open_page(path: Path) -> Any:
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", begin)
        page.on("requestfinished", lambda request: loading.discard(request))
        page.on("requestfailed", fail)
        page.goto(path.as_uri())
        page.requests, page.complaints = requests, complaints
        return page

    yield open_page
    for _ in range(200):  # what is still loading may fail
        if not loading or not context.pages:
            break
        context.pages[0].wait_for_timeout(50)
    context.close()
    assert complaints == []
    assert all(url.startswith(("file:", "data:")) for url in requests)

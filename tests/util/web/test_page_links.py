"""Pages that are written at different times link to each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from util.web.page_links import DATA, LinkedPage, link_pages
from util.web.results_page import ResultsPage
from util.web.training_page import write_training_page


def test_pages_link_to_each_other(tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    training = write_training_page(tmp_path / "ck" / "run" / "web", "run", [], [], {})
    results = ResultsPage(tmp_path / "results <1>", "run", (-1000.0, 400.0)).save({})
    one = LinkedPage("Training of run", training, "")
    two = LinkedPage("Volumes <1>", results)
    for _ in range(2):  # a second time adds nothing
        link_pages(one, two)
    link_pages(one, LinkedPage("absent", tmp_path / "absent.html"))
    page = visit(training)
    assert page.locator("nav a").all_inner_texts() == ["Volumes <1>"]
    page.click("nav a")
    page.wait_for_load_state("load")
    assert page.locator("nav a").all_inner_texts() == ["Training of run"]
    page.click("nav a")
    page.wait_for_selector("#steps")
    # A page that is written anew keeps its links; damaged ones are replaced.
    write_training_page(training.parent, "run", [], [], {})
    assert "Volumes" in (training.parent / DATA).read_text()
    (training.parent / DATA).write_text("Mask2CT.links([[")
    link_pages(one, two)
    assert visit(training).locator("nav a").count() == 1


def test_a_page_of_an_earlier_version_stays_as_it_is(tmp_path: Path) -> None:
    results = ResultsPage(tmp_path / "results", "run", (-1000.0, 400.0)).save({})
    old = tmp_path / "old" / "index.html"
    old.parent.mkdir()
    old.write_text("<title>old</title>")
    link_pages(LinkedPage("Volumes", results), LinkedPage("Old", old))
    assert "Old" in (results.parent / "web" / DATA).read_text()
    assert [path.name for path in old.parent.iterdir()] == ["index.html"]

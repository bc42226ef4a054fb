"""Parts of every page."""

from __future__ import annotations

from pathlib import Path

from dominate import tags

from tests.viewer import Visit
from util.web import page_parts


def test_lines_never_break_within_a_flag(tmp_path: Path, visit: Visit) -> None:
    document = page_parts.new_document("--edit_real <b>")
    page_parts.copy_assets(tmp_path, "page.css")
    with document, tags.div(style="width: 60px"):
        tags.p("Of --edit_real and --no-axioms, a 3--4 well-known <b>.")
        tags.select(tags.option("--draws 2"))
    page = visit(page_parts.write_document(document, tmp_path / "index.html"))
    assert page.locator("code").all_inner_texts() == ["--edit_real", "--no-axioms"]
    lines = "[...document.querySelectorAll('code')].map(e => e.getClientRects().length)"
    assert page.evaluate(lines) == [1, 1]
    text = "Of --edit_real and --no-axioms, a 3--4 well-known <b>."
    assert page.locator("p").text_content() == text
    assert page.title() == "--edit_real <b>"
    assert page.locator("option").text_content() == "--draws 2"


def test_values_of_facts_break_where_a_telephone_ends(tmp_path: Path, visit: Visit) -> None:
    document = page_parts.new_document("page")
    page_parts.copy_assets(tmp_path, "page.css")
    with document, tags.main(), page_parts.card("Sets"):
        page_parts.key_table({"synthetic": "6 volumes, demo/results/phantoms/" + "test_latest" * 5})
    page = visit(page_parts.write_document(document, tmp_path / "index.html"))
    page.set_viewport_size({"width": 400, "height": 600})
    assert page.evaluate("document.documentElement.scrollWidth") == 400

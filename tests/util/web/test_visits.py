"""The fixture that the tests of pages rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_missing_file_and_a_message_are_complaints(
    tmp_path: Path, visit: Callable[[Path], Any]
) -> None:
    path = tmp_path / "index.html"
    path.write_text("<script src=missing.js></script><script>console.log('told')</script>")
    page = visit(path)
    page.wait_for_timeout(100)
    missing = path.with_name("missing.js").as_uri()
    assert f"failed: {missing} (net::ERR_FILE_NOT_FOUND)" in page.complaints
    assert "told" in page.complaints
    page.complaints.clear()

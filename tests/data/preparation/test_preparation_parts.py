"""Parts of preparing scans: the table beside them, ids, splits, and the report page."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
from PIL import Image

from data.preparation import dataroot
from data.preparation.case import RECORDS, CaseTask
from data.preparation.headers import ACQUISITION
from data.preparation.join import join_table
from data.preparation.masks import MaskPlan
from data.preparation.register import MAX_ID_LENGTH, CaseRegister, safe_id
from data.preparation.sources import Source
from tests.chests import SPACING, chest
from util.cli import UserError
from util.web.outlines import outlined_slices
from util.web.preparation_page import CaseCard, write_preparation_page


def sources(*names: str) -> list[Source]:
    return [Source(f"key{n}", n, (n,)) for n in names]


def test_join(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "No;MRN;AGE;SMOKER;Home address\n1;00123;N/A; yes "
        ";x\n2;77;55.0;-;y\n3;77;56;no;y\n4;8;1;2;z\n"
    )
    table = join_table(path, sources("123", "77", "9"))
    assert table.key_column == "MRN" and table.columns == ("No", "AGE", "SMOKER")
    assert table.rows == {"key123": {"No": "1", "AGE": "", "SMOKER": "yes"}}
    remarks = " ".join(table.remarks)
    assert (
        "1 scans have several rows that differ" in remarks
        and "1 of 3 scans have no row" in remarks
        and "Home address" in remarks
    )
    with pytest.raises(UserError, match="names no scan"):
        join_table(path, sources("nobody"))
    with pytest.raises(UserError, match="'AGE' names no scan"):
        join_table(path, sources("123"), "AGE")


def test_spreadsheets_that_cannot_be(tmp_path: Path) -> None:
    path, book = tmp_path / "t.xlsx", openpyxl.Workbook()
    for line in (["id", "Lung function", None], ["a", 1, 2]):
        book.active.append(line)
    book.active.merge_cells("B1:C1")
    book.save(path)
    with pytest.raises(UserError, match=r"column 3 has cells but no name.*merged"):
        join_table(path, sources("a"))
    path = tmp_path / "t.csv"
    path.write_text("id,AGE,AGE\na,1,2\n")
    with pytest.raises(UserError, match="more than once: AGE"):
        join_table(path, sources("a"))


@pytest.mark.parametrize("text", ["../../etc", "a/b", "..", "", "x" * 300, ".hidden", "Müller"])
def test_ids_are_safe_names(text: str) -> None:
    safe = safe_id(text)
    assert safe and safe != text and len(safe) <= MAX_ID_LENGTH
    assert "/" not in safe and not safe.startswith(".")
    assert safe_id("LIDC-IDRI-0001") == "LIDC-IDRI-0001" and safe_id("a/b") != safe_id("a_b")


def test_two_scans_of_one_patient_keep_apart(tmp_path: Path) -> None:
    register = CaseRegister(tmp_path / "k.csv", recode=False)
    register.add([Source("s1", "P", ("P",)), Source("s2", "P", ("P",)), Source("s3", "p", ("p",))])
    cases = {k: e.case for k, e in register.entries.items()}
    assert len({c.casefold() for c in cases.values()}) == 3
    assert register.entries["s1"].patient == register.entries["s2"].patient
    again = CaseRegister(tmp_path / "k.csv", recode=False)
    assert {k: e.case for k, e in again.entries.items()} == cases
    (tmp_path / "k.csv").write_text("something else\nx\n")
    with pytest.raises(UserError, match="is not a key file"):
        CaseRegister(tmp_path / "k.csv", recode=False)


def test_splits_grow_without_moving_anybody(tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    patients = {f"c{i:02d}": f"p{i // 2}" for i in range(40)}
    assert (
        dataroot.write_splits(path, {c: p for c, p in patients.items() if c < "c08"}, 1) is None
        and not path.exists()
    )
    first = dataroot.write_splits(path, {c: p for c, p in patients.items() if c < "c30"}, 1)
    second = dataroot.write_splits(path, patients, 1)
    assert first is not None and second is not None
    home = {c: name for name, cases in second.items() for c in cases}
    assert all(home[c] == name for name, cases in first.items() for c in cases) and set(
        home
    ) == set(patients)
    assert all(home[a] == home[b] for a in patients for b in patients if patients[a] == patients[b])
    assert json.loads(path.read_text()) == {k: list(v) for k, v in second.items()}


@pytest.mark.parametrize(("kind", "old_kind"), [("threshold", "classic"), ("load", "given")])
def test_records_of_earlier_versions_stay_valid(tmp_path: Path, kind: str, old_kind: str) -> None:
    scan = tmp_path / "a.nii.gz"
    scan.write_bytes(b"scan")
    status = scan.stat()
    plan = [old_kind, "", "None", "None"]
    files = [[str(scan), status.st_size, status.st_mtime_ns]]
    stored = json.dumps([1, None, "error", ACQUISITION, plan, files])
    task = CaseTask("a", Source("a", "a", ("a",), volume=scan), tmp_path, MaskPlan(kind))
    assert task.fingerprint() == hashlib.sha256(stored.encode()).hexdigest()
    record = tmp_path / RECORDS / "a.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"masks": old_kind}))
    assert dataroot.read_records(tmp_path) == {"a": {"masks": kind}}


# --- the page ---


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

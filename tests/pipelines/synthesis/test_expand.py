"""Synthetic cohorts: what is written, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data.geometry import Volume
from data.load_cohort import load_cohort
from data.volumes import load_volume, read_header
from models.inference import load_run
from options.anomaly_options import AnomalyCommand, MapOptions, RunsOptions, ScanOptions
from options.base_options import DataOptions
from options.expand_options import DeformOptions, ExpandCommand
from options.parser import parse
from pipelines.anomaly import run as anomaly
from pipelines.evaluation.memorisation import NearestScan
from pipelines.synthesis import run as synthesis
from pipelines.synthesis.copies import CopySearch, SyntheticVolume
from pipelines.synthesis.deform import apply_deformation, deform_plausibly, random_deformation
from pipelines.synthesis.masks import NewMask, given_mask
from pipelines.synthesis.page import pictured_cases
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.report import CohortReport, cohort_readme, cohort_sentence
from tests.commands import TrainedRun, command, refused
from tests.pages import page_warnings, printed_warnings, shows_picture_first
from tests.planned_cohorts import ROW, cases, template
from util.cli import UserError
from util.records import open_record


def report(planned: Sequence[PlannedCase] = (), **changes: Any) -> CohortReport:
    """A report on cases balanced by diagnosis, whose copies were searched for."""
    found = CohortReport(
        "cohort", "run1", 40, "generate", "deform", "none", ("DIAGNOSIS",), True, (), planned, {}
    )
    return replace(found, **changes)


def planned_cases(*values: str) -> list[PlannedCase]:
    source, prompt = cases(ROW)[0], template().phrases({})
    return [PlannedCase(f"s{k}", source, {"DIAGNOSIS": v}, prompt, 0) for k, v in enumerate(values)]


def test_readme_tells_what_was_redrawn() -> None:
    records = [{"redrawn": 2, "left_out": False}, {"redrawn": 5, "left_out": True}]
    text = cohort_readme(report(planned_cases("HP"), records=records))
    assert (
        "1 volume generated" in text and "7 draws too close" in text and "1 case left out" in text
    )
    assert (
        "| HP | 1 |" in text and "Not for diagnosis" in text and "test on real scans alone" in text
    )
    assert "not searched for" in cohort_readme(report(records=records, checked=False))


# --- the folder


def test_a_folder_belongs_to_its_settings(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not open_record(out, "r.json", {"n": (1, 2)}, False)
    (out / "work").touch()
    assert open_record(out, "r.json", {"n": (1, 2)}, False) and (out / "work").exists()
    with pytest.raises(UserError, match=r"other settings \(n\).*--overwrite"):
        open_record(out, "r.json", {"n": (1, 3)}, False)
    assert not open_record(out, "r.json", {"n": (1, 3)}, True) and not (out / "work").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"holds no r\.json"):
        open_record(tmp_path / "mine", "r.json", {}, True)


# --- the command


def options(run: TrainedRun, out: Path, *words: str, cohort: Path | None = None) -> ExpandCommand:
    return parse(
        ExpandCommand,
        "",
        ["--dataroot", str(cohort or run.cohort), *run.flags(), "--out", str(out), *words],
    )


@pytest.fixture(scope="module")
def synthetic_cohort(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("expansion") / "synthetic"
    return synthesis.synthesise_cohort(
        options(trained_run, out, "--balance", "DIAGNOSIS", "--n", "4", "--rows", "changed")
    )


def test_the_cohort_can_be_loaded_and_says_where_it_comes_from(
    synthetic_cohort: Path, trained_run: TrainedRun
) -> None:
    # A run of four steps makes no lungs, so the check of HU is left out.
    cohort = load_cohort(DataOptions(dataroot=str(synthetic_cohort)), check=False)
    real = load_cohort(DataOptions(dataroot=str(trained_run.cohort)))
    assert len(cohort.cases) == len(cohort.splits["train"]) == 4 and not cohort.splits["test"]
    training = set(real.splits["train"])
    for case in cohort.cases:
        assert case.row["SYNTHETIC"] == "yes" and case.row["SYNTHETIC SOURCE"] in training
        assert case.row["SYNTHETIC RUN"] == "tiny step 4" and case.row["SYNTHETIC SEED"].isdigit()
        source = real[case.row["SYNTHETIC SOURCE"]].mask
        assert np.allclose(read_header(case.mask).source_affine, read_header(source).source_affine)
        assert not np.array_equal(load_volume(case.mask).array, load_volume(source).array)
        assert case.image is not None and load_volume(case.image).array.dtype == np.int16
    counts = Counter(case.row["DIAGNOSIS"] for case in cohort.cases)
    assert max(counts.values()) - min(counts.values()) <= 1
    readme = (synthetic_cohort / "README.md").read_text()
    assert "Research use only" in readme and "was trained on 9 scans" in readme
    table = pd.read_csv(synthetic_cohort / "copies.csv")
    assert (table["distance"] >= table["threshold"]).all() and list(table["left_out"]) == [
        False
    ] * 4


def test_the_page_begins_with_the_outcome_and_a_case_beside_its_source(
    synthetic_cohort: Path, visit: Callable[[Path], Any]
) -> None:
    page = shows_picture_first(visit, synthetic_cohort / "index.html")
    page.locator(".case").first.locator(".panel[data-state=ready]").nth(2).wait_for()
    copies = pd.read_csv(synthetic_cohort / "copies.csv")
    nearest = copies.sort_values("distance").iloc[0]
    headline = page.inner_text(".headline")
    assert headline.startswith("4 synthetic cases by tiny (step 4), from the masks of ")
    assert f"the nearest, {nearest['case']}, is at distance {nearest['distance']:.2f}" in headline
    first = page.locator(".case").first
    table = pd.read_csv(synthetic_cohort / "clinical.csv", dtype=str)
    sources = dict(zip(table["File Name"], table["SYNTHETIC SOURCE"], strict=True))
    source = sources[first.locator("h2 a").inner_text()]
    assert first.locator(".title").all_inner_texts() == [f"real scan {source}", "synthetic", "mask"]
    warnings = page.inner_text("#warnings")
    assert "was trained on 9 scans" in warnings and "not a proof of privacy" in warnings
    assert page.locator(".case").count() == 4 and page.get_by_text("Cases by value").count() == 1


def test_printed_warnings_stand_on_the_page(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """Test cases as sources, copies searched for in another cohort, columns without a use."""
    table = tmp_path / "rows.csv"
    table.write_text("File Name,DIAGNOSIS,SHOE SIZE\nnew_1,IPF,43\n")
    run = replace(trained_run, cohort=cohort_copy)
    words = ("--dataroot", str(run.cohort), *run.flags(), "--out", str(tmp_path / "out"))
    done = command("scripts/expand.py", *words, "--table", table, "--split", "test")
    assert done.code == 0, done.text
    printed = printed_warnings(done.text)
    assert len(printed) >= 3 and any("SHOE SIZE" in text for text in printed)
    text = page_warnings(tmp_path / "out" / "index.html")
    assert [warning for warning in printed if warning not in text] == []


def test_the_pictured_cases_take_the_values_in_turn() -> None:
    found = report(planned_cases(*["HP"] * 20, *["IPF"] * 2), checked=False)
    shown = [case.row["DIAGNOSIS"] for case in pictured_cases(found)]
    assert shown == ["HP", "IPF", "HP", "IPF", *["HP"] * 8]
    assert found.counts == {("HP",): 20, ("IPF",): 2}
    assert cohort_sentence(found) == (
        "22 synthetic cases by run1 (step 40), from the masks of 1 case of cohort; DIAGNOSIS: "
        "HP 20, IPF 2. Copies of training scans were not searched for."
    )
    near = {"nearest_training_case": "", "reason": "", "left_out": False}
    none, some = ([{**near, "redrawn": n}] for n in (0, 3))
    assert "No volume was too close" in cohort_sentence(report(found.written, records=none))
    assert "3 draws too close" in cohort_sentence(report(found.written, records=some))


def test_texts_with_other_words_are_written_beside_the_table(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    words = ("--vary_text", "Gender: Male=>Gender: Female", "--n", "2", "--no-check_copies")
    out = synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", *words))
    prompts = pd.read_csv(out / "prompts.csv").set_index("File Name")["Prompt"]
    table = pd.read_csv(out / "clinical.csv", dtype=str).set_index("File Name")["SEX"]
    assert sorted(table) == ["Female", "Male"]
    for case, sex in table.items():
        assert re.search(rf"\b{sex}\b", prompts[case])
    assert "| Gender: Female | 1 |" in (out / "README.md").read_text()
    assert "text: Gender: Male" in (out / "index.html").read_text()
    with pytest.raises(UserError, match=r"--vary_text is given with --how residual"):
        synthesis.synthesise_cohort(options(trained_run, out, *words, "--how", "residual"))


def test_a_stopped_command_goes_on_and_changes_nothing(
    synthetic_cohort: Path, trained_run: TrainedRun, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(synthetic_cohort, tmp_path / "copy"))
    gone = [
        "img/synthetic_0002.nii.gz",
        "gtlung/synthetic_0002.nii.gz",
        "records/synthetic_0002.json",
        "clinical.csv",
    ]
    before = {name: (copy / name).read_bytes() for name in gone}
    written_at = (copy / "img" / "synthetic_0001.nii.gz").stat().st_mtime_ns
    for name in gone:
        (copy / name).unlink()
    synthesis.synthesise_cohort(
        options(trained_run, copy, "--balance", "DIAGNOSIS", "--n", "4", "--rows", "changed")
    )
    assert {name: (copy / name).read_bytes() for name in gone} == before
    assert (copy / "img" / "synthetic_0001.nii.gz").stat().st_mtime_ns == written_at
    with pytest.raises(UserError, match=r"other settings \(n "):
        synthesis.synthesise_cohort(
            options(trained_run, copy, "--balance", "DIAGNOSIS", "--n", "5")
        )


def test_a_run_trained_anew_does_not_go_on_with_the_old_one(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    """Of the same name and as many steps: half of the cases would be another generator's."""
    command = options(trained_run, tmp_path / "out", "--balance", "DIAGNOSIS", "--n", "4")
    run = load_run(command.model)
    anew = replace(run, state={**run.state, "sha256": dict.fromkeys(run.state["sha256"], "0")})
    before = synthesis.record_settings(command, run)
    assert before == synthesis.record_settings(command, run)
    assert before != synthesis.record_settings(command, anew)
    plain = replace(command, model=replace(command.model, use_average=False))
    assert before != synthesis.record_settings(plain, run)
    search = AnomalyCommand(ScanOptions(), RunsOptions((run.folder.name,)), MapOptions())
    assert anomaly.record_settings(search, [run]) != anomaly.record_settings(search, [anew])


@pytest.mark.parametrize("content", ["{", "[]", '{"left_out": "no"}', "null"])
def test_a_damaged_record_is_made_again(
    content: str,
    synthetic_cohort: Path,
    trained_run: TrainedRun,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    copy = Path(shutil.copytree(synthetic_cohort, tmp_path / "copy"))
    damaged = [copy / "records" / "synthetic_0002.json", copy / "same_mask.json"]
    before = [path.read_bytes() for path in damaged if path.is_file()]
    for path in damaged:
        if path.is_file():
            path.write_text(content)
    synthesis.synthesise_cohort(
        options(trained_run, copy, "--balance", "DIAGNOSIS", "--n", "4", "--rows", "changed")
    )
    assert "synthetic_0002.json is damaged" in caplog.text
    assert [path.read_bytes() for path in damaged if path.is_file()] == before


def test_the_readme_holds_no_markup_of_users() -> None:
    column = "<b>SEX</b>|x"
    values = ["<script>alert(1)</script>", "[a](http://b)", ""]
    written = [
        replace(c, row={column: v}) for c, v in zip(planned_cases(*"abc"), values, strict=True)
    ]
    text = cohort_readme(report(written, source="<img src=x>", run="a`b<script>", columns=[column]))
    outside = re.sub(r"(`+) .*? \1|`[^`]*`", "", text)
    assert "<" not in outside and "](" not in outside and "(not known)" in text
    assert all(line.count("|") == 3 for line in text.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "a\\b", "a\x07", "x" * 300])
def test_names_of_new_cases_are_those_of_files(
    name: str, trained_run: TrainedRun, tmp_path: Path
) -> None:
    table = tmp_path / "rows.csv"
    table.write_text(f"File Name,DIAGNOSIS\n{name},IPF\n")
    with pytest.raises(UserError, match="cannot be the name of a file"):
        synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", "--table", str(table)))
    assert not (tmp_path / "out").exists()


def test_processes_share_the_cases(
    synthetic_cohort: Path, trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process finds the first half and writes the table: the same cohort as by one."""
    out = tmp_path / "shared"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        synthesis.synthesise_cohort(
            options(trained_run, out, "--balance", "DIAGNOSIS", "--n", "4", "--rows", "changed")
        )
        assert (out / "clinical.csv").exists() == (rank == "1")
    for path in sorted(synthetic_cohort.rglob("*.nii.gz")):
        assert path.read_bytes() == (out / path.relative_to(synthetic_cohort)).read_bytes()
    assert (synthetic_cohort / "clinical.csv").read_bytes() == (out / "clinical.csv").read_bytes()


def test_copies_of_the_own_scan_are_found_whether_deformed_or_not(trained_run: TrainedRun) -> None:
    real = load_cohort(DataOptions(dataroot=str(trained_run.cohort)))
    copies = CopySearch.from_cases(real.split("train"), (1, 2))
    case = real.split("train")[0]
    assert case.image is not None
    hu, mask = load_volume(case.image), load_volume(case.mask)
    deformed = deform_plausibly(mask, DeformOptions(), [1], case.mask)
    labels = Volume(deformed.labels, mask.affine)
    moved = Volume(apply_deformation(hu, deformed.deformation, order=1), hu.affine)
    copy = SyntheticVolume(moved, labels, case, deformed.deformation)
    assert copies.distance_to_source(copy) < 0.01
    assert copies.with_same_mask_threshold([0.5] * 4) is copies  # too few to tell
    search = copies.with_same_mask_threshold([0.4, 0.5, 0.6, 0.5, 0.45, 0.55])
    assert 0 < search.same_mask_threshold < 0.4
    assert search(copy).case == f"{case.id}, deformed" and search(copy).copied
    still = DeformOptions(elastic_mm=0, turn=0, scale=0)
    identity = random_deformation(mask, still, np.random.default_rng(0))
    assert search(SyntheticVolume(hu, mask, case, identity)).copied
    noise = np.random.default_rng(0).normal(-850, 40, hu.shape).astype(np.float32)
    assert not search(replace(copy, hu=Volume(noise, hu.affine))).copied


def test_scans_of_one_patient_are_no_reference_for_copies(cohort_dir: Path) -> None:
    """They resemble each other; as a reference they would hide the copies of all scans."""
    scans = load_cohort(DataOptions(dataroot=str(cohort_dir))).cases
    twice = [replace(case, id=f"{case.id} again") for case in scans]
    rows = [{**case.row, "P": case.id} for case in scans]
    pairs = [replace(c, row=r) for c, r in zip((*scans, *twice), rows + rows, strict=True)]
    usual = CopySearch.from_cases(scans, (1, 2)).check.image
    known = CopySearch.from_cases(pairs, (1, 2), "P").check.image
    assert min(known.reference) > 0.5 * min(usual.reference) and known.threshold > 0
    assert max(CopySearch.from_cases(pairs, (1, 2)).check.image.reference) < 0.01


def test_a_case_left_out_after_a_copy_leaves_no_mask(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask without its scan would make the cohort one that cannot be read."""
    monkeypatch.setattr(CopySearch, "__call__", lambda *_: NearestScan("a", 0.0, 0.5))

    def no_second_mask(planned: PlannedCase, number: int) -> NewMask:
        new = given_mask(planned, number)
        return replace(new, problems=("label 1 is gone",)) if number else new

    monkeypatch.setattr(synthesis, "given_mask", no_second_mask)
    words = ("--balance", "SEX", "--n", "1", "--masks", "given")
    out = synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", *words))
    assert pd.read_csv(out / "copies.csv")["reason"].str.startswith("no plausible mask").all()
    assert not list((out / "gtlung").glob("*.nii.gz"))


def test_copies_are_drawn_again_and_left_out(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = NearestScan("phantom_001", 0.0, 0.5)
    monkeypatch.setattr(CopySearch, "__call__", lambda *_: nearest)
    out = synthesis.synthesise_cohort(
        options(trained_run, tmp_path / "out", "--balance", "SEX", "--n", "2", "--redraws", "1")
    )
    records = [json.loads(p.read_text()) for p in sorted((out / "records").iterdir())]
    assert [(r["left_out"], r["redrawn"]) for r in records] == [(True, 1), (True, 1)]
    assert not list((out / "gtlung").glob("*.nii.gz"))
    assert "2 cases left out" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--balance", "DIAGNOSIS"), "--n is 0"),
        (("--n", "4"), "one of --balance COLUMN, --vary_text"),
        (("--balance", "Mapping ID", "--n", "4"), "9 different values, more like a measurement"),
        (("--balance", "HEIGHT", "--n", "4"), "no column 'HEIGHT'"),
    ],
)
def test_bad_flags_write_nothing(
    trained_run: TrainedRun, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_the_program_ends_with_one_message(trained_run: TrainedRun, tmp_path: Path) -> None:
    words = (
        "--dataroot",
        str(trained_run.cohort),
        *trained_run.flags(),
        "--out",
        str(tmp_path / "o"),
    )
    refused(command("scripts/expand.py", *words), "--balance COLUMN")

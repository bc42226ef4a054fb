"""Runs that are continued with other data or options than they began with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from data.fingerprints import data_changes, data_record
from data.load_cohort import load_cohort
from data.text.prompts import cohort_prompts, load_template
from options.base_options import DataOptions
from options.parser import from_dict
from options.train_options import TrainOptions
from pipelines.run_cohort import load_run_cohort
from tests.atlas_run import discover, table
from tests.commands import Outcome, TrainedRun, command, files, kept, refused, train
from util.training import runs


@pytest.fixture()
def run(trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path) -> TrainedRun:
    """A copy of the trained run whose cohort may be changed."""
    copy = Path(shutil.copytree(trained_run.checkpoints, tmp_path / "checkpoints"))
    return TrainedRun(copy, trained_run.name, cohort_copy)


def go_on(run: TrainedRun, *words: str | Path) -> Outcome:
    flags: list[str | Path] = ["--dataroot", run.cohort, *run.flags(), "--continue_train"]
    return command("train.py", *flags, "--max_steps", "6", *words)


def first_case(cohort: Path) -> str:
    split: list[str] = json.loads((cohort / "splits.json").read_text())["train"]
    return split[0]


def change_volume(path: Path) -> None:
    """Change one voxel, and give the file its size and time of change back."""
    before = path.stat()
    image = nib.load(path)
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] = 1 if "gtlung" in str(path) else -900
    nib.save(type(image)(voxels, image.affine, image.header), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_table(cohort: Path, age: str = "33") -> None:
    table = cohort / "clinical.csv"
    lines = table.read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if line.startswith(first_case(cohort)))
    place = lines[0].split(",").index("AGE")
    cells = lines[number].split(",")
    cells[place] = age
    lines[number] = ",".join(cells)
    table.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda root: change_volume(root / "img" / f"{first_case(root)}.nii.gz"), "scans of"),
        (lambda root: change_volume(root / "gtlung" / f"{first_case(root)}.nii.gz"), "masks of"),
        (change_table, "table rows or prompts of"),
    ],
    ids=["scan", "mask", "row"],
)
def test_changed_data_stop_a_continued_run(
    change: Callable[[Path], None], part: str, run: TrainedRun
) -> None:
    before = kept(run.folder)
    change(run.cohort)
    case = first_case(run.cohort)
    refused(go_on(run), "not those that the run was trained with", part, case, "--accept_changes")
    assert kept(run.folder) == before
    done = go_on(run, "--accept_changes")
    assert done.code == 0 and "are accepted" in done.text, done.text
    state = json.loads((run.folder / "latest" / "state.json").read_text())
    assert part in state["data"]["accepted"]["after step 4"]
    assert part in (run.folder / "web" / "index.html").read_text()
    assert go_on(run, "--max_steps", "7").code == 0  # the new data are now the run's
    change_table(run.cohort, "34")
    refused(go_on(run), "table rows or prompts of", case)  # accepted were the others


def test_refits_and_atlas_on_changed_data(run: TrainedRun, tmp_path: Path) -> None:
    """Nothing is trained on other data than the run; an atlas without refits has a caution."""
    words = ("--columns", "SEX", "--split", "test")
    assert discover(run, tmp_path / "before", *words, cohort=run.cohort).code == 0
    assert "changed data" not in set(table(tmp_path / "before", "cautions")["kind"])
    change_table(run.cohort)
    change_volume(run.cohort / "gtlung" / f"{first_case(run.cohort)}.nii.gz")
    told = ("masks of", "table rows or prompts of", first_case(run.cohort), "restore the data")
    flags = ("--dataroot", str(run.cohort), *run.flags(), "--refits", "1")
    refused(command("scripts/refit.py", *flags), *told)
    refused(discover(run, tmp_path / "with", *words, "--refits", "1", cohort=run.cohort), *told)
    assert not (tmp_path / "with").exists() and not list(run.folder.glob("refits/*"))
    done = discover(run, tmp_path / "after", *words, cohort=run.cohort)
    assert done.code == 0, done.text
    cautions = table(tmp_path / "after", "cautions").set_index("kind")["text"]
    assert first_case(run.cohort) in cautions["changed data"]


def test_every_script_names_what_changed(
    run: TrainedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """test.py, expand.py, find_anomalies.py and build_atlas.py load a run's cohort by this."""
    saved = from_dict(TrainOptions, runs.read_options(run.folder), "options.json").data
    data = replace(saved, dataroot=str(run.cohort))

    def warnings_of(root: Path) -> str:
        caplog.clear()
        load_run_cohort(run.folder, data, str(root), 0, need_images=False)
        return "\n".join(text for text in caplog.messages if "changed since the run" in text)

    assert warnings_of(run.cohort) == ""
    part = Path(shutil.copytree(run.cohort, tmp_path / "part"))
    for folder in ("img", "gtlung"):  # a copy may lack cases
        (part / folder / f"{first_case(part)}.nii.gz").unlink()
    (part / "splits.json").unlink()
    assert warnings_of(part) == ""
    case = first_case(run.cohort)
    change_table(run.cohort)
    change_volume(run.cohort / "img" / f"{case}.nii.gz")
    assert f"scans of {case}; table rows or prompts of {case}" in warnings_of(run.cohort)
    copy = Path(shutil.copytree(run.cohort, tmp_path / "copy"))
    assert f"scans of {case}" in warnings_of(copy)


def test_other_words_of_the_same_rows_are_a_change(cohort_copy: Path, tmp_path: Path) -> None:
    """The file of a template may be edited between two parts of a training."""
    cohort = load_cohort(DataOptions(dataroot=str(cohort_copy)))
    case = next(case for case in cohort.cases if case.row["AGE"])
    file = tmp_path / "own.yaml"
    records = []
    for wording in ("Patient age: {value}.", "Patient age: {value}.", "Aged {value}."):
        file.write_text(f'columns: {{AGE: {{kind: number, phrase: "{wording}"}}}}')
        template = load_template(str(file), cohort.columns)
        prompts = cohort_prompts(cohort, template)
        records.append(data_record(cohort, [case], template, prompts, None))
    first, same, other = records
    assert data_changes(first, same) == []
    assert data_changes(first, other) == [f"the words of the rows of {case.id} (template)"]
    older = {name: first[name] for name in ("files", "rows")}
    assert data_changes(older, other) == []


def test_a_moved_cohort_is_no_change(run: TrainedRun, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(run.cohort, tmp_path / "moved"))
    done = go_on(TrainedRun(run.checkpoints, run.name, moved))
    assert done.code == 0, done.text


@pytest.mark.parametrize(
    "words",
    [("--hu_window", "-900,400"), ("--spacing", "4,4,4"), ("--seed", "7"), ("--lung_labels", "1")],
    ids=lambda words: words[0],
)
def test_options_that_a_run_is_continued_with_as_it_began(
    words: tuple[str, str], run: TrainedRun
) -> None:
    before = files(run.folder / "latest")
    refused(go_on(run, *words), words[0], "was", words[1], "--accept_changes")
    assert files(run.folder / "latest") == before
    assert json.loads((run.folder / "options.json").read_text())["run"]["seed"] == 0


def test_an_older_checkpoint_goes_on_with_a_warning(run: TrainedRun) -> None:
    path = run.folder / "latest" / "state.json"
    state = json.loads(path.read_text())
    for name in ("data", "digest"):
        state.pop(name, None)
    path.write_text(json.dumps(state))
    refused(go_on(run, "--seed", "3"), "--seed was 0 and is 3")
    done = go_on(run)
    assert done.code == 0 and "did not record its data" in done.text, done.text
    assert json.loads(path.read_text())["data"]["rows"]


def test_detached_voxels_are_found_changed(cohort_copy: Path, tmp_path: Path) -> None:
    """Only the .raw changes; header, size and time of the header stay."""
    case = first_case(cohort_copy)
    source = cohort_copy / "img" / f"{case}.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(source)), str(source.with_name(f"{case}.mhd")))
    source.unlink()
    done = train(cohort_copy, tmp_path / "ck")
    assert done.code == 0, done.text
    raw = next((cohort_copy / "img").glob(f"{case}.*raw"))
    content = bytearray(raw.read_bytes())
    content[-2:] = b"\x01\x00"
    raw.write_bytes(content)
    run = TrainedRun(tmp_path / "ck", "new", cohort_copy)
    refused(go_on(run), "scans of", case)

"""Lesions from mask to effect: training on a label, and a mask with a new lesion."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from data.volumes import load_volume
from options.anomaly_options import AnomalyCommand
from options.evaluate_options import EvaluateOptions
from options.parser import parse
from pipelines.anomaly.run import ExpectationModel, open_runs
from pipelines.evaluation.inputs import data_options
from pipelines.evaluation.volume_measurer import ComparisonGrid
from tests.commands import TINY, command, refused
from util.files import read_csv

LESIONS = ("--template", "lesions", "--lesion_labels", "6")
GROUND_GLASS_HU = 300
LESION_CASES = (1, 3)  # of the training split


def add_lesions(cohort: Path) -> None:
    """Put ground glass into the right lung of some cases, in mask, scan and table."""
    table = pd.read_csv(cohort / "clinical.csv", dtype=str, keep_default_na=False)
    rows = []
    for number, name in enumerate(table["File Name"]):
        row = {"File Name": name, "LESION": "none", "LESION SIZE": "", "LESION PLACE": ""}
        file = f"{name.removesuffix('.nii.gz')}.nii.gz"
        mask = cohort / "gtlung" / file
        if number in LESION_CASES:
            out = cohort / f"new_{file}"
            place = ("--place", "right", "--diameter", "50", "--kind", "ground_glass")
            done = command("scripts/insert_lesion.py", mask, out, *place, "--seed", str(number))
            assert done.code == 0, done.text
            row = {**read_csv(cohort / f"new_{name}.csv")[0], "File Name": name}
            out.replace(mask)
            (cohort / f"new_{name}.csv").unlink()
            scan = nib.load(cohort / "img" / file)
            hu = np.asarray(scan.dataobj).astype(np.int16)
            hu[np.asarray(nib.load(mask).dataobj) == 6] += GROUND_GLASS_HU
            nib.save(nib.Nifti1Image(hu, scan.affine), cohort / "img" / file)
        rows.append(row)
    pd.DataFrame(rows).to_csv(cohort / "clinical.csv", index=False)


def test_an_inserted_lesion_has_effects_of_its_own(cohort_copy: Path, tmp_path: Path) -> None:
    add_lesions(cohort_copy)
    checkpoints = tmp_path / "checkpoints"
    words = ("--dataroot", cohort_copy, "--checkpoints_dir", checkpoints, "--name", "lesions")
    done = command("train.py", *words, *TINY, *LESIONS)
    assert done.code == 0, done.text
    mask = next(
        path
        for path in sorted((cohort_copy / "gtlung").iterdir())
        if 6 not in np.unique(nib.load(path).dataobj)
    )
    out = tmp_path / "inserted.nii.gz"
    place = ("--place", "left", "--diameter", "50", "--kind", "ground_glass")
    assert command("scripts/insert_lesion.py", mask, out, *place).code == 0
    place_words = pd.read_csv(tmp_path / "inserted.csv")["LESION PLACE"].item()
    settings = ("--set", "LESION SIZE=50", "--set", f"LESION PLACE={place_words}")
    run = ("--name", "lesions", "--checkpoints_dir", checkpoints, "--results_dir", tmp_path / "r")
    vary = ("--vary", "LESION=none,ground-glass opacity")
    done = command("test.py", *run, "--mask", out, *settings, *vary)
    assert done.code == 0, done.text
    (folder,) = (tmp_path / "r" / "lesions").iterdir()
    effects = pd.read_csv(folder / "effects.csv").set_index("region")
    voxels = int((np.asarray(nib.load(out).dataobj) == 6).sum())
    assert effects.loc["label_6", "voxels"] == voxels > 10
    lungs = np.isin(np.asarray(nib.load(out).dataobj), (1, 2, 6)).sum()
    assert effects.loc["lungs", "voxels"] == lungs
    volumes = pd.read_csv(folder / "volumes.csv")
    own = np.asarray(nib.load(folder / volumes.query("kind == 'own'")["file"].item()).dataobj)
    metrics = pd.read_csv(folder / "metrics.csv").set_index("metric")["value"]
    inside = np.isin(np.asarray(nib.load(out).dataobj), (1, 2, 6))
    assert metrics["mean_lung_attenuation_hu"] == pytest.approx(own[inside].mean(), abs=0.1)
    prompts = volumes["prompt"]
    assert prompts.str.contains("Lesion: ground-glass opacity").any()
    assert prompts.str.contains("No lesion").any()
    absent = prompts[prompts.str.contains("No lesion")]
    assert not absent.str.contains("Lesion size").any()  # what the value rules out leaves the text
    assert "lesion (label 6)" in (folder / "index.html").read_text()
    sets = ["--real", str(cohort_copy), "--synthetic", str(folder), "--out", str(tmp_path / "e")]
    data = data_options(parse(EvaluateOptions, "", sets))
    assert data.lesion_labels == (6,)
    grid = ComparisonGrid(4.0, (9.0, 9.0, 9.0), (-1000, 400), 2, lesion_labels=data.lesion_labels)
    labels = grid.load_labels(out, load_volume(out))
    assert set(np.unique(labels)) == {0, 1, 2, 3} and np.isin(labels, (1, 2)).sum() == lungs
    search = parse(AnomalyCommand, "", [*map(str, words), "--samples", "2", "--gpu_ids", "-1"])
    expectation = ExpectationModel(search, open_runs(search), str(cohort_copy), tmp_path)
    case = next(c for c in expectation.cohort.cases if 6 in load_volume(c.mask).array)
    judged = np.isin(load_volume(case.mask).array, (1, 2, 6))
    assert np.array_equal(expectation(case).lungs, judged)
    refused(
        command("train.py", *words, *TINY, "--overwrite", "--lesion_labels", "1"),
        "--lesion_labels holds 1",
    )

"""The body as a label through the commands: training, resume, tests of cohorts and single masks,
the library, synthetic cohorts.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

import mask2ct
from data.body import BODY_FILE, surrounding_label
from models.inference import load_run
from options.test_options import ModelOptions
from tests.commands import TrainedRun, command, train

VARY = ("--vary", "SMOKING HISTORY=Never smoker,Current smoker")


def options_of(run: TrainedRun) -> dict[str, dict[str, object]]:
    options: dict[str, dict[str, object]] = json.loads((run.folder / "options.json").read_text())
    return options


def test_a_run_keeps_the_label_that_auto_chose(trained_run: TrainedRun) -> None:
    assert options_of(trained_run)["data"]["body_label"] == "4"
    state = json.loads((trained_run.folder / "latest" / "state.json").read_text())
    assert state["labels"] == [0, 1, 2, 3, 4]
    assert state["data"]["options"]["body_label"] == "4"
    assert (trained_run.folder / BODY_FILE).is_file()


def test_a_run_without_body_has_no_shape(cohort_dir: Path, tmp_path: Path) -> None:
    done = train(cohort_dir, tmp_path, "--body_label", "none", "--max_steps", "1")
    assert done.code == 0, done.text
    run = TrainedRun(tmp_path, "new", cohort_dir)
    assert options_of(run)["data"]["body_label"] == "none"
    assert not (run.folder / BODY_FILE).exists()


def test_the_label_is_fixed_when_a_run_continues(trained_run: TrainedRun, tmp_path: Path) -> None:
    copy = TrainedRun(
        Path(shutil.copytree(trained_run.checkpoints, tmp_path / "runs")),
        trained_run.name,
        trained_run.cohort,
    )
    words = (*copy.flags(), "--continue_train", "--max_steps", "6")
    refused = command("train.py", *words, "--body_label", "none")
    assert refused.code == 2 and "--body_label was 4 and is none" in refused.text
    for choice in ((), ("--body_label", "auto")):
        done = command("train.py", *words, *choice)
        assert done.code == 0, done.text
        assert "Label 4 is the body" in done.text
        assert options_of(copy)["data"]["body_label"] == "4"


def test_a_cohort_is_tested_with_the_bodies_of_its_scans(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    words: Sequence[str | Path] = (
        "--dataroot",
        trained_run.cohort,
        *trained_run.flags(),
        "--results_dir",
        tmp_path,
    )
    done = command("test.py", *words, "--how_many", "1", *VARY)
    assert done.code == 0, done.text
    effects = next(tmp_path.rglob("effects.csv")).read_text()
    assert "label_4" in effects
    assert "mean body" not in next(tmp_path.rglob("index.html")).read_text()


def test_masks_alone_get_a_drawn_body_and_the_page_says_so(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    shutil.rmtree(cohort_copy / "img")
    words: Sequence[str | Path] = ("--dataroot", cohort_copy, *trained_run.flags())
    results = tmp_path / "results"
    done = command("test.py", *words, "--results_dir", results, "--how_many", "1", *VARY)
    assert done.code == 0, done.text
    assert "the mean body of the training cases is drawn" in done.text
    assert "label_4" in next(results.rglob("effects.csv")).read_text()
    pages = [path.read_text() for path in results.rglob("*.html")]
    assert any("the mean body of the training cases is drawn" in " ".join(p.split()) for p in pages)


def test_a_single_mask_gets_a_drawn_body(trained_run: TrainedRun, tmp_path: Path) -> None:
    mask = next((trained_run.cohort / "gtlung").iterdir())
    out = tmp_path / "ct.nii.gz"
    done = command("test.py", "--mask", mask, *trained_run.flags(), "--out", out)
    assert done.code == 0, done.text
    assert "mean body" in done.text
    volume = mask2ct.load(trained_run.folder, gpu_ids="-1").generate(mask)
    assert np.allclose(volume.hu, np.asarray(nib.load(out).dataobj), atol=0.5)


def test_a_run_whose_shape_is_lost_says_what_to_do(trained_run: TrainedRun, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(trained_run.checkpoints, tmp_path / "runs"))
    (runs / trained_run.name / BODY_FILE).unlink()
    copy = TrainedRun(runs, trained_run.name, trained_run.cohort)
    mask = next((trained_run.cohort / "gtlung").iterdir())
    done = command("test.py", "--mask", mask, *copy.flags(), "--out", tmp_path / "ct.nii.gz")
    assert done.code == 2 and BODY_FILE in done.text and "Restore that file" in done.text
    assert not (tmp_path / "ct.nii.gz").exists()


def test_synthetic_masks_hold_the_body(trained_run: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "synthetic"
    words: Sequence[str | Path] = (
        "--out",
        out,
        *trained_run.flags(),
        "--dataroot",
        trained_run.cohort,
    )
    done = command(
        "scripts/expand.py", *words, "--balance", "DIAGNOSIS", "--n", "2", "--rows", "changed"
    )
    assert done.code == 0, done.text
    masks = sorted((out / "gtlung").iterdir())
    assert masks
    for mask in masks:
        assert surrounding_label(np.asarray(nib.load(mask).dataobj), (1, 2)) == 4


def test_the_body_is_the_last_channel_of_the_network(trained_run: TrainedRun) -> None:
    loaded = load_run(
        ModelOptions(
            name=trained_run.name, checkpoints_dir=str(trained_run.checkpoints), gpu_ids="-1"
        )
    )
    assert loaded.options.data.body_channel(len(loaded.labels)) == 4

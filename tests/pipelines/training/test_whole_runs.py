"""Training as a user does it, on a few small phantoms: whole runs, going on, dry runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file

from tests.commands import TINY, TrainedRun, command, refused, train


def test_training_leaves_a_whole_run(trained_run: TrainedRun) -> None:
    folder = trained_run.folder
    options = json.loads((folder / "options.json").read_text())
    assert options["optim"]["max_steps"] == 4 and options["patch"]["patch_size"] == [16, 16, 8]
    state = json.loads((folder / "latest" / "state.json").read_text())
    assert state["step"] == 4 and state["labels"] == [0, 1, 2, 3, 4]
    assert {"G", "D", "average", "optimizer_G", "optimizer_D"} <= set(state["parts"])
    assert all((folder / "latest" / f"{part}.safetensors").is_file() for part in state["parts"])
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    measured = {"val_lung_mae_hu", "val_lung_detail_ratio", "val_lung_noise_correlation"}
    assert any(measured <= set(line) for line in lines)
    assert any("loss_G_quantile" in line for line in lines)
    assert (folder / "web" / "index.html").is_file() and (folder / "splits.json").is_file()


def test_a_finished_run_that_goes_on_is_left_as_it_is(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    shutil.copytree(trained_run.checkpoints, tmp_path / "ck")
    weights = tmp_path / "ck" / trained_run.name / "latest" / "G.safetensors"
    before = weights.read_bytes()
    done = command(
        "train.py",
        "--name",
        trained_run.name,
        "--checkpoints_dir",
        tmp_path / "ck",
        "--continue_train",
    )
    assert done.code == 0 and "4 steps" in done.text
    assert weights.read_bytes() == before


def test_a_run_goes_on_with_its_own_splits(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """Cases that joined the folder since then must not push test cases into training."""
    (cohort_copy / "splits.json").unlink()
    flags = ("--dataroot", cohort_copy, "--name", "r", "--checkpoints_dir", tmp_path / "ck")
    assert command("train.py", *flags, *TINY).code == 0
    before = (tmp_path / "ck" / "r" / "splits.json").read_text()
    for kind in ("img", "gtlung"):
        shutil.copy(
            cohort_copy / kind / "phantom_001.nii.gz", cohort_copy / kind / "phantom_000.nii.gz"
        )
    done = command("train.py", *flags, "--continue_train", "--max_steps", "5")
    assert done.code == 0, done.text
    assert (tmp_path / "ck" / "r" / "splits.json").read_text() == before


def test_dry_run_reports_and_writes_nothing(cohort_dir: Path, tmp_path: Path) -> None:
    done = command(
        "train.py",
        "--dataroot",
        cohort_dir,
        "--name",
        "r",
        "--checkpoints_dir",
        tmp_path / "ck",
        *TINY,
        "--dry_run",
    )
    assert done.code == 0, done.text
    assert (
        "M parameters" in done.text and "GiB" in done.text and "--patch_size 16,16,8" in done.text
    )
    assert re.search(r"On \d+ CPU cores?, a step takes .* s without its data", done.text)
    assert re.search(
        r"about [1-9]\d* \w+(, and v|\. V)alidation \(\d+ times?\) .*[1-9]\d* s", done.text
    )
    assert not (tmp_path / "ck").exists()


def test_words_that_a_run_was_not_trained_with_are_refused(
    run_copy: TrainedRun, tmp_path: Path
) -> None:
    """Its checkpoint holds its words, so that a new file would be left unread."""
    file = tmp_path / "words.yaml"
    file.write_text("SMOKING HISTORY:\n  Never smoker: [has never smoked]\n")
    flags = ("--name", run_copy.name, "--checkpoints_dir", run_copy.checkpoints, "--dry_run")
    done = command("train.py", *flags, "--continue_train", "--paraphrases", file)
    refused(done, f"--paraphrases {file} is not the file", "has never smoked", "test.py")


def test_dry_runs_of_few_steps_and_of_none(
    trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path
) -> None:
    words = ("--max_steps", "1", "--dry_run", "--val_cases", "0")
    assert "a step takes" in train(cohort_dir, tmp_path, *words).text
    flags = ("--name", trained_run.name, "--checkpoints_dir", trained_run.checkpoints)
    done = command("train.py", *flags, "--continue_train", "--dry_run")
    assert done.code == 0 and "No step of" in done.text


def test_coarse_to_fine(trained_run: TrainedRun, cohort_dir: Path) -> None:
    """A run with a local enhancer starts from another's global generator, and keeps it as it is for
    an epoch.
    """
    words = (
        "--n_local_enhancers",
        "1",
        "--load_global",
        trained_run.name,
        "--niter_fix_global",
        "1",
        "--patch_size",
        "16,16,16",
        "--batch_size",
        "3",
        "--max_steps",
        "3",
        "--val_cases",
        "0",
    )
    refused(
        train(cohort_dir, trained_run.checkpoints, *words, name="fine"),
        "--ngf is 4",
        "Give --ngf 2",
    )
    done = train(cohort_dir, trained_run.checkpoints, *words, "--ngf", "2", name="fine")
    assert done.code == 0, done.text
    coarse = load_file(trained_run.folder / "latest" / "average.safetensors")
    fine = load_file(trained_run.checkpoints / "fine" / "latest" / "G.safetensors")
    prefix = "global_generator."
    shared = {k.removeprefix(prefix): v for k, v in fine.items() if k.startswith(prefix)}
    kept = {k.removeprefix(prefix): v for k, v in coarse.items() if k.startswith(prefix)}
    assert shared.keys() == kept.keys() and all(v.equal(kept[k]) for k, v in shared.items())
    assert set(fine) - {f"{prefix}{k}" for k in shared}
    assert "<svg" in (trained_run.checkpoints / "fine" / "web" / "losses_0.svg").read_text()

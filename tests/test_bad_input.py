"""Bad input: exit code 2, one message (file or flag, rule, what came, what to do), and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from torch import Tensor

from tests.commands import ROOT, TINY, Outcome, TrainedRun, command, program
from util import checkpoint


@pytest.fixture()
def cohort(cohort_dir: Path, tmp_path: Path) -> Path:
    """A copy of the cohort, to be spoiled."""
    return Path(shutil.copytree(cohort_dir, tmp_path / "cohort"))


@pytest.fixture()
def run(trained_run: TrainedRun, tmp_path: Path) -> TrainedRun:
    """A copy of the trained run, to be spoiled."""
    copy = shutil.copytree(trained_run.checkpoints, tmp_path / "checkpoints")
    return TrainedRun(Path(copy), trained_run.name, trained_run.cohort)


def refused(done: Outcome, *parts: str) -> None:
    """One message with these parts, for a person, and exit code 2."""
    assert done.code == 2, done.text
    assert "Traceback" not in done.text and done.text.count(" ERROR ") == 1, done.text
    message = done.text.partition(" ERROR ")[2]
    for part in parts:
        assert part in message, message


def train(cohort: Path, checkpoints: Path, *words: str | Path, name: str = "new") -> Outcome:
    return command("train.py", "--dataroot", cohort, "--name", name, "--checkpoints_dir", checkpoints, *TINY, *words)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- the cohort -------------------------------------------------------------------------------------------------------


def no_dataroot(cohort: Path) -> None:
    shutil.rmtree(cohort)


def empty_masks(cohort: Path) -> None:
    shutil.rmtree(cohort / "gtlung")
    (cohort / "gtlung").mkdir()


def empty_images(cohort: Path) -> None:
    shutil.rmtree(cohort / "img")
    (cohort / "img").mkdir()


def no_mask_folder(cohort: Path) -> None:
    shutil.rmtree(cohort / "gtlung")


def truncated(cohort: Path) -> None:
    path = cohort / "img" / "phantom_003.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])


def not_nifti(cohort: Path) -> None:
    (cohort / "gtlung" / "phantom_003.nii.gz").write_text("this is a letter")


def other_grid(cohort: Path) -> None:
    path = cohort / "gtlung" / "phantom_003.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.outer([1, 0, 0, 0], [0, 0, 0, 25])), path)


def other_shape(cohort: Path) -> None:
    path = cohort / "gtlung" / "phantom_003.nii.gz"
    nib.save(nib.load(path).slicer[:-2], path)


def no_key_column(cohort: Path) -> None:
    path = cohort / "clinical.csv"
    path.write_text(path.read_text().replace("File Name", "Scan", 1))


def no_scan(cohort: Path) -> None:
    (cohort / "img" / "phantom_003.nii.gz").unlink()


def half_a_label(cohort: Path) -> None:
    path = cohort / "gtlung" / "phantom_003.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32) * 0.5, image.affine), path)


def normalised(cohort: Path) -> None:
    path = cohort / "img" / "phantom_003.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj, np.float32) / 2000 + 0.5, image.affine), path)


def case_twice(cohort: Path) -> None:
    shutil.copy(cohort / "img" / "phantom_003.nii.gz", cohort / "img" / "phantom_003.nii")


def age_in_words(cohort: Path) -> None:
    path = cohort / "clinical.csv"
    lines = path.read_text().splitlines()
    column = lines[0].split(",").index("AGE")
    row = lines[3].split(",")
    row[column] = "old"
    path.write_text("\n".join([*lines[:3], ",".join(row), *lines[4:]]))


COHORTS: dict[Callable[[Path], None], Sequence[str]] = {
    no_dataroot: ("--dataroot", "does not exist"),
    no_mask_folder: ("--dataroot", "gtlung", "img"),
    empty_masks: ("gtlung is empty", ".nii.gz"),
    empty_images: ("img is empty", ".nii.gz"),
    truncated: ("phantom_003.nii.gz", "truncated", "copy or export it again"),
    not_nifti: ("gtlung/phantom_003.nii.gz", "cannot be read", "export it again"),
    other_grid: ("gtlung/phantom_003.nii.gz", "25 mm", "Resample"),
    other_shape: ("gtlung/phantom_003.nii.gz", "(22, 24, 16)", "(24, 24, 16)"),
    no_key_column: ("clinical.csv", "'File Name'", "Scan", "--key_column"),
    no_scan: ("phantom_003", "no scan", "Add the scans"),
    half_a_label: ("gtlung/phantom_003.nii.gz", "0.5", "label"),
    normalised: ("img/phantom_003.nii.gz", "not in HU", "slope"),
    case_twice: ("phantom_003", "twice"),
    age_in_words: ("phantom_003", "AGE", "'old'"),
}


@pytest.mark.parametrize("spoil", COHORTS, ids=lambda f: f.__name__)
def test_cohorts_that_cannot_be_trained_on(spoil: Callable[[Path], None], cohort: Path, tmp_path: Path) -> None:
    spoil(cohort)
    refused(train(cohort, tmp_path / "ck"), *COHORTS[spoil])
    assert not (tmp_path / "ck").exists()


@pytest.mark.parametrize("spoil", [no_dataroot, empty_masks, not_nifti, no_key_column], ids=lambda f: f.__name__)
def test_cohorts_that_cannot_be_tested_on(
    spoil: Callable[[Path], None], trained_run: TrainedRun, cohort: Path, tmp_path: Path,
) -> None:
    spoil(cohort)
    refused(trained_run.test(tmp_path / "res", cohort=cohort), *COHORTS[spoil])
    assert not (tmp_path / "res").exists()


def test_a_label_that_the_run_does_not_know(run: TrainedRun, cohort: Path, tmp_path: Path) -> None:
    path = cohort / "gtlung" / "phantom_011.nii.gz"  # the second of the test cases
    image = nib.load(path)
    array = np.asarray(image.dataobj).copy()
    array[3, 4, 5] = 7
    nib.save(nib.Nifti1Image(array, image.affine), path)
    parts = ("label 7", str(path), "knows 0, 1, 2, 3", "Relabel")
    refused(run.test(tmp_path / "res", cohort=cohort), *parts)
    assert not (tmp_path / "res").exists()
    refused(command("test.py", "--mask", path, "--out", tmp_path / "o.nii.gz", *run.flags()), *parts)
    assert not (tmp_path / "o.nii.gz").exists()
    before = files(run.folder)
    refused(command("train.py", *run.flags(), "--continue_train", "--dataroot", cohort, "--max_steps", "6"), *parts)
    assert {k: v for k, v in files(run.folder).items() if "checks.json" not in k} == before


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "parts"), [
    (["--patch_size", "20,16,9"], ["--patch_size", "20,16,9", "multiple of 8", "--patch_size 16,16,8"]),
    (["--patch_size", "16,16"], ["--patch_size", "3 values"]),
    (["--name", "../elsewhere"], ["--name", "../elsewhere", "path separators"]),
    (["--name", "a/b"], ["--name", "a/b", "path separators"]),
    (["--gpu_ids", "97"], ["--gpu_ids", "97", "--gpu_ids -1"]),
    (["--gpu_ids", "one"], ["--gpu_ids", "'one'", "numbers"]),
    (["--template", "aiib99"], ["--template", "aiib99", "aiib23", "osic"]),
    (["--fusion", "glue"], ["--fusion", "glue", "affine"]),
    (["--model", "gan"], ["--model", "gan", "pix2pixhd"]),
    (["--norm", "batchnorm"], ["--norm", "batchnorm", "layer"]),
    (["--hu_window", "400,-1000"], ["--hu_window", "400,-1000", "below"]),
    (["--precision", "fp16", "--gpu_ids", "-1"], ["--precision fp16", "bf16"]),
    (["--val_effect", "SMOKING=a,b"], ["--val_effect", "'SMOKING'", "SMOKING HISTORY"]),
    (["--val_effect", "AGE=young,old"], ["--val_effect", "AGE", "'young'"]),
    (["--val_effect", "AGE=1,2", "--val_effect", "SEX=M,F"], ["--val_effect", "2 times"]),
    (["--load_global", "x", "--n_local_enhancers", "1", "--patch_size", "16,16,16"], ["--load_global x", "no checkpoint"]),
    (["--text_encoder", "medclip:/nowhere/weights.bin"], ["--text_encoder", "/nowhere/weights.bin"]),
    (["--patch", "16,16,16"], ["--patch", "--help"]),
    (["--max_steps", "many"], ["--max_steps", "whole number", "'many'"]),
    (["--lambda_gan", "0", "--lambda_feat", "0", "--lambda_l1", "0"], ["All loss weights (--lambda_gan", "are 0"]),
], ids=lambda value: " ".join(value) if value[0].startswith("--") and len(value) > 1 else "")
def test_flags_of_training(words: list[str], parts: list[str], cohort_dir: Path, tmp_path: Path) -> None:
    refused(train(cohort_dir, tmp_path / "ck", *words), *parts)
    assert not (tmp_path / "ck").exists() and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("words", "parts"), [
    (["--vary", "SMOKING=A,B"], ["--vary", "'SMOKING'", "SMOKING HISTORY"]),
    (["--vary", "AGE"], ["--vary", "'AGE'", "COLUMN=A,B"]),
    (["--vary", "AGE=60"], ["--vary", "'AGE=60'", "COLUMN=A,B"]),
    (["--vary", "AGE=60,60"], ["--vary", "same"]),
    (["--vary", "AGE=60,old"], ["--vary", "AGE", "'old'"]),
    (["--vary", "Mapping ID=P1,P2"], ["--vary", "'Mapping ID'", "identifier"]),
    (["--set", "HEIGHT=180"], ["--set", "'HEIGHT'", "AGE"]),
    (["--which_epoch", "12"], ["12", "no checkpoint", "latest", "--which_epoch"]),
    (["--which_epoch", "../latest"], ["--which_epoch", "../latest"]),
    (["--split", "holdout"], ["--split", "holdout", "train"]),
    (["--tile", "12,12,12"], ["--tile 12", "multiple of 4", "--tile 16"]),
    (["--text_encoder", "/nowhere/clip"], ["--text_encoder /nowhere/clip", "local folder", "hf download", "pretrain_clip"]),
], ids=lambda value: " ".join(value) if value[0].startswith("--") and len(value) > 1 else "")
def test_flags_of_testing(words: list[str], parts: list[str], trained_run: TrainedRun, tmp_path: Path) -> None:
    refused(trained_run.test(tmp_path / "res", *words), *parts)
    assert not (tmp_path / "res").exists()


def test_a_value_never_seen_is_a_warning_with_the_known_ones(trained_run: TrainedRun, tmp_path: Path) -> None:
    done = trained_run.test(tmp_path, "--vary", "DIAGNOSIS=IPF,Asthma", "--vary", "AGE=60,120", "--how_many", "1")
    assert done.code == 0
    assert "WARNING --vary: no case has DIAGNOSIS=Asthma" in done.text and "CTD-ILD, HP, IPF" in done.text
    assert "no case has AGE=120. Known: " in done.text


def test_a_mask_and_what_goes_with_it(trained_run: TrainedRun, cohort_dir: Path, tmp_path: Path) -> None:
    mask, flags = str(cohort_dir / "gtlung" / "phantom_001.nii.gz"), trained_run.flags()
    refused(command("test.py", *flags), "--dataroot", "--mask")
    refused(command("test.py", "--mask", mask, "--dataroot", cohort_dir, *flags), "--dataroot", "--mask")
    refused(command("test.py", "--mask", mask, *flags), "--out", ".nii.gz")
    refused(command("test.py", "--mask", mask, "--out", tmp_path / "o.png", *flags), "--out", "o.png", ".nii.gz")
    refused(command("test.py", "--mask", tmp_path / "no.nii.gz", "--out", tmp_path / "o.nii.gz", *flags), "no.nii.gz")
    refused(command("test.py", "--mask", mask, "--set", "AGE=60", "--out", tmp_path / "o.nii.gz", *flags), "--set")
    assert not list(tmp_path.iterdir())


# --- runs that are there ----------------------------------------------------------------------------------------------


def test_a_run_is_not_replaced_unasked(run: TrainedRun, cohort_dir: Path) -> None:
    before = files(run.checkpoints)
    for more in ((), ("--dry_run",)):
        refused(train(cohort_dir, run.checkpoints, *more, name=run.name), "--name", "exists", "--continue_train",
                "--overwrite")
    assert files(run.checkpoints) == before


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_a_folder_that_is_no_run_is_never_replaced(words: list[str], cohort_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("all my work")
    refused(train(cohort_dir, tmp_path, *words, name="thesis"), "--name", "options.json", "by hand")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "all my work"


def test_bad_input_with_overwrite_leaves_the_old_run(run: TrainedRun, cohort: Path) -> None:
    before = files(run.checkpoints)
    truncated(cohort)
    refused(train(cohort, run.checkpoints, "--overwrite", name=run.name), "truncated")
    refused(train(run.cohort, run.checkpoints, "--overwrite", "--val_effect", "HEIGHT=1,2", name=run.name), "HEIGHT")
    assert files(run.checkpoints) == before


def test_a_run_that_is_not_there(tmp_path: Path, cohort_dir: Path, run: TrainedRun) -> None:
    refused(train(cohort_dir, run.checkpoints, "--continue_train"), "--name", "there is no run", run.name)
    refused(command("test.py", "--dataroot", cohort_dir, "--name", "x", "--checkpoints_dir", run.checkpoints), "tiny")
    shutil.rmtree(run.folder / "latest")
    refused(command("train.py", *run.flags(), "--continue_train"), "latest", "no checkpoint", "--overwrite")


def test_another_architecture(run: TrainedRun, tmp_path: Path) -> None:
    before = files(run.folder)
    refused(command("train.py", *run.flags(), "--continue_train", "--ngf", "6", "--max_steps", "6"),
            "G.safetensors", "architecture", "options.json")
    assert {k: v for k, v in files(run.folder).items() if "checks.json" not in k} == before
    options = json.loads(before["options.json"])
    options["generator"]["n_blocks_global"] = 3
    (run.folder / "options.json").write_text(json.dumps(options))
    refused(run.test(tmp_path / "res"), "average.safetensors", "architecture", "missing")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("name", "spoil"), [
    ("latest/G.safetensors", cut), ("latest/G.safetensors", Path.unlink), ("latest/optimizer_G.safetensors", cut),
    ("latest/state.json", cut), ("latest/state.json", lambda path: path.write_text("[]")), ("options.json", cut),
], ids=str)
def test_a_damaged_checkpoint(name: str, spoil: Callable[[Path], None], run: TrainedRun, tmp_path: Path) -> None:
    spoil(run.folder / name)
    refused(command("train.py", *run.flags(), "--continue_train", "--max_steps", "6"), Path(name).name)
    if "optimizer" not in name:
        spoiled = "latest/average.safetensors" if "G.s" in name else name
        if spoiled != name:
            spoil(run.folder / spoiled)
        refused(run.test(tmp_path / "res"), Path(spoiled).name)
        assert not (tmp_path / "res").exists()


@pytest.fixture(scope="module")
def clip(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes small CLIPs of the cohort that differ by their seed."""
    made: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in made:
            made[seed] = tmp_path_factory.mktemp("clip") / f"clip{seed}"
            done = command("scripts/pretrain_clip.py", "--dataroot", cohort_dir, "--template", "aiib23", "--out", made[seed],
                           "--clip_steps", "2", "--clip_size", "16,16,16", "--seed", str(seed))
            assert done.code == 0, done.text
        return made[seed]

    return make


def test_another_text_encoder(clip: Callable[[int], Path], cohort_dir: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "ck"
    done = train(cohort_dir, checkpoints, "--text_encoder", clip(0), "--max_steps", "2")
    assert done.code == 0, done.text
    run = TrainedRun(checkpoints, "new", cohort_dir)
    moved = shutil.copytree(clip(0), tmp_path / "moved")
    assert run.test(tmp_path / "ok", "--text_encoder", str(moved), "--how_many", "1").code == 0
    parts = ("--text_encoder", str(clip(1)), "not the encoder that the run was trained with", "sha256")
    refused(run.test(tmp_path / "res", "--text_encoder", str(clip(1))), *parts)
    refused(run.test(tmp_path / "res", "--text_encoder", "table"), "--text_encoder table", "trained with")
    assert not (tmp_path / "res").exists()
    before = files(run.folder)
    refused(command("train.py", *run.flags(), "--continue_train", "--max_steps", "4", "--text_encoder", clip(1)), *parts)
    assert {k: v for k, v in files(run.folder).items() if "checks.json" not in k} == before


# --- a full disk ------------------------------------------------------------------------------------------------------


def test_no_space_for_a_checkpoint(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(run.folder / "latest")
    write = checkpoint.save_file

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        write(tensors, path)
        if path.name.startswith("optimizer"):
            cut(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    going_on = ("train.py", *run.flags(), "--continue_train", "--max_steps", "6", "--save_latest_freq", "1")
    refused(command(*going_on), "latest", "no space", "--continue_train")
    assert files(run.folder / "latest") == before
    assert not [p for p in run.folder.iterdir() if "writing" in p.name]
    monkeypatch.undo()
    done = command(*going_on)
    assert done.code == 0 and json.loads((run.folder / "latest" / "state.json").read_text())["step"] == 6


def test_no_space_in_a_process_of_its_own(run: TrainedRun) -> None:
    """The operating system refuses files above a size, as a full disk refuses them, wherever they are written."""
    before = files(run.folder / "latest")
    limit = max(len(content) for name, content in before.items() if name.startswith("optimizer")) - 1000

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [sys.executable, "train.py", *run.flags(), "--continue_train", "--max_steps", "5"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files, timeout=300)
    refused(Outcome(done.returncode, done.stderr), "latest", "previous one is untouched")
    assert files(run.folder / "latest") == before


def test_no_space_for_the_log(run: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from util.runs import RunLog

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunLog, "write", full)
    done = command("train.py", *run.flags(), "--continue_train", "--max_steps", "6", "--log_freq", "1")
    refused(done, "No space left", "make room")


# --- as programs of their own -----------------------------------------------------------------------------------------

PROGRAMS: dict[tuple[str, ...], Sequence[str]] = {
    ("train.py", "--dataroot", "{cohort}", "--name", "r", "--checkpoints_dir", "{tmp}/ck", *TINY): COHORTS[other_grid],
    ("train.py", "--name", "a/b", "--dataroot", "."): ("--name", "'a/b'", "path separators"),
    ("train.py", "--name", "r", "--dataroot", ".", "--patch_size", "30,30,30"): ("--patch_size 32,32,32",),
    ("test.py", "--name", "r", "--dataroot", ".", "--checkpoints_dir", "{tmp}"): ("there is no run", "Runs in"),
    ("scripts/pretrain_clip.py", "--dataroot", "/nowhere", "--out", "{tmp}/clip"): ("--dataroot /nowhere",),
    ("scripts/make_phantoms.py", "{tmp}/phantoms", "--cases", "3"): ("--cases is 3", "11"),
}


def test_programs(cohort: Path, tmp_path: Path) -> None:
    """Their start takes seconds, so they run side by side."""
    other_grid(cohort)
    out = tmp_path / "out"
    out.mkdir()
    filled = [[w.replace("{tmp}", str(out)).replace("{cohort}", str(cohort)) for w in words] for words in PROGRAMS]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = pool.map(lambda words: program(*words), filled)
        for done, parts in zip(outcomes, PROGRAMS.values(), strict=True):
            refused(done, *parts)
    assert not list(out.iterdir())

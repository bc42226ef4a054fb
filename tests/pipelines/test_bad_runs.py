"""Runs that must not be replaced, damaged or foreign checkpoints, other text encoders, full
disks.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor

from pipelines.training.validation import Validation
from tests.commands import ROOT, Outcome, TrainedRun, command, files, kept, refused, train
from util.locks import locked_folder
from util.training import checkpoint


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# --- runs that are there ---


def test_a_run_is_not_replaced_unasked(run_copy: TrainedRun, cohort_dir: Path) -> None:
    before = files(run_copy.checkpoints)
    for more in ((), ("--dry_run",)):
        refused(
            train(cohort_dir, run_copy.checkpoints, *more, name=run_copy.name),
            "--name",
            "exists",
            "--continue_train",
            "--overwrite",
        )
    assert files(run_copy.checkpoints) == before


@pytest.mark.parametrize("words", [[], ["--overwrite"]])
def test_a_folder_that_is_no_run_is_never_replaced(
    words: list[str], cohort_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("all my work")
    refused(train(cohort_dir, tmp_path, *words, name="thesis"), "--name", "options.json", "by hand")
    assert (tmp_path / "thesis" / "chapter1.txt").read_text() == "all my work"


def test_bad_input_with_overwrite_leaves_the_old_run(
    run_copy: TrainedRun, cohort_copy: Path
) -> None:
    before = kept(run_copy.checkpoints)
    cut(cohort_copy / "img" / "phantom_003.nii.gz")
    refused(
        train(cohort_copy, run_copy.checkpoints, "--overwrite", name=run_copy.name), "truncated"
    )
    words = ("--overwrite", "--val_effect", "HEIGHT=1,2")
    refused(train(run_copy.cohort, run_copy.checkpoints, *words, name=run_copy.name), "HEIGHT")
    assert kept(run_copy.checkpoints) == before


def test_a_run_that_is_not_there(tmp_path: Path, cohort_dir: Path, run_copy: TrainedRun) -> None:
    refused(
        train(cohort_dir, run_copy.checkpoints, "--continue_train"),
        "--name",
        "there is no run",
        run_copy.name,
        "--checkpoints_dir",
    )
    refused(
        command(
            "test.py",
            "--dataroot",
            cohort_dir,
            "--name",
            "x",
            "--checkpoints_dir",
            run_copy.checkpoints,
        ),
        "tiny",
    )
    shutil.rmtree(run_copy.folder / "latest")
    refused(
        command("train.py", *run_copy.flags(), "--continue_train"),
        "latest",
        "no checkpoint",
        "--overwrite",
    )


def test_another_architecture(run_copy: TrainedRun, tmp_path: Path) -> None:
    before = kept(run_copy.folder)
    refused(
        command(
            "train.py", *run_copy.flags(), "--continue_train", "--ngf", "6", "--max_steps", "6"
        ),
        "G.safetensors",
        "architecture",
        "options.json",
    )
    assert kept(run_copy.folder) == before
    options = json.loads((run_copy.folder / "options.json").read_text())
    options["generator"]["n_blocks_global"] = 3
    (run_copy.folder / "options.json").write_text(json.dumps(options))
    refused(run_copy.test(tmp_path / "res"), "average.safetensors", "architecture", "missing")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("latest/G.safetensors", cut),
        ("latest/G.safetensors", Path.unlink),
        ("latest/optimizer_G.safetensors", cut),
        ("latest/state.json", cut),
        ("latest/state.json", lambda path: path.write_text("[]")),
        ("options.json", cut),
    ],
)
def test_a_damaged_checkpoint(
    name: str, spoil: Callable[[Path], None], run_copy: TrainedRun, tmp_path: Path
) -> None:
    spoil(run_copy.folder / name)
    refused(
        command("train.py", *run_copy.flags(), "--continue_train", "--max_steps", "6"),
        Path(name).name,
    )
    if "optimizer" not in name:
        spoiled = "latest/average.safetensors" if "G.s" in name else name
        if spoiled != name:
            spoil(run_copy.folder / spoiled)
        refused(run_copy.test(tmp_path / "res"), Path(spoiled).name)
        assert not (tmp_path / "res").exists()


@pytest.fixture(scope="module")
def clip(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes small CLIPs of the cohort that differ by their seed."""
    made: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in made:
            made[seed] = tmp_path_factory.mktemp("clip") / f"clip{seed}"
            done = command(
                "scripts/pretrain_clip.py",
                "--dataroot",
                cohort_dir,
                "--template",
                "aiib23",
                "--out",
                made[seed],
                "--clip_steps",
                "2",
                "--clip_size",
                "16,16,16",
                "--seed",
                str(seed),
            )
            assert done.code == 0, done.text
        return made[seed]

    return make


def test_another_text_encoder(
    clip: Callable[[int], Path], cohort_dir: Path, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "ck"
    done = train(cohort_dir, checkpoints, "--text_encoder", clip(0), "--max_steps", "2")
    assert done.code == 0, done.text
    run = TrainedRun(checkpoints, "new", cohort_dir)
    moved = shutil.copytree(clip(0), tmp_path / "moved")
    assert run.test(tmp_path / "ok", "--text_encoder", str(moved), "--how_many", "1").code == 0
    parts = (
        "--text_encoder",
        str(clip(1)),
        "not the encoder that the run was trained with",
        "sha256",
    )
    refused(run.test(tmp_path / "res", "--text_encoder", str(clip(1))), *parts)
    refused(
        run.test(tmp_path / "res", "--text_encoder", "table"),
        "--text_encoder table",
        "trained with",
    )
    assert not (tmp_path / "res").exists()
    before = kept(run.folder)
    refused(
        command(
            "train.py",
            *run.flags(),
            "--continue_train",
            "--max_steps",
            "4",
            "--text_encoder",
            clip(1),
        ),
        *parts,
    )
    assert kept(run.folder) == before


# --- stopped and locked runs ---


def test_a_run_in_use_is_refused(run_copy: TrainedRun, cohort_dir: Path) -> None:
    before = files(run_copy.folder)
    with locked_folder(run_copy.folder, "--name"):
        for words in (("--continue_train",), ("--overwrite",)):
            refused(
                train(cohort_dir, run_copy.checkpoints, *words, name=run_copy.name),
                "is in use by",
                f"process {os.getpid()} on",
            )
        assert train(cohort_dir, run_copy.checkpoints, "--dry_run", name="other").code == 0
    assert files(run_copy.folder) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_validation_abandons_it_and_saves(
    number: signal.Signals, run_copy: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def endless(validation: Validation, step: int) -> None:
        os.kill(os.getpid(), number)
        time.sleep(60)

    monkeypatch.setattr(Validation, "__call__", endless)
    start = time.monotonic()
    words = ("--max_steps", "9", "--val_freq", "6", "--val_share", "1")
    done = command("train.py", *run_copy.flags(), "--continue_train", *words)
    assert done.code == 128 + number and time.monotonic() - start < 30
    assert "validation after step 6 is abandoned" in done.text
    assert f"Stopped by {number.name} after step 6; saved" in done.text
    assert json.loads((run_copy.folder / "latest" / "state.json").read_text())["step"] == 6


# --- a full disk ---


def test_no_space_for_a_checkpoint(run_copy: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(run_copy.folder / "latest")
    write = save_file

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        write(tensors, path)
        if path.name.startswith("optimizer"):
            cut(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "save_file", full)
    going_on = (
        "train.py",
        *run_copy.flags(),
        "--continue_train",
        "--max_steps",
        "6",
        "--save_latest_freq",
        "1",
    )
    refused(command(*going_on), "latest", "no space", "--continue_train")
    assert files(run_copy.folder / "latest") == before
    assert not [p for p in run_copy.folder.iterdir() if "writing" in p.name]
    monkeypatch.undo()
    done = command(*going_on)
    assert (
        done.code == 0
        and json.loads((run_copy.folder / "latest" / "state.json").read_text())["step"] == 6
    )


@pytest.mark.slow
def test_no_space_in_a_process_of_its_own(run_copy: TrainedRun) -> None:
    """The operating system refuses files above a size, as a full disk does; larger pictures are
    left out.
    """
    before = files(run_copy.folder / "latest")
    optimizers = (run_copy.folder / "latest").glob("optimizer*")
    limit = max(path.stat().st_size for path in optimizers) - 1000

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    words = [
        sys.executable,
        "train.py",
        *run_copy.flags(),
        "--continue_train",
        "--max_steps",
        "5",
        "--val_cases",
        "0",
    ]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files, timeout=300
    )
    refused(Outcome(done.returncode, done.stderr), "latest", "previous one is untouched")
    assert files(run_copy.folder / "latest") == before


def test_no_space_for_the_log(run_copy: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from util.training.runs import RunLog

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunLog, "write", full)
    done = command(
        "train.py", *run_copy.flags(), "--continue_train", "--max_steps", "6", "--log_freq", "1"
    )
    refused(done, "No space left", "make room")

"""The cohort's CLIP: tokenizer, networks, training on the training split only, re-use."""

from __future__ import annotations

import errno
import json
import logging
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from data.load_cohort import load_cohort
from data.text.prompts import cohort_prompts, load_template
from models.text.clip import (
    VolumeEncoder,
    average_by_label,
    contrastive_loss,
    make_tokenizer,
    retrieval,
)
from models.text.encoders import build_text_encoder
from options.base_options import DataOptions, TextOptions
from options.clip_options import ClipCommand, ClipOptions
from options.train_options import RunOptions, TrainOptions
from pipelines import clip_pretraining
from pipelines.clip_pretraining import clip_settings, pretrain_clip
from pipelines.training.study import ensure_cohort_clip
from tests.commands import ROOT, Outcome, files, refused
from tests.mr_cohort import write_mr_cohort
from util.cli import UserError

HABITS = ("Never smoker", "Ex-smoker", "Current smoker")
SIDES = ("left", "right", "both")
SIZE = (16, 16, 12)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 cases: the habit sets the density of both lungs, and the side adds to one or both."""
    root = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    mask = np.zeros(SIZE, np.uint8)
    mask[2:7, 3:13, 2:10], mask[9:14, 3:13, 2:10] = 1, 2
    lines = ["File Name,SMOKING HISTORY,SIDE,AGE"]
    for folder in ("img", "gtlung"):
        (root / folder).mkdir()
    for i in range(60):
        habit, side, age = rng.integers(3), rng.integers(3), int(rng.integers(40, 90))
        hu = np.where(mask > 0, -850.0 + 60 * habit + age / 2, 40.0) + rng.normal(0, 20, SIZE)
        hu[(mask == 1) & (side != 1)] += 100
        hu[(mask == 2) & (side != 0)] += 100
        hu[[0, 1, 14, 15]] = -1000  # air beside the body
        for folder, array in (("img", hu.astype(np.int16)), ("gtlung", mask)):
            nib.save(nib.Nifti1Image(array, np.diag([6, 6, 6, 1])), root / folder / f"c{i}.nii.gz")
        lines.append(
            f"c{i},{HABITS[habit]},{SIDES[side] if i < 40 else f'{SIDES[side]} zebra'},{age}"
        )
    (root / "clinical.csv").write_text("\n".join(lines) + "\n")
    splits = {"train": [f"c{i}" for i in range(40)], "test": [f"c{i}" for i in range(40, 60)]}
    (root / "splits.json").write_text(json.dumps(splits))
    return root


@pytest.fixture(scope="module")
def options(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipCommand:
    out = str(tmp_path_factory.mktemp("clip") / "clip")
    return ClipCommand(
        ClipOptions(out=out, clip_steps=60, clip_size=(8, 8, 8)), DataOptions(dataroot=str(cohort))
    )


@pytest.fixture(scope="module")
def clip_folder(options: ClipCommand) -> Path:
    return pretrain_clip(options)


def test_learns_what_held_out_pairs_have_in_common(clip_folder: Path) -> None:
    accuracy = json.loads((clip_folder / "clip.json").read_text())["retrieval"]
    assert (accuracy["of"], accuracy["pairs"], accuracy["chance_top5"]) == ("held-out", 20, 0.25)
    assert accuracy["top5"] > 0.6  # nine kinds of lungs among twenty cases


def test_loads_like_any_other_encoder(clip_folder: Path) -> None:
    encoder = build_text_encoder(TextOptions(text_encoder=str(clip_folder)))
    prompts = [[f"SMOKING HISTORY is {h}", f"AGE is {50 + i}"] for i, h in enumerate(HABITS)]
    encoder.fit(prompts)
    pooled = encoder.encode([p[:1] for p in prompts]).pooled
    assert encoder.width == 128 and torch.cdist(pooled, pooled)[0, 1:].min() > 1


def test_learns_from_the_training_split_alone(clip_folder: Path) -> None:
    vocabulary = json.loads((clip_folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert any("smoker" in token for token in vocabulary)
    assert not any("zebra" in token for token in vocabulary)


def test_is_used_again_and_never_silently_replaced(
    options: ClipCommand, clip_folder: Path, cohort: Path, tmp_path: Path
) -> None:
    before = (clip_folder / "model.safetensors").stat().st_mtime_ns
    pretrain_clip(options)
    assert (clip_folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="other settings"):
        pretrain_clip(replace(options, clip=replace(options.clip, seed=1)))
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no clip\.json"):
        pretrain_clip(replace(options, clip=replace(options.clip, out=str(tmp_path))))
    short = replace(options.clip, out=str(tmp_path), overwrite=True, clip_steps=2)
    assert (pretrain_clip(replace(options, clip=short)) / "clip.json").is_file()
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_it_trains_where_the_run_does(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --gpu_ids -1, a GPU that others use is left alone."""
    asked: list[str] = []

    def stop(gpu_ids: str) -> torch.device:
        asked.append(gpu_ids)
        raise UserError("before any work")

    monkeypatch.setattr(clip_pretraining, "make_device", stop)
    data, run = DataOptions(dataroot=str(cohort)), RunOptions(gpu_ids="-1")
    with pytest.raises(UserError, match="before any work"):
        ensure_cohort_clip(TrainOptions(run=run, data=data), tmp_path / "run")
    assert asked == ["-1"]


def test_scans_on_another_scale_make_another_clip(tmp_path: Path) -> None:
    """Files and table stay, and what the volume encoder sees does not."""
    root = write_mr_cohort(tmp_path / "mr", cases=3)
    settings = []
    by_percentiles = DataOptions(dataroot=str(root), modality="mr")
    narrower = replace(by_percentiles, percentiles=(2.0, 98.0))
    for data in (by_percentiles, narrower, replace(narrower, intensity_window=(0.0, 900.0))):
        cohort = load_cohort(data)
        template = load_template(data.template, cohort.columns, data.key_column)
        prompts = cohort_prompts(cohort, template)
        settings.append(clip_settings(ClipCommand(ClipOptions(out="x"), data), cohort, prompts))
    assert settings[0] != settings[1] != settings[2] != settings[0]


@pytest.mark.parametrize("content", ["{", "[]", '{"made_from": 1}', "null", "[" * 100_000])
def test_a_damaged_record_is_named(
    content: str, options: ClipCommand, clip_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (copy / "clip.json").write_text(content)
    short = replace(options.clip, out=str(copy), clip_steps=1)
    with pytest.raises(UserError, match=r"clip\.json is damaged\. Use --overwrite"):
        pretrain_clip(replace(options, clip=short))
    pretrain_clip(replace(options, clip=replace(short, overwrite=True)))
    assert json.loads((copy / "clip.json").read_text())["made_from"]["clip_steps"] == 1


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        Exception("No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("writer", ["save_file", "sync"])
def test_a_full_disk_is_a_message_and_keeps_the_earlier_clip(
    writer: str,
    error: Exception,
    options: ClipCommand,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise error

    copy = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    before = files(tmp_path)
    monkeypatch.setattr(clip_pretraining, writer, full)
    short = replace(options.clip, out=str(copy), clip_steps=1, overwrite=True)
    with pytest.raises(UserError, match="could not be written: No space left on device; make room"):
        pretrain_clip(replace(options, clip=short))
    assert files(tmp_path) == before


@pytest.mark.slow
def test_a_full_disk_in_a_process_of_its_own(cohort: Path, tmp_path: Path) -> None:
    """The operating system refuses files above a size, as a full disk does."""
    words = [
        *(sys.executable, "scripts/pretrain_clip.py", "--dataroot", str(cohort)),
        *("--out", str(tmp_path / "clip"), "--clip_steps", "1", "--clip_size", "8,8,8"),
    ]
    for limit in (1_000, 20_000, 200_000):
        done = subprocess.run(
            words,
            cwd=ROOT,
            capture_output=True,
            text=True,
            preexec_fn=partial(limit_file_size, limit),
            timeout=300,
        )
        refused(Outcome(done.returncode, done.stderr), "File too large", "run the command again")
        assert not (tmp_path / "clip" / "clip.json").exists()


def limit_file_size(limit: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_without_held_out_cases_it_says_so(
    options: ClipCommand,
    cohort: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = tmp_path / "all"
    root.mkdir()
    for name in ("img", "gtlung", "clinical.csv"):
        (root / name).symlink_to(cohort / name)
    (root / "splits.json").write_text(json.dumps({"train": [f"c{i}" for i in range(60)]}))
    clip = replace(options.clip, out=str(tmp_path / "clip"), clip_steps=2)
    with caplog.at_level(logging.WARNING):
        out = pretrain_clip(ClipCommand(clip, replace(options.data, dataroot=str(root))))
    assert "No held-out pairs" in caplog.text
    assert json.loads((out / "clip.json").read_text())["retrieval"]["of"] == "training"


def test_tokenizer_reads_what_training_never_held() -> None:
    tokenizer = make_tokenizer(["Patient age: 71."] * 3, limit=64)
    ids = tokenizer("Patient age: 234 é")["input_ids"]
    assert tokenizer.unk_token_id not in ids and tokenizer.eos_token_id != 2
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).strip() == "Patient age: 234 é"
    assert len(tokenizer("7")["input_ids"]) + 2 <= len(
        tokenizer("777")["input_ids"]
    )  # one token a digit


def test_loss_and_retrieval() -> None:
    pairs = torch.eye(4)
    assert contrastive_loss(pairs, pairs, torch.tensor(5.0)) < 1e-3
    assert contrastive_loss(pairs, torch.ones(4, 4), torch.tensor(2.0)).item() == pytest.approx(
        np.log(4), abs=1e-5
    )
    assert retrieval(pairs, pairs)["top1"] == 1 and retrieval(pairs, pairs.roll(1, 0))["top1"] == 0


def test_retrieval_of_equal_texts_is_no_success() -> None:
    accuracy = retrieval(torch.randn(50, 8), torch.ones(50, 8))
    assert accuracy["top1"] <= 0.2


def test_volumes() -> None:
    features, mask = torch.ones(2, 3, 4, 4, 4), torch.zeros(2, 2, 4, 4, 4)
    mask[:, 0] = 1
    assert average_by_label(features, mask).tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    assert VolumeEncoder(2).eval()(
        torch.zeros(1, 1, 9, 8, 8), torch.zeros(1, 2, 9, 8, 8)
    ).shape == (1, 64)

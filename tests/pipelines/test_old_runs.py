"""Runs of version 0.1.0 load, generate the same volumes, and continue; old flags still work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from options.anomaly_options import AnomalyCommand
from options.parser import parse, to_dict
from options.prepare_options import PrepareCommand
from options.train_options import TrainOptions
from tests.commands import command

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "run_0_1_0"
RUNS = ("pix2pixhd", "diffusion")
VARY = ("--vary", "SMOKING HISTORY=Never smoker,Current smoker", "--vary", "SEX=Male,Female")


@pytest.fixture()
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the runs; their options hold paths relative to it."""
    folder = Path(shutil.copytree(FIXTURE, tmp_path / "old"))
    monkeypatch.chdir(folder)
    return folder


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype={"from": str, "to": str})


def assert_close(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Not to the last digit: other processors and versions of torch round differently."""
    pd.testing.assert_frame_equal(found, expected, atol=0.05, rtol=1e-3)


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_generates_the_same_volumes(name: str, old: Path) -> None:
    words = (
        "--name",
        name,
        "--dataroot",
        "cohort",
        "--gpu_ids=-1",
        "--no-page",
        "--draws",
        "1",
        *VARY,
    )
    done = command("test.py", *words)
    assert done.code == 0, done.text
    assert f"The run {name} was trained by version 0.1" in done.text
    results, expected = old / "results" / name / "test_latest", old / "expected" / name
    effects, before = table(results / "effects.csv"), table(expected / "effects.csv")
    # New columns stand to the right of the old ones.
    assert_close(effects.iloc[:, : before.shape[1]], before)
    metrics, before = table(results / "metrics.csv"), table(expected / "metrics.csv")
    keys = ["case", "region", "metric"]
    shared = before[keys].merge(metrics, how="left")  # new metrics stand between the old ones
    assert_close(shared, before)


@pytest.mark.parametrize("name", RUNS)
def test_an_old_run_continues(name: str, old: Path) -> None:
    before = (old / "checkpoints" / name / "latest" / "G.safetensors").read_bytes()
    words = ("--name", name, "--continue_train", "--max_steps", "8", "--accumulate", "1")
    done = command("train.py", *words)
    assert done.code == 0 and "8 steps" in done.text, done.text
    assert (old / "checkpoints" / name / "latest" / "G.safetensors").read_bytes() != before
    options = (old / "checkpoints" / name / "options.json").read_text()
    assert '"grad_clip"' in options and '"clip"' not in options


@pytest.mark.parametrize(
    ("command_class", "old_words", "new_words"),
    [
        (
            TrainOptions,
            "--clip 0.5 --accumulate 2 --l1_smooth 0.2 --l1_labels 4 --lung_share 0.5",
            "--grad_clip 0.5 --gradient_accumulation 2 --smooth_l1_beta 0.2 --label_weight 4 "
            "--lung_patch_prob 0.5",
        ),
        (
            TrainOptions,
            "--pure_noise 0.3 --no-text_place",
            "--terminal_prob 0.3 --no-text_position",
        ),
        (AnomalyCommand, "--marks folder", "--annotations folder"),
        (PrepareCommand, "in out --masks classic", "in out --masks threshold"),
        (PrepareCommand, "in out --masks given", "in out --masks load"),
    ],
)
def test_old_flags_mean_the_same(command_class: type[Any], old_words: str, new_words: str) -> None:
    first, second = (parse(command_class, "", words.split()) for words in (old_words, new_words))
    assert to_dict(first) == to_dict(second)


def test_old_flags_are_not_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(TrainOptions, "", ["--help"])
    text = capsys.readouterr().out
    assert "--grad_clip" in text and "--clip" not in text and "--accumulate" not in text

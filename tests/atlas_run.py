"""Build atlases with scripts/build_atlas.py, and read their files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from options.atlas_options import RefitOptions
from pipelines.refits.plan import OriginRun, Refit
from pipelines.refits.records import is_finished, refit_record
from pipelines.refits.training import train_arguments
from tests.commands import Outcome, TrainedRun, command
from util.files import write_json


def discover(run: TrainedRun, out: Path, *words: str, cohort: Path | None = None) -> Outcome:
    """Build the atlas of a run on its cohort, or on another one."""
    where = (
        "--dataroot",
        str(cohort or run.cohort),
        *run.flags(),
        "--out",
        str(out),
        "--tile",
        "0,0,0",
    )
    return command("scripts/build_atlas.py", *where, *words)


def table(atlas: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(atlas / f"{name}.csv", dtype={"from": str, "to": str}, keep_default_na=True)


def means(atlas: Path, name: str) -> pd.DataFrame:
    """Return the rows of the mean in a table with several outcomes."""
    frame = table(atlas, name)
    return frame[frame["outcome"] == "mean"]


def record(atlas: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((atlas / "atlas.json").read_text())
    return values


def in_this_process(origin: OriginRun, o: RefitOptions, wanted: Sequence[Refit]) -> None:
    """Train refits as `train_refits` does, without processes of their own."""
    for one in wanted:
        if not is_finished(origin, one, o.refit_steps):
            done = command("train.py", *train_arguments(origin, one, o, ""))
            assert done.code == 0, done.text
            write_json(one.record_path(origin.folder), refit_record(origin, one, o.refit_steps))

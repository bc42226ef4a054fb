"""Compare runs on one cohort: effects, fidelity, diversity, time, size and memory."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

import pandas as pd

from options.compare_options import CompareCommand
from options.parser import parse
from pipelines.evaluation.compare_models import measure_run, write_comparison_page
from test import generate_cohort
from util.cli import UserError, run_command
from util.training import runs

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure every run and write a table and a page."""
    o = parse(CompareCommand, __doc__ or "", argv)
    if len(o.compare.run) < 2:
        raise UserError(
            f"--run names {len(o.compare.run)} runs; give it twice at least, once for each run to "
            "compare."
        )
    for name in o.compare.run:
        runs.read_options(runs.run_folder(o.model.checkpoints_dir, name))
    frame = pd.DataFrame([measure_run(o, name, generate_cohort) for name in o.compare.run])
    out = Path(o.compare.OUT)
    frame.to_csv(out / "models.csv", index=False)
    log.info("\n%s\n%s", frame.set_index("run").T.to_string(), write_comparison_page(out, frame))


if __name__ == "__main__":
    run_command(main)

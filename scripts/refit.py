"""Trains a run again and again, on resampled patients or shuffled columns, so that its effects get
intervals and nulls.

Every refit is a run of train.py in checkpoints/RUN/refits/. What is finished is kept, what was
stopped goes on.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages


from options.atlas_options import RefitCommand
from options.parser import parse
from pipelines.refits import OriginRun, planned_refits, train_refits
from util import cli
from util.cli import UserError
from util.training import runs

log = logging.getLogger(__name__)


def main() -> None:
    o = parse(RefitCommand, (__doc__ or "").splitlines()[0])
    if not (o.refit.refits or o.refit.permutations or o.run.folds):
        raise UserError("Nothing to train: give --refits, --permutations or --folds.")
    if o.run.folds == 1:
        raise UserError("--folds is 1; leaving one part of one out leaves nobody. Give at least 2.")
    origin = OriginRun.load(runs.run_folder(o.run.checkpoints_dir, o.run.name), o.run.dataroot)
    folds = [f"{k}/{o.run.folds}" for k in range(1, o.run.folds + 1)]
    refits = planned_refits(origin, o.refit, folds)
    if o.refit.refit_steps not in (0, origin.step):
        log.warning(
            "--refit_steps is %d, the run was trained for %d: their intervals are not those of the "
            "run, and the atlas will claim nothing.",
            o.refit.refit_steps,
            origin.step,
        )
    train_refits(origin, o.refit, refits)
    log.info(
        "%d refits of %s are there; use them with scripts/build_atlas.py --name %s.",
        len(refits),
        o.run.name,
        o.run.name,
    )


if __name__ == "__main__":
    cli.run_command(main)

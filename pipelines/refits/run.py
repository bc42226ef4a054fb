"""The refits that `scripts/refit.py` asks for."""

from __future__ import annotations

import logging

from options.atlas_options import RefitCommand
from pipelines.refits.plan import OriginRun, default_folds, planned_refits
from pipelines.refits.training import train_refits
from util.cli import UserError, counted
from util.training import runs

log = logging.getLogger(__name__)


def refit_run(options: RefitCommand) -> None:
    """Train the refits that `scripts/refit.py` asks for.

    Raises:
        UserError: Nothing is asked for, the run cannot be refitted, or a refit fails.
    """
    wanted, name = options.refit, options.run.name
    folds = options.run.folds or 0
    if not (wanted.refits or wanted.permutations or folds):
        raise UserError("Nothing to train: give --refits, --permutations or --folds.")
    if folds == 1:
        raise UserError("--folds is 1; leaving one part of one out leaves nobody. Give at least 2.")
    folder = runs.run_folder(options.run.checkpoints_dir, name)
    origin = OriginRun.load(folder, options.run.dataroot)
    if options.run.folds is None:
        folds = default_folds(origin)
    refits = planned_refits(origin, wanted, [f"{k}/{folds}" for k in range(1, folds + 1)])
    if wanted.refit_steps not in (0, origin.step):
        log.warning(
            "--refit_steps is %d, the run was trained for %d: their intervals are not those of the "
            "run, and the atlas will claim nothing.",
            wanted.refit_steps,
            origin.step,
        )
    train_refits(origin, wanted, refits)
    log.info(
        "%s of %s finished; use them with scripts/build_atlas.py --name %s.",
        counted(len(refits), "refit"),
        name,
        name,
    )

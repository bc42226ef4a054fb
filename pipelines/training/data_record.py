"""The record of what a run was trained on, and changes since, when it is continued."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from data.checks.case import case_facts
from data.fact_store import CHECKS_FILE, FactStore
from data.fingerprints import data_changes, data_record, option_changes, refuse_changes, used_cases
from options.parser import from_dict
from options.train_options import TrainOptions, fixed_options
from pipelines.training.study import Study
from util.training import checkpoint, runs

log = logging.getLogger(__name__)


def record_data(options: TrainOptions, study: Study, cache: Path | None) -> dict[str, Any]:
    """Return digests of the data, training values and fixed options, for the checkpoint."""
    if cache is not None:  # what the checks have found, for the next start
        store = FactStore(cache / CHECKS_FILE)
        files = [(case.image, case.mask) for case in study.cohort.cases]
        case_facts(files, store, options.data.lung_labels)
        store.save()
    cases = used_cases(study.cohort)
    record = data_record(study.cohort, cases, study.template, study.prompts, cache)
    return {**record, "options": fixed_options(options), "values": study.training_values}


def check_unchanged(
    options: TrainOptions, study: Study, checkpoint_dir: Path, cache: Path
) -> dict[str, Any]:
    """Compare data and fixed options with those that a run was trained with.

    Args:
        options: The options of the continued run.
        study: Its study, restored (see `restore_study`).
        checkpoint_dir: The checkpoint that is continued.
        cache: Folder that stores digests of files.

    Returns:
        The record for the next checkpoint, which holds accepted changes by step.

    Raises:
        UserError: Something changed, and `accept_changes` is not given.
    """
    state = checkpoint.load_state(checkpoint_dir)
    record = record_data(options, study, cache)
    before = state.get("data")
    if before is None:
        log.warning(
            "The checkpoint is of a version that did not record its data: changes of scans, masks "
            "and rows since then cannot be found."
        )
        folder = checkpoint_dir.parent
        saved = from_dict(TrainOptions, runs.read_options(folder), str(folder / runs.OPTIONS_FILE))
        before = {"options": json.loads(json.dumps(fixed_options(saved)))}
    changes = option_changes(before.get("options", {}), record["options"])
    changes += data_changes(before, record)
    if not options.run.accept_changes:
        refuse_changes(
            changes,
            "Restore them, or go on with the changes by --accept_changes; new data belong to a new "
            "run.",
        )
    accepted = dict(before.get("accepted", {}))
    if changes:
        log.warning("Changes since the run was trained are accepted: %s.", "; ".join(changes))
        accepted[f"after step {state['step']}"] = "; ".join(changes)
    return {**record, "accepted": accepted}

"""Records of finished refits, beside their folders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.refits.plan import REFITS, OriginRun, Refit
from util.cli import format_list
from util.records import read_record
from util.training import checkpoint

log = logging.getLogger(__name__)

RECORD_TYPES = {  # of a finished refit
    "name": str,
    "kind": str,
    "seed": int,
    "run_step": int,
    "steps": int,
    "permuted": list[str],
    "fold": str,
}


def is_finished(origin: OriginRun, refit: Refit, steps: int) -> bool:
    """Return whether a refit of this state of the run is finished.

    Args:
        steps: Steps of the refit (0: those of the run).
    """
    path = refit.record_path(origin.folder)
    if not path.is_file():
        return False
    record = read_record(path, RECORD_TYPES, f"{refit.name} is finished again")
    return bool(record == refit_record(origin, refit, steps))


def refit_record(origin: OriginRun, refit: Refit, steps: int) -> dict[str, Any]:
    """Return the record of a finished refit; for the arguments see `is_finished`."""
    return {
        **asdict(refit),
        "permuted": list(refit.permuted),
        "run_step": origin.step,
        "steps": steps or origin.step,
    }


def finished_refits(folder: Path) -> list[Mapping[str, Any]]:
    """Return the records of a run's finished refits, by name.

    Those of another state of the run are left out with a warning.
    """
    records = []
    for path in sorted((folder / REFITS).glob("*.json")):
        fix = f"{path.stem} is not used. Run scripts/refit.py again"
        if (record := read_record(path, RECORD_TYPES, fix)) is not None:
            records.append(record)
    step = int(checkpoint.load_state(checkpoint.find(folder / "latest"))["step"])
    stale = [record["name"] for record in records if record["run_step"] != step]
    if stale:
        log.warning(
            "Refits of another state of the run are not used: %s. Run scripts/refit.py again.",
            format_list(stale),
        )
    return [record for record in records if record["run_step"] == step]

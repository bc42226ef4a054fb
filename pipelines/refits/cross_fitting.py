"""Cross-fitting: which runs have enough scans that they have not seen, and the folds of the others.

A finding has to be seen in scans that the network was not trained on. Where the test and validation
splits hold too few patients, the training patients are divided into folds, and each is generated
and compared by a refit that was trained without it (Chernozhukov et al. 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.cohort import Cohort
from data.resampling import parse_fold
from pipelines.atlas.statistics.cautions import MIN_PATIENTS
from util.cli import UserError

FOLDS = 5  # each refit is trained on four of five patients
NO_FOLD = "none"  # value of --fold that never cross-fits


def needs_folds(cohort: Cohort, patients: Mapping[str, str]) -> bool:
    """Return whether a cohort has too few unseen patients, and enough to be divided into folds.

    Args:
        cohort: The run's own cohort with its splits.
        patients: The patient of each case.
    """
    trained = {patients[case_id] for case_id in cohort.splits.get("train", ())}
    unseen = {patients[case.id] for case in cohort.cases if case.image} - trained
    return len(unseen) < MIN_PATIENTS <= len(trained)


def finished_folds(records: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of folds whose refits are all finished, 0 for none."""
    done: dict[int, set[int]] = {}
    for record in records:
        if record["kind"] != "fold":
            continue
        try:
            number, count = parse_fold(str(record["fold"]))
        except UserError:
            continue  # not a record of this program
        done.setdefault(count, set()).add(number)
    complete = [count for count, numbers in done.items() if len(numbers) == count]
    return max(complete, default=0)

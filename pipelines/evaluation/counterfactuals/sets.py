"""Sets of counterfactual volumes: results of test.py --vary, and what stands beside them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines.evaluation.volume_sets import VOLUMES_TABLE, VolumeFile, VolumeSet
from pipelines.generation.results import RESULTS_FILE
from util.cli import UserError, format_list
from util.files import path_inside, read_csv, read_json

METRICS_TABLE = "metrics.csv"  # of test.py
REVERSED = "reversibility_mae_hu "  # metric of metrics.csv, followed by COLUMN=VALUE
CYCLED = "composition_"  # metric of metrics.csv: composition_<cycles>_mae_hu
# Names in tables of other modalities than CT, with those of CT.
PLAIN_NAMES = ((r"^reversibility_mae ", REVERSED), (r"^(composition_\d+_mae)$", r"\1_hu"))
LABELLED = "labelled"  # their region of all labels together


@dataclass(frozen=True)
class Counterfactual:
    """One volume with a changed attribute.

    Attributes:
        column: The attribute.
        value: Its new value, as test.py was given it.
    """

    column: str
    value: str
    file: VolumeFile

    @property
    def case(self) -> str:
        """The case that was changed."""
        return self.file.case


@dataclass(frozen=True)
class CounterfactualSet:
    """The counterfactuals of one method.

    Attributes:
        name: Name of the method for readers.
        factual: The unchanged volume by case: the scan where scans were changed, else the volume
            generated from the factual row.
        null: Volume by case of an intervention that changes nothing.
        edits_scans: Whether real scans were changed, and not generated volumes.
        reported: Values of metrics.csv in HU by (metric, case, region).
        is_reference: Whether it is no generator, but stands beside them.
    """

    name: str
    factual: Mapping[str, VolumeFile]
    changed: Sequence[Counterfactual]
    null: Mapping[str, VolumeFile] = field(default_factory=dict)
    edits_scans: bool = False
    reported: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    is_reference: bool = False

    @property
    def columns(self) -> list[str]:
        """The attributes that were changed."""
        return list(dict.fromkeys(one.column for one in self.changed))


def read_counterfactuals(flag: str, root: Path, real: VolumeSet) -> CounterfactualSet | None:
    """Read the counterfactuals in a results folder of test.py; None where there are none.

    Args:
        flag: The flag that named the folder, for messages.
        root: The folder.
        real: The real scans, whose masks the cases of the same name take.

    Raises:
        UserError: Tables are damaged or name volumes that are not there, or scans were edited that
            are not among the real ones.
    """
    table = root / VOLUMES_TABLE
    if not table.is_file():
        return None
    masks = {file.case: file.mask for file in real.files}
    factual: dict[str, VolumeFile] = {}
    changed: list[Counterfactual] = []
    for row in read_csv(table, ["file", "case", "kind", "column", "value"]):
        if row["kind"] not in ("own", "varied"):
            continue
        path = path_inside(root, row["file"], table)
        if not path.is_file():
            raise UserError(f"{table} names {path}, which is not there. Make the results again.")
        file = VolumeFile(row["case"], path, masks.get(row["case"]))
        if row["kind"] == "own":
            factual[row["case"]] = file
        else:
            changed.append(Counterfactual(row["column"], row["value"], file))
    changed = [one for one in changed if one.case in factual]
    if not changed:
        return None
    record = read_json(root / RESULTS_FILE) if (root / RESULTS_FILE).is_file() else {}
    options = record.get("options", {})
    edits_scans = bool(options.get("edit", {}).get("edit_real", False))
    name = str(record.get("run") or root.name) + (", edited scans" if edits_scans else "")
    null = dict(factual)
    if edits_scans:
        scans = {file.case: file for file in real.files}
        if missing := [case for case in factual if case not in scans]:
            raise UserError(
                f"{flag} {root} holds edited scans of cases that are not among the scans of "
                f"--real: {format_list(missing)}. Give the scans that were edited."
            )
        factual = {case: scans[case] for case in factual}
    return CounterfactualSet(name, factual, changed, null, edits_scans, _reported(root))


def _reported(root: Path) -> dict[tuple[str, str, str], float]:
    """Return reversibility and composition as test.py measured them."""
    path = root / METRICS_TABLE
    if not path.is_file():
        return {}
    values = {}
    for row in read_csv(path, ["case", "region", "metric", "value"]):
        metric, region = row["metric"], row["region"].replace(LABELLED, "lungs")
        for plain, name in PLAIN_NAMES:
            metric = re.sub(plain, name, metric)
        if metric.startswith((REVERSED, CYCLED)):
            try:
                values[metric, row["case"], region] = float(row["value"])
            except ValueError:
                raise UserError(
                    f"{path}: {row['metric']} of {row['case']} is {row['value']!r}, and must be a "
                    "number. Make the results again."
                ) from None
    return values


def find_counterfactuals(
    synthetic: VolumeSet, folders: Sequence[str], real: VolumeSet
) -> list[CounterfactualSet]:
    """Return the counterfactuals of the synthetic set and of the folders of --counterfactuals.

    Methods that would be called alike are numbered.

    Raises:
        UserError: A folder without counterfactuals, or none of whose cases has a real scan.
    """
    sets = []
    own = read_counterfactuals(synthetic.flag, synthetic.root, real)
    if own is not None:
        sets.append(own)
    for folder in folders:
        root = Path(folder)
        if root.resolve() == synthetic.root.resolve():
            continue
        read = read_counterfactuals("--counterfactuals", root, real)
        if read is None:
            raise UserError(
                f"--counterfactuals {folder} holds no changed volumes; it must be a results folder "
                'of test.py with --vary "COLUMN=A,B".'
            )
        sets.append(read)
    names = [one.name for one in sets]
    numbered = []
    for number, one in enumerate(sets):
        earlier = names[:number].count(one.name)
        name = f"{one.name} ({earlier + 1})" if names.count(one.name) > 1 else one.name
        numbered.append(replace(one, name=name))
    return numbered


def unchanged_scans(sets: Sequence[CounterfactualSet], real: VolumeSet) -> CounterfactualSet | None:
    """Return the real scans as their own counterfactuals: a method that changes nothing."""
    scans = {file.case: file for file in real.files}
    changed: dict[tuple[str, str, str], Counterfactual] = {}
    for one in sets:
        for c in one.changed:
            if c.case in scans:
                changed.setdefault(
                    (c.case, c.column, c.value), Counterfactual(c.column, c.value, scans[c.case])
                )
    if not changed:
        return None
    cases = {c.case: scans[c.case] for c in changed.values()}
    return CounterfactualSet(
        "scan, unchanged", cases, list(changed.values()), cases, True, {}, is_reference=True
    )

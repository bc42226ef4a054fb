"""Digests of what a run is trained on, by which changes are found when it is continued."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.cohort import PROMPTS_FILE, Case, Cohort
from data.fact_store import CHECKS_FILE, FactStore
from data.integrity import find_voxel_data
from data.text.prompts import Prompt, Template
from util.cli import UserError, format_list
from util.files import file_sha256, json_digest
from util.parallel import map_threads

MAX_THREADS = 4

DataRecord = Mapping[str, Any]


def used_cases(cohort: Cohort) -> list[Case]:
    """Return the training and validation cases, each once."""
    used = {*cohort.splits.get("train", ()), *cohort.splits.get("val", ())}
    return [case for case in cohort.cases if case.id in used]


def data_record(
    cohort: Cohort,
    cases: Sequence[Case],
    template: Template,
    prompts: Mapping[str, Prompt],
    cache: Path | None,
) -> DataRecord:
    """Return digests of scans, masks and rows.

    Args:
        cases: Its cases to record.
        template: Decides which columns the text uses.
        prompts: The prompt of each case.
        cache: Folder that stores digests of files, so that an unchanged file is read once.

    Returns:
        Plain values: `files`, `rows` and `texts` by case.
    """
    store = FactStore(cache / CHECKS_FILE if cache else None)
    digest_files = partial(file_digests, store=store)
    files = map_threads(digest_files, cases, "Computing checksums", max_threads=MAX_THREADS)
    store.save()
    columns = template.attributes(cohort.columns)
    has_prompts = (cohort.root / PROMPTS_FILE).is_file()
    rows = {}
    for case in cases:
        cells = {column: case.row.get(column, "").strip() for column in columns}
        rows[case.id] = json_digest([cells, prompts[case.id].texts if has_prompts else []])
    return {
        "files": {case.id: d for case, d in zip(cases, files, strict=True)},
        "rows": rows,
        # A template's file may be edited, so that the same rows have other words.
        "texts": {case.id: json_digest(prompts[case.id].texts) for case in cases},
    }


def file_digests(case: Case, store: FactStore) -> dict[str, str]:
    """Return the sha256 of a case's scan and mask; that of an unchanged file comes from `store`."""
    digests = {}
    for kind, path in (("image", case.image), ("mask", case.mask)):
        if path is not None:
            # The time of the last change of the file's entry cannot be set by a copy.
            name = f"sha256 {path.stat().st_ctime_ns}"
            digests[kind] = store.get(name, [path], partial(volume_digest, path))["sha256"]
    return digests


def volume_digest(path: Path) -> dict[str, str]:
    """Return the sha256 of a volume file, with its detached data."""
    digest = file_sha256(path)
    if path.suffix.lower() in (".mhd", ".mha", ".nrrd"):
        data = find_voxel_data(path).path
        if data != path:
            digest = json_digest([digest, file_sha256(data)])
    return {"sha256": digest}


def data_changes(before: DataRecord, now: DataRecord) -> list[str]:
    """Return what differs between two records, in words; empty where nothing does.

    Cases that only the present record has do not count as a change, because the run does not use
    them.
    """
    files = before.get("files", {})
    missing = [case for case in files if case not in now["files"]]
    changes = []
    if missing:
        changes.append(f"cases that are not there any more: {format_list(missing)}")
    for kind, noun in (("image", "scans"), ("mask", "masks")):
        changed = [
            case
            for case, digests in files.items()
            if case in now["files"] and digests.get(kind) != now["files"][case].get(kind)
        ]
        if changed:
            changes.append(f"{noun} of {format_list(changed)}")
    rows = before.get("rows", {})
    changed = [case for case in rows if case in now["rows"] and rows[case] != now["rows"][case]]
    if changed:
        changes.append(f"table rows or prompts of {format_list(changed)}")
    texts = before.get("texts", {})
    reworded = [
        case
        for case in texts
        if case in now["texts"] and case not in changed and texts[case] != now["texts"][case]
    ]
    if reworded:
        changes.append(f"the words of the rows of {format_list(reworded)} (template)")
    return changes


def option_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the options that differ, in words.

    Args:
        before: Values by option, as a checkpoint holds them; options that it lacks are not
            compared.
        now: Values by option.
    """
    plain = json.loads(json.dumps(now))
    return [
        f"--{name} was {_show(before[name])} and is {_show(value)}"
        for name, value in plain.items()
        if name in before and before[name] != value
    ]


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_show, value)) or "empty"
    if isinstance(value, float):
        return f"{value:g}"
    return "not given" if value is None or value == "" else str(value)


def refuse_changes(changes: Sequence[str], advice: str) -> None:
    """Raise `UserError` that lists the changes, if there are any.

    Args:
        changes: See `data_changes` and `option_changes`.
        advice: What to do, for the message.
    """
    if changes:
        raise UserError(
            "Data or options are not those that the run was trained with: "
            f"{'; '.join(changes)}. {advice}"
        )

"""A synthetic cohort in the layout of a dataroot."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from tqdm import tqdm

from data.checks import check_labels_known
from data.cohort import IMAGES, MASKS, Case, Cohort
from data.geometry import Volume
from data.splits import save_splits
from data.table import read_table
from data.text.prompts import Template, load_template
from data.volume_dataset import VolumeSample
from data.volumes import load_volume, write_like
from models.inference import LoadedRun, load_run
from options.expand_options import ExpandCommand
from pipelines.generation import run_samples
from pipelines.run_cohort import is_training_cohort, load_run_cohort
from pipelines.synthesis.copies import CopySearch, Nearest
from pipelines.synthesis.deform import deform_plausibly
from pipelines.synthesis.planning import (
    PROVENANCE,
    PlannedCase,
    cohort_readme,
    plan_balanced,
    plan_table,
)
from util import cli
from util.cli import UserError, format_list
from util.files import atomic_path, read_json, write_csv, write_json
from util.records import open_record, wait_for_record
from util.training import runs

log = logging.getLogger(__name__)

RECORD = "expansion.json"  # which run and flags the cohort belongs to

RECORDS = "records"  # what was done for every case

SAME_MASK_FILE = (
    "same_mask.json"  # how like their scans volumes of cases are that the generator never saw
)

MAX_UNSEEN = 24  # such cases that are made for it

COPY_COLUMNS = (
    "case",
    "source",
    "redrawn",
    "left_out",
    "nearest_training_case",
    "distance",
    "threshold",
)


@dataclass(frozen=True)
class SyntheticVolume:
    """A draw: the deformed mask, the map that deformed it, and the volume in HU on the model's
    grid.
    """

    labels: Volume
    drawn: sitk.Transform
    volume: Volume
    whole: VolumeSample


@dataclass(frozen=True)
class CaseSynthesiser:
    """Makes and writes single cases."""

    o: ExpandCommand
    run: LoadedRun
    template: Template
    copies: CopySearch | None = None

    def __call__(self, planned: PlannedCase) -> dict[str, Any]:
        """Mask and volume of a case, on disk; returns what was done."""
        out = Path(self.o.expand.out)
        image, mask = (out / folder / f"{planned.id}.nii.gz" for folder in (IMAGES, MASKS))
        near = Nearest()
        for draw in range(self.o.expand.redraws + 1):
            made = self.draw(planned, mask, draw)
            if self.copies is None:
                break
            near = self.copies(made.volume, made.labels, planned.source, made.drawn)
            if not near.copied:
                break
        else:
            mask.unlink()
            return self._record(planned, draw, near, True)
        write_like(image, made.whole.to_source_grid(made.volume.array), mask, np.int16)
        return self._record(planned, draw, near, False)

    def draw(self, planned: PlannedCase, mask: Path, number: int) -> SyntheticVolume:
        """One mask, written to a file, and its volume."""
        run, data, source = self.run, self.run.options.data, load_volume(planned.source.mask)
        labels, drawn = deform_plausibly(
            source, self.o.deform, [planned.seed, number], planned.source.mask
        )
        write_like(mask, labels, planned.source.mask, np.uint8)
        whole = run_samples(run, [Case(planned.id, None, mask, planned.row)], data)[0]
        texts = self.template.phrases(planned.row).texts
        made = replace(run.generator, seed=planned.seed)(
            whole, texts, noise_key=f"{planned.id}:{number}"
        )
        hu = whole.to_hu(made)
        return SyntheticVolume(
            Volume(labels, source.affine), drawn, Volume(hu, whole.affine), whole
        )

    def learn(self, copies: CopySearch, unseen: Sequence[Case]) -> CopySearch:
        """The search for copies, with what a mask alone explains; measured on cases outside the
        training split.
        """
        path = Path(self.o.expand.out) / SAME_MASK_FILE
        if not path.is_file():
            distances, mask = [], path.with_name(f".{os.getpid()}.nii.gz")
            for case in tqdm(
                unseen[:MAX_UNSEEN],
                "cases outside training",
                unit="case",
                disable=not cli.main_rank(),
            ):
                made = self.draw(
                    PlannedCase(case.id, case, dict(case.row), self.o.expand.seed), mask, 0
                )
                distances.append(copies.to_source(made.volume, made.labels, case, made.drawn))
            mask.unlink(missing_ok=True)
            write_json(path, distances)
        return copies.knowing(read_json(path))

    def _record(
        self, p: PlannedCase, redrawn: int, near: Nearest, left_out: bool
    ) -> dict[str, Any]:
        return {
            "case": p.id,
            "source": p.source.id,
            "seed": p.seed,
            "redrawn": redrawn,
            "left_out": left_out,
            "nearest_training_case": near.case,
            "distance": round(near.distance, 5),
            "threshold": round(near.threshold, 5),
            "emptied": list(p.dropped),
            "prompt": self.template.phrases(p.row).sentence,
        }


def open_cohort(o: ExpandCommand, run: LoadedRun) -> tuple[Cohort, list[Case]]:
    """The real cohort and the cases used."""
    cohort = load_run_cohort(
        run.folder, run.options.data, o.expand.dataroot, run.options.run.seed, need_images=False
    )
    cases = list(cohort.cases if o.expand.split == "all" else cohort.split(o.expand.split))
    check_labels_known(cohort.labels, run.labels, [case.mask for case in cases])
    if o.expand.split != "train":
        log.warning(
            "--split %s: patients who are not for training lend their masks, so tests on them mean "
            "less.",
            o.expand.split,
        )
    return cohort, cases


def scans_of(run: LoadedRun, cohort: Cohort) -> tuple[list[Case], list[Case]]:
    """The scans that the run was trained on, and those of its cohort that it was not."""
    own = run.options.data.dataroot
    if not is_training_cohort(run.options.data, cohort.root):
        if not Path(own).is_dir():
            log.warning(
                "The run's training cohort %s is not there: copies are looked for among the scans "
                "of %s alone.",
                own,
                cohort.root,
            )
            return [case for case in cohort.cases if case.image is not None], []
        cohort = load_run_cohort(
            run.folder, run.options.data, own, run.options.run.seed, need_images=True
        )
    seen, scans = (
        set(cohort.splits["train"]),
        [case for case in cohort.cases if case.image is not None],
    )
    return [case for case in scans if case.id in seen], [
        case for case in scans if case.id not in seen
    ]


def plan_cases(
    o: ExpandCommand, run: LoadedRun, cases: Sequence[Case], template: Template
) -> list[PlannedCase]:
    """What is to be made; raises `UserError` for a column or a table that does not serve."""
    e = o.expand
    if bool(e.balance) == bool(e.table):
        raise UserError("Give either --balance COLUMN, or --table FILE with the rows to make.")
    if e.table:
        table = read_table(Path(e.table), run.options.data.key_column)
        if unknown := sorted(set(table.columns) - set(run.state["columns"]) - set(PROVENANCE)):
            log.warning(
                "--table: the run was trained without %s; what they say changes nothing that it "
                "learnt.",
                format_list(unknown),
            )
        made = plan_table(table, cases, template, e.n, e.seed)
    else:
        if not e.n:
            raise UserError("--n is 0; with --balance it says how many cases to make.")
        made = plan_balanced(
            cases,
            template,
            e.balance,
            e.n,
            together=e.goal == "together",
            changed=e.rows == "changed",
            seed=e.seed,
        )
        if e.balance not in run.state["columns"]:
            raise UserError(
                f"--balance: the run {run.folder.name} was trained without the column "
                f"{e.balance!r}."
            )
    for planned in made:
        run.generator.encoder.validate([template.phrases(planned.row).texts])
    return made


def write_cohort(
    o: ExpandCommand, run: LoadedRun, cohort: Cohort, made: Sequence[PlannedCase]
) -> None:
    """Table, splits and README, once every case of every process is there."""
    out, data = Path(o.expand.out), run.options.data
    paths = [out / RECORDS / f"{p.id}.json" for p in made]
    if not all(path.is_file() for path in paths):
        log.info("Other processes are still at work; the last one writes the table.")
        return
    records = [read_json(path) for path in paths]
    kept = [(p, r) for p, r in zip(made, records, strict=True) if not r["left_out"]]
    columns = list(
        dict.fromkeys(
            [data.key_column, *cohort.columns, *(c for p in made for c in p.row), *PROVENANCE]
        )
    )
    rows = [
        {
            **p.row,
            data.key_column: p.id,
            **dict(
                zip(
                    PROVENANCE,
                    ("yes", p.source.id, p.seed, f"{run.folder.name} step {run.state['step']}"),
                    strict=True,
                )
            ),
        }
        for p, _ in kept
    ]
    write_csv(out / "clinical.csv", columns, [{c: row.get(c, "") for c in columns} for row in rows])
    save_splits(
        out / runs.SPLITS_FILE, {"train": tuple(p.id for p, _ in kept), "val": (), "test": ()}
    )
    write_csv(out / "copies.csv", COPY_COLUMNS, [{c: r[c] for c in COPY_COLUMNS} for r in records])
    counts = (
        Counter(p.row.get(o.expand.balance, "") for p, _ in kept) if o.expand.balance else Counter()
    )
    text = cohort_readme(
        records,
        run.folder.name,
        run.state["step"],
        cohort.root.name,
        o.expand.balance,
        counts,
        o.expand.check_copies,
    )
    with atomic_path(out / "README.md") as part:
        part.write_text(text, encoding="utf-8")
    log.info(
        "%d synthetic cases in %s (%d redrawn, %d left out as copies).",
        len(kept),
        out,
        sum(r["redrawn"] for r in records),
        len(records) - len(kept),
    )


def synthesise_cohort(o: ExpandCommand) -> Path:
    """Makes the cohort, or this process's share of it."""
    e, m = o.expand, o.model
    if not e.out:
        raise UserError("--out is not given; it is the folder of the new cohort.")
    everyone = ",".join(map(str, range(torch.cuda.device_count()))) if cli.world_size() > 1 else ""
    run = load_run(replace(m, gpu_ids=m.gpu_ids or everyone))
    cohort, cases = open_cohort(o, run)
    data = run.options.data
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    made = plan_cases(o, run, cases, template)
    settings = {
        "run": run.folder.name,
        "step": run.state["step"],
        "deform": asdict(o.deform),
        "table": hashlib.sha256(Path(e.table).read_bytes()).hexdigest() if e.table else "",
        **{k: v for k, v in asdict(e).items() if k not in ("out", "overwrite", "table")},
    }
    if cli.main_rank():
        open_record(Path(e.out), RECORD, settings, e.overwrite)
    else:
        wait_for_record(Path(e.out), RECORD, settings)
    records, rank = Path(e.out) / RECORDS, int(os.environ.get("RANK", "0"))
    records.mkdir(exist_ok=True)
    todo = [p for p in made[rank :: cli.world_size()] if not (records / f"{p.id}.json").is_file()]
    if todo:
        make = CaseSynthesiser(o, run, template)
        if e.check_copies:
            training, unseen = scans_of(run, cohort)
            make = replace(
                make, copies=make.learn(CopySearch.from_cases(training, data.lung_labels), unseen)
            )
        for planned in tqdm(todo, "synthetic cases", unit="case", disable=not cli.main_rank()):
            write_json(records / f"{planned.id}.json", make(planned))
    write_cohort(o, run, cohort, made)
    return Path(e.out)

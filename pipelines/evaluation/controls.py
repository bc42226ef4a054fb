"""Control sets: shuffled prompts, empty prompts, noise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.text.prompts import Prompt
from options.control_options import CONTROL_KINDS as KINDS
from options.control_options import ControlCommand
from options.parser import to_dict
from options.test_options import TestOptions
from pipelines.generation import GenerationPlan, open_plan, open_run
from pipelines.results import RESULTS_FILE, VOLUME_COLUMNS, CaseWriter
from util.cli import UserError, safe_name
from util.files import write_csv
from util.records import open_record

log = logging.getLogger(__name__)


def control_prompts(kind: str, own: Mapping[str, Prompt], seed: int) -> dict[str, Prompt]:
    """The prompt of each case in a control; shuffled prompts go round a random ring, so that no
    case keeps its own.
    """
    cases = list(own)
    if kind == "empty":
        return dict.fromkeys(cases, Prompt())
    if kind == "shuffled":
        ring = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
        return {case: own[ring[(ring.index(case) + 1) % len(ring)]] for case in cases}
    return dict(own)


def make_control(kind: str, plan: GenerationPlan, own: Mapping[str, Prompt], folder: Path) -> None:
    """Generate the volumes of one control that are not there yet, and then their table."""
    generator = plan.run.generator
    if kind == "noise":
        generator = replace(generator, seed=generator.seed + 1)
        plan = replace(plan, run=replace(plan.run, generator=generator))
    prompts = control_prompts(kind, own, plan.options.arms.seed)
    samples = plan.samples
    rows = []
    for number, case in enumerate(tqdm(plan.cases, desc=kind, unit="case")):
        prompt = prompts[case.id]
        file = f"volumes/{safe_name(case.id)}.nii.gz"
        if not (folder / file).is_file():
            sample = samples[number]
            writer = CaseWriter(folder, sample, generator.seed)
            writer.write_factual(plan.generate(sample, prompt), "generated")
        row = dict.fromkeys(VOLUME_COLUMNS, "")
        row.update(file=file, case=case.id, kind="own", prompt=prompt.sentence)
        row["seed"] = str(generator.seed)
        rows.append(row)
    write_csv(folder / "volumes.csv", VOLUME_COLUMNS, rows)


def make_controls(o: ControlCommand) -> Path:
    """Makes the controls asked for; raises `UserError` for an unknown one, or a folder of another
    run or other flags.
    """
    kinds, out = o.controls.controls or KINDS, Path(o.controls.OUT)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--controls is {unknown[0]!r}; it must be one of: {', '.join(KINDS)}.")
    options = TestOptions(source=o.source, model=o.model)
    options = replace(options, arms=replace(options.arms, seed=o.controls.seed))
    if not o.source.dataroot:
        raise UserError(
            "--dataroot is not given; it is the folder of the cohort whose masks and rows are used."
        )
    opened = open_plan(options, open_run(options))
    if len(opened.cases) < 2:
        raise UserError(
            f"--split {o.source.split} has {len(opened.cases)} case; to shuffle prompts, two are "
            "needed."
        )
    record = {
        "run": str(opened.run.folder.resolve()),
        "step": opened.run.state["step"],
        "options": to_dict(options),
    }
    record["options"]["output"] = {}
    open_record(out, RESULTS_FILE, record, overwrite=None)
    own = {case.id: opened.variants(case).factual.prompt for case in opened.cases}
    for kind in kinds:
        make_control(kind, opened, own, out / kind)
    log.info(
        "Controls in %s; give them to scripts/evaluate.py by --shuffled, --empty and --again.", out
    )
    return out

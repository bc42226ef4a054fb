"""Control sets: volumes of shuffled prompts, of empty prompts, and of other noise."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.text.prompts import Prompt
from options.control_options import CONTROL_KINDS, ControlCommand
from options.parser import to_dict
from options.test_options import InterventionOptions, TestOptions
from pipelines.generation.case_writer import VOLUME_COLUMNS, CaseWriter, display_window
from pipelines.generation.plan import GenerationPlan, open_plan, open_run
from pipelines.generation.results import RESULTS_FILE
from util.cli import UserError
from util.files import write_csv
from util.locks import locked_folder
from util.records import open_record

log = logging.getLogger(__name__)


def control_prompts(kind: str, factual: Mapping[str, Prompt], seed: int) -> dict[str, Prompt]:
    """Return the prompt of each case in a control.

    Shuffled prompts go round a random ring, so that no case keeps its own.

    Args:
        kind: One of `CONTROL_KINDS`.
        factual: The factual prompt of each case.
        seed: Seed of the ring.
    """
    cases = list(factual)
    if kind == "empty":
        return dict.fromkeys(cases, Prompt())
    if kind == "shuffled":
        ring = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
        successor = dict(zip(ring, ring[1:] + ring[:1], strict=True))
        return {case: factual[successor[case]] for case in cases}
    return dict(factual)


def make_control(
    kind: str, plan: GenerationPlan, factual: Mapping[str, Prompt], folder: Path
) -> None:
    """Generate the volumes of one control that are not there yet, and then their table."""
    generator = plan.run.generator
    if kind == "noise":
        generator = replace(generator, seed=generator.seed + 1)
        plan = replace(plan, run=replace(plan.run, generator=generator))
    prompts = control_prompts(kind, factual, plan.options.arms.seed)
    samples = plan.samples
    names = plan.file_names
    rows = []
    for number, case in enumerate(tqdm(plan.cases, desc=kind, unit="case")):
        prompt = prompts[case.id]
        file = f"volumes/{names.cases[case.id]}.nii.gz"
        if not (folder / file).is_file():
            sample = samples[number]
            window = display_window(plan.data)
            writer = CaseWriter(folder, sample, generator.seed, names, window=window)
            writer.write_factual(plan.generate(sample, prompt), "generated")
        row = dict.fromkeys(VOLUME_COLUMNS, "")
        row.update(file=file, case=case.id, kind="own", prompt=prompt.sentence)
        row["seed"] = str(generator.seed)
        rows.append(row)
    write_csv(folder / "volumes.csv", VOLUME_COLUMNS, rows)


def make_controls(command: ControlCommand) -> Path:
    """Make the controls; return their folder.

    Raises:
        UserError: A folder of another run or other flags.
    """
    kinds = command.controls.controls or CONTROL_KINDS
    out = Path(command.controls.OUT)
    with locked_folder(out, "OUT"):
        return _write_controls(command, kinds)


def _write_controls(command: ControlCommand, kinds: Sequence[str]) -> Path:
    """Make controls in a folder that no other process uses."""
    out = Path(command.controls.OUT)
    arms = InterventionOptions(seed=command.controls.seed)
    options = TestOptions(source=command.source, model=command.model, arms=arms)
    plan = open_plan(options, open_run(options))
    if len(plan.cases) < 2:
        raise UserError(
            f"--split {command.source.split} has {len(plan.cases)} case; to shuffle prompts, two "
            "are needed. Choose another split."
        )
    record = {
        "run": plan.run.folder.name,
        "step": plan.run.state["step"],
        "checkpoint": plan.run.digest,
        "options": to_dict(options) | {"output": {}},
    }
    open_record(out, RESULTS_FILE, record, overwrite=None)
    factual = {case.id: plan.variants(case).factual.prompt for case in plan.cases}
    for kind in kinds:
        make_control(kind, plan, factual, out / kind)
    log.info(
        "Controls in %s; give them to scripts/evaluate.py by --shuffled, --empty and --again.", out
    )
    return out

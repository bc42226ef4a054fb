"""Control sets: shuffled prompts, empty prompts, noise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.text.prompts import Prompt, sentence
from data.volume_dataset import VolumeDataset
from options.control_options import CONTROL_KINDS as KINDS
from options.control_options import ControlCommand
from options.parser import to_dict
from options.test_options import TestOptions
from pipelines import generation
from util.cli import UserError, safe_name
from util.records import open_record

log = logging.getLogger(__name__)


def control_prompts(kind: str, own: Mapping[str, Prompt], seed: int) -> dict[str, Prompt]:
    """The prompt of each case in a control; shuffled prompts go round a random ring, so that no
    case keeps its own.
    """
    cases = list(own)
    if kind == "empty":
        return dict.fromkeys(cases, ())
    if kind == "shuffled":
        ring = [cases[i] for i in np.random.default_rng(seed).permutation(len(cases))]
        return {case: own[ring[(ring.index(case) + 1) % len(ring)]] for case in cases}
    return dict(own)


def make_control(
    kind: str, opened: generation.GenerationPlan, own: Mapping[str, Prompt], folder: Path
) -> None:
    """Generates the volumes of one control that are not there yet, and their table at the end."""
    sampler = opened.run.generator
    if kind == "noise":
        opened = replace(
            opened,
            seed=opened.seed + 1,
            run=replace(opened.run, generator=replace(sampler, seed=sampler.seed + 1)),
        )
    prompts = control_prompts(kind, own, opened.seed)
    least, multiple = opened.run.options.patch.patch_size, [sampler.model.size_multiple] * 3
    wholes = VolumeDataset(opened.cases, opened.run.labels, opened.data, least, multiple)
    rows = []
    for i in tqdm(range(len(wholes)), desc=kind, unit="case"):
        case = opened.cases[i]
        prompt = prompts[case.id]
        file = f"volumes/{safe_name(case.id)}.nii.gz"
        if not (folder / file).is_file():
            whole = wholes[i]
            writer = generation.Writer(folder, whole, opened)
            writer.write(
                opened.generate(whole, prompt),
                "own",
                "",
                "generated",
                np.int16,
                prompt=sentence(prompt),
            )
        rows.append(
            dict.fromkeys(generation.VOLUME_COLUMNS, "")
            | {
                "file": file,
                "case": case.id,
                "kind": "own",
                "prompt": sentence(prompt),
                "seed": str(opened.seed),
            }
        )
    generation.write_table(folder / "volumes.csv", generation.VOLUME_COLUMNS, rows)


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
    opened = generation.open_plan(options, generation.open_run(options))
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
    open_record(out, generation.RESULTS_FILE, record, overwrite=False)
    own = {case.id: opened.arms(case)[0].prompt for case in opened.cases}
    for kind in kinds:
        make_control(kind, opened, own, out / kind)
    log.info(
        "Controls in %s; give them to scripts/evaluate.py by --shuffled, --empty and --again.", out
    )
    return out

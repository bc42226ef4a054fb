"""The counterfactual atlas of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from data.cohort import Case, Cohort
from data.text.prompts import Prompt
from data.volume_dataset import VolumeSample
from models.inference import LoadedRun, VolumeGenerator, load_run
from models.text.relevance import column_relevance
from options.atlas_options import AtlasCommand
from options.parser import to_dict
from options.test_options import CaseOptions, InterventionOptions, TestOptions
from pipelines import refits
from pipelines.atlas import files as report
from pipelines.atlas.analysis import Frames, RealCohort, atlas_tables, read_real_scans
from pipelines.atlas.measure import (
    AtlasMeasurements,
    CaseCounterfactuals,
    GenerateFn,
    Generators,
    Hu,
)
from pipelines.atlas.pages.plots import agreement_plot
from pipelines.atlas.planted_report import planted_effect_frame
from pipelines.atlas.report import write_pages
from pipelines.atlas.statistics.cautions import Caution, built_in_cautions, low_relevance_cautions
from pipelines.atlas.statistics.methods import methods_paragraph
from pipelines.atlas.statistics.tables import effect_frame
from pipelines.atlas.study import AtlasStudy, make_study
from pipelines.generation import GenerationPlan, open_plan, open_run, run_samples
from pipelines.results import VOLUME_COLUMNS, CaseWriter
from pipelines.run_cohort import is_training_cohort, is_training_copy, load_run_cohort
from util import cli
from util.cli import UserError
from util.files import atomic_folder, claim_folder

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class OpenAtlas:
    """The run with its cohort, what is looked at, who generates which case, and the refits."""

    test: GenerationPlan
    study: AtlasStudy
    painters: Callable[[Case], Generators]
    refits: Sequence[Mapping[str, Any]]


def open_atlas(o: AtlasCommand) -> OpenAtlas:
    """Checks run, cohort, columns and refits, and trains the refits that are missing."""
    source = CaseOptions(dataroot=o.cases.dataroot, split="all")
    options = TestOptions(
        source=source, model=o.model, arms=InterventionOptions(seed=o.output.seed)
    )
    run = open_run(options)
    opened = open_plan(options, run)
    trained_on = training_cohort(run, opened.cohort)
    study = make_study(
        o.cases,
        opened.cohort,
        trained_on,
        opened.template,
        opened.data,
        run.labels,
        run.state["columns"],
    )
    if study.folds or o.refit.refits or o.refit.permutations:
        origin = refits.OriginRun.load(run.folder, str(trained_on.root))
        refits.train_refits(origin, o.refit, refits.planned_refits(origin, o.refit, study.folds))
    return OpenAtlas(opened, study, *load_generators(o, run, study))


def training_cohort(run: LoadedRun, cohort: Cohort) -> Cohort:
    """The cohort that the run was trained on: the one given, unless that holds others and the run's
    own is still there.
    """
    own = replace(run.options.data, permute=(), resample=False, fold="")
    if is_training_cohort(own, cohort.root) or not Path(own.dataroot).is_dir():
        return cohort
    found = load_run_cohort(run.folder, own, own.dataroot, run.options.run.seed, need_images=False)
    return cohort if is_training_copy(cohort, found) else found


def load_generators(
    o: AtlasCommand, run: LoadedRun, study: AtlasStudy
) -> tuple[Callable[[Case], Generators], list[Mapping[str, Any]]]:
    """Who generates a case (the run, or that of its fold), anfinished_refitsefits that are there."""
    there = refits.records(run.folder)
    used = [r for r in there if r["kind"] in ("resampled", "permuted")]
    kinds = [r["kind"] for r in used]
    log.info(
        "Refits that are used: %d resampled, %d permuted.",
        kinds.count("resampled"),
        kinds.count("permuted"),
    )
    window = run.options.data.hu_window
    others = [
        (
            r["name"],
            r["kind"],
            frozenset(r["permuted"]),
            make_generate_fn(load_refit(o, run, r["name"]), window),
        )
        for r in used
    ]
    by_fold = {r["fold"]: r["name"] for r in there if r["kind"] == "fold"}
    mains = {fold: (by_fold[fold], load_refit(o, run, by_fold[fold])) for fold in study.folds}
    mains = mains or {"": (run.folder.name, run.generator)}
    made = {}
    for fold, (name, sampler) in mains.items():
        noisy, seed = sampler.model.noise_channels > 0, o.output.seed
        extra = [
            make_generate_fn(replace(sampler, seed=seed + k), window)
            for k in range(1, o.output.n_noise + 1)
            if noisy
        ]
        made[fold] = Generators(
            name,
            make_generate_fn(sampler, window),
            extra[:-1],
            extra[-1] if extra else None,
            others,
        )
    return lambda case: made[study.fold_of.get(case.id, "")], used


def load_refit(o: AtlasCommand, run: LoadedRun, name: str) -> VolumeGenerator:
    """A refit ready to generate; raises `UserError` where its labels are not those of the run."""
    options = replace(
        o.model,
        name=name,
        checkpoints_dir=str(run.folder / refits.REFITS),
        which_epoch="latest",
        text_encoder="",
    )
    made = load_run(options, seed=o.output.seed)
    if made.labels != run.labels:
        raise UserError(
            f"The refit {name} knows other labels than the run {run.folder.name}; train the refits "
            "again."
        )
    return made.generator


def make_generate_fn(sampler: VolumeGenerator, window: tuple[float, float]) -> GenerateFn:
    """A sampler as a function of a case and a prompt."""

    def paint(whole: VolumeSample, prompt: Prompt) -> Hu:
        made = sampler(whole, prompt.texts)
        return whole.to_hu(made)

    return paint


def generate_cases(
    opened: OpenAtlas, folder: Path, kept: int
) -> tuple[AtlasMeasurements, list[Row], list[Row]]:
    """Generates and measures every case; returns what was measured, and rows of cases.csv and
    volumes.csv.
    """
    study, plan = opened.study, opened.test
    measured, cases, volumes = AtlasMeasurements(), list[Row](), list[Row]()
    samples = run_samples(plan.run, study.cases, study.plan.data)
    progress = tqdm(samples, "generating", unit="case", disable=not cli.main_rank())
    for i, whole in enumerate(progress):
        painters = opened.painters(whole.case)
        own = plan.prompts[whole.case.id]
        case = CaseCounterfactuals(study.plan, whole, own, painters, measured)
        writer = CaseWriter(folder, whole, plan.options.arms.seed)
        if i < kept:
            writer.write_factual(case.own, "generated", prompt=own.sentence)
            if painters.other_noise is not None:
                writer.write_control(painters.other_noise(whole, own), "other noise", own.sentence)
        case.measure(writer.write_variant if i < kept else None)
        volumes += writer.rows
        ml = float(
            np.isin(whole.labels, study.plan.data.lung_labels).sum()
            * np.prod(voxel_sizes(whole.affine))
            / 1000
        )
        cases.append(
            {
                "case": whole.case.id,
                "run": painters.run,
                "generated": "yes",
                "lung_ml": ml,
                "vessel_share_generated": case.vessel_share,
                "prompt": own.sentence,
            }
        )
    files = {
        (v["case"], v["column"], v["value"]): v["file"] for v in volumes if v["kind"] == "varied"
    }
    for arm in measured.arms:
        arm["file"] = files.get((arm["case"], arm["column"], arm["value"]), "")
    return measured, cases, volumes


def case_frame(opened: OpenAtlas, generated: Sequence[Row], real: RealCohort) -> pd.DataFrame:
    """cases.csv: every case that was generated or compared with."""
    study = opened.study
    rows = {row["case"]: row for row in generated}
    split_of = {
        case: name for name, cases in reversed(study.cohort.splits.items()) for case in cases
    }
    made = []
    for case in study.cohort.cases:
        if case.id not in rows and case.id not in real.vessels:
            continue
        own = rows.get(
            case.id,
            {"run": "", "generated": "no", "prompt": opened.test.written[case.id].sentence},
        )
        made.append(
            {
                "lung_ml": real.scans.volume.get(case.id),
                **own,
                "case": case.id,
                "split": split_of.get(case.id, ""),
                "real": "yes" if case.id in real.vessels else "no",
                "seen": "yes" if case.id in study.seen else "no",
                "vessel_share_real": real.vessels.get(case.id),
            }
        )
    columns = [
        "case",
        "split",
        "generated",
        "real",
        "seen",
        "run",
        "lung_ml",
        "vessel_share_generated",
        "vessel_share_real",
        "prompt",
    ]
    return pd.DataFrame(made, columns=columns)


def method_facts(o: AtlasCommand, opened: OpenAtlas, frames: Frames, real: RealCohort) -> Row:
    """What the methods paragraph says."""
    run, study = opened.test.run, opened.study
    kinds = [r["kind"] for r in opened.refits]
    repeats = bool(real.scans.patient.duplicated().any())
    cases_said = (
        f"cross-fitted: by refits to {len(study.folds)} folds, each without the patients it "
        "generates"
        if study.fold_of
        else f"split {o.cases.split}"
    )
    noises = o.output.n_noise if run.generator.model.noise_channels else 0
    return {
        "run": run.folder.name,
        "model": run.options.generator.model,
        "encoder": run.state["encoder"].get("kind", "text"),
        "steps": run.state["step"],
        "training": len(study.training),
        "generated": len(study.cases),
        "cases_said": cases_said,
        "noise_said": f" and over {noises} fields of noise" if noises > 1 else "",
        "seed": o.output.seed,
        "window": " and ".join(f"{v:g}" for v in run.options.data.hu_window),
        "vessel_hu": o.cases.vessel_hu,
        "vessel_share": float(frames["cases"]["vessel_share_generated"].mean()),
        "refits": kinds.count("resampled"),
        "permuted": kinds.count("permuted"),
        "real": len(real.scans.density),
        "errors": "clustered by patient" if repeats else "HC3",
        "tests": int(
            (frames["tests"]["tested"].eq("yes") & frames["tests"]["real_p"].notna()).sum()
        ),
    }


def summarise_atlas(frames: Frames) -> tuple[str, bool]:
    """A sentence on what came out, and whether anything can be concluded at all."""
    small = frames["cautions"][frames["cautions"]["kind"] == "cohort too small"]
    if len(small):
        return str(small["text"].iloc[0]), False
    looked, found = len(frames["findings"]) + len(frames["not_found"]), len(frames["findings"])
    if (frames["cautions"]["kind"] == "no permuted refits").any():
        return (
            f"{looked} contrasts were looked at; nothing is called a finding, for there are too "
            "few permuted refits (scripts/refit.py).",
            False,
        )
    return f"{found} of {looked} contrasts that were looked at are findings.", True


def relevance_cautions(run: LoadedRun, study: AtlasStudy) -> list[Caution]:
    """Warnings of studied columns that the run hardly listens to."""
    said = [study.plan.template.phrases(case.row).annotated for case in study.training]
    return low_relevance_cautions(
        column_relevance(run.generator.encoder, said), [a.column for a in study.plan.attributes]
    )


def write_atlas(o: AtlasCommand, opened: OpenAtlas, folder: Path) -> None:
    """Generates, compares and writes everything into `folder`."""
    real = read_real_scans(opened.study)
    measured, generated, volumes = generate_cases(opened, folder, o.output.volumes)
    run = opened.test.run
    of_run = [
        *built_in_cautions(run.options.generator.text_region, run.options.text.text_mode),
        *relevance_cautions(run, opened.study),
    ]
    frames = atlas_tables(
        opened.study,
        measured,
        real,
        opened.refits,
        int(run.state["step"]),
        o.cases.diagnosis_column,
        of_run,
    )
    frames["cases"] = case_frame(opened, generated, real)
    frames["arms"] = pd.DataFrame(
        measured.arms, columns=["case", "column", "value", "prompt", "dropped", "file"]
    )
    frames["effects_by_case"] = effect_frame(measured.effects).drop(
        columns=["kind", "noise_change_hu"]
    )
    frames["volumes"] = pd.DataFrame(volumes, columns=list(VOLUME_COLUMNS))
    frames["maps"] = report.write_maps(folder, measured.maps.summary_maps())
    lungs = frames["tests"][
        (frames["tests"]["region"] == "lungs") & (frames["tests"]["kind"] != "slope")
    ]
    frames["agreement"] = lungs
    if (spike := planted_effect_frame(opened.study, measured)) is not None:
        frames["spike"] = spike
    agreement_plot(
        lungs, {c.id: c.label for c in opened.study.plan.contrasts}, folder / "agreement"
    )
    for name, frame in frames.items():
        report.write_table(folder, name, frame)
    facts = method_facts(o, opened, frames, real)
    text, (said, conclusive) = methods_paragraph(facts), summarise_atlas(frames)
    (folder / "methods.txt").write_text(text + "\n", encoding="utf-8")
    inside = {
        k: v
        for k, v in frames.items()
        if k not in ("cases", "arms", "effects_by_case", "volumes", "agreement")
    }
    report.write_record(
        folder,
        {
            "run": facts["run"],
            "settings": to_dict(o),
            "null_column": o.cases.null_column,
            "counts": facts,
            "summary": said,
            "conclusive": conclusive,
            "methods": text,
            **inside,
        },
    )
    write_pages(folder, opened.study)
    log.info("%s", said)


def build_atlas(o: AtlasCommand) -> Path:
    """Make the atlas; return its folder, which appears whole or not at all.

    Raises:
        UserError: `out` holds something that must not be replaced, or the run or cohort is bad.
    """
    if not o.output.out:
        raise UserError("--out is not given; it is the folder for the atlas.")
    out = Path(o.output.out)
    claim_folder(out, [report.ATLAS_RECORD], o.output.overwrite)
    with atomic_folder(out) as folder:
        opened = open_atlas(o)
        write_atlas(o, opened, folder)
    log.info("The atlas is in %s", out)
    return out

"""The counterfactual atlas of a run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from data.cohort import Case, Cohort
from data.text.counterfactuals import Variant
from data.text.prompts import Prompt, phrase_columns, sentence
from data.volume_dataset import VolumeDataset, VolumeSample
from data.volumes import to_hu
from models.inference import LoadedRun, VolumeGenerator, load_run
from models.text.relevance import column_relevance
from options.atlas_options import AtlasOutput, DiscoverCommand
from options.parser import to_dict
from options.test_options import CaseOptions, InterventionOptions, TestOptions
from pipelines import generation, refits
from pipelines.atlas import files as report
from pipelines.atlas.analysis import Frames, Real, analyse, read_real
from pipelines.atlas.measure import (
    AtlasMeasurements,
    CaseCounterfactuals,
    GenerateFn,
    Generators,
    Hu,
)
from pipelines.atlas.pages.plots import agreement_plot
from pipelines.atlas.planted_report import spike_frame
from pipelines.atlas.report import write_pages
from pipelines.atlas.statistics.cautions import Caution, built_in, silent_cautions
from pipelines.atlas.statistics.methods import methods
from pipelines.atlas.statistics.tables import effect_frame
from pipelines.atlas.study import AtlasStudy, make_study
from pipelines.run_cohort import is_copy, is_own, run_cohort
from util import cli
from util.cli import UserError
from util.training.devices import make_device

log = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """The run with its cohort, what is looked at, who generates which case, and the refits."""

    test: generation.GenerationPlan
    study: AtlasStudy
    painters: Callable[[Case], Generators]
    refits: Sequence[Mapping[str, Any]]


def open_all(o: DiscoverCommand) -> Opened:
    """Checks run, cohort, columns and refits, and trains the refits that are missing."""
    source = CaseOptions(dataroot=o.cases.dataroot, split="all")
    options = TestOptions(
        source=source, model=o.model, arms=InterventionOptions(seed=o.output.seed)
    )
    run = generation.open_run(options)
    opened = generation.open_plan(options, run)
    trained_on = own_cohort(run, opened.cohort)
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
        origin = refits.Origin.load(run.folder, str(trained_on.root))
        refits.train_refits(origin, o.refit, refits.wanted(origin, o.refit, study.folds))
    return Opened(opened, study, *networks(o, run, study))


def own_cohort(run: LoadedRun, cohort: Cohort) -> Cohort:
    """The cohort that the run was trained on: the one given, unless that holds others and the run's
    own is still there.
    """
    own = replace(run.options.data, permute=(), resample=False, fold="")
    if is_own(own, cohort.root) or not Path(own.dataroot).is_dir():
        return cohort
    found = run_cohort(run.folder, own, own.dataroot, run.options.run.seed, need_images=False)
    return cohort if is_copy(cohort, found) else found


def networks(
    o: DiscoverCommand, run: LoadedRun, study: AtlasStudy
) -> tuple[Callable[[Case], Generators], list[Mapping[str, Any]]]:
    """Who generates a case (the run, or that of its fold), and the refits that are there."""
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


def load_refit(o: DiscoverCommand, run: LoadedRun, name: str) -> VolumeGenerator:
    """A refit ready to generate; raises `UserError` where its labels are not those of the run."""
    m = o.model
    made = load_run(
        run.folder / refits.REFITS / name,
        device=make_device(m.gpu_ids),
        tile=m.tile,
        overlap=m.overlap,
        tile_batch=m.tile_batch,
        use_average=m.use_average,
        seed=o.output.seed,
    )
    if made.labels != run.labels:
        raise UserError(
            f"The refit {name} knows other labels than the run {run.folder.name}; train the refits "
            "again."
        )
    return made.generator


def make_generate_fn(sampler: VolumeGenerator, window: tuple[float, float]) -> GenerateFn:
    """A sampler as a function of a case and a prompt."""

    def paint(whole: VolumeSample, prompt: Prompt) -> Hu:
        made = sampler(whole.mask, whole.coords, whole.case.id, [p.text for p in prompt])
        return to_hu(whole.unpad(made.numpy()), window)

    return paint


def generate(
    opened: Opened, folder: Path, kept: int
) -> tuple[AtlasMeasurements, list[Row], list[Row]]:
    """Generates and measures every case; returns what was measured, and rows of cases.csv and
    volumes.csv.
    """
    study, run = opened.study, opened.test.run
    measured, cases, volumes = AtlasMeasurements(), list[Row](), list[Row]()
    multiple = [run.generator.model.size_multiple] * 3
    wholes = VolumeDataset(
        study.cases, run.labels, study.plan.data, run.options.patch.patch_size, multiple
    )
    for i in tqdm(range(len(wholes)), "generating", unit="case", disable=not cli.main_rank()):
        whole, painters = wholes[i], opened.painters(study.cases[i])
        own = opened.test.written[whole.case.id]
        case = CaseCounterfactuals(study.plan, whole, own, painters, measured)
        writer = generation.Writer(folder, whole, opened.test)
        if i < kept:
            writer.write(case.own, "own", "", "generated", np.int16, prompt=sentence(own))
            if painters.other_noise is not None:
                writer.write(
                    painters.other_noise(whole, own),
                    "control",
                    "__other_noise",
                    "other noise",
                    np.int16,
                    value="other noise",
                    prompt=sentence(own),
                )
        case.run(make_writer(writer) if i < kept else None)
        volumes += writer.volumes
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
                "prompt": sentence(own),
            }
        )
    files = {
        (v["case"], v["column"], v["value"]): v["file"] for v in volumes if v["kind"] == "varied"
    }
    for arm in measured.arms:
        arm["file"] = files.get((arm["case"], arm["column"], arm["value"]), "")
    return measured, cases, volumes


def make_writer(writer: generation.Writer) -> Callable[[Variant, Hu], None]:
    """A function that writes each varied arm."""

    def keep(arm: Variant, volume: Hu) -> None:
        name = f"__{cli.safe_name(arm.column)}={cli.safe_name(arm.value)}"
        writer.write(
            volume,
            "varied",
            name,
            arm.value,
            np.int16,
            column=arm.column,
            value=arm.value,
            prompt=sentence(arm.prompt),
        )

    return keep


def case_frame(opened: Opened, generated: Sequence[Row], real: Real) -> pd.DataFrame:
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
            {"run": "", "generated": "no", "prompt": sentence(opened.test.written[case.id])},
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


def method_facts(o: DiscoverCommand, opened: Opened, frames: Frames, real: Real) -> Row:
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


def summary(frames: Frames) -> tuple[str, bool]:
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


def silent(run: LoadedRun, study: AtlasStudy) -> list[Caution]:
    """Warnings of studied columns that the run hardly listens to."""
    said = phrase_columns(study.plan.template.phrases(case.row) for case in study.training)
    return silent_cautions(
        column_relevance(run.generator.encoder, said), [a.column for a in study.plan.attributes]
    )


def write_all(o: DiscoverCommand, opened: Opened, folder: Path) -> None:
    """Generates, compares and writes everything into `folder`."""
    real = read_real(opened.study)
    measured, generated, volumes = generate(opened, folder, o.output.volumes)
    run = opened.test.run
    of_run = [
        *built_in(run.options.generator.text_region, run.options.text.text_mode),
        *silent(run, opened.study),
    ]
    frames = analyse(
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
    frames["volumes"] = pd.DataFrame(volumes, columns=list(generation.VOLUME_COLUMNS))
    frames["maps"] = report.write_maps(folder, measured.maps.finished())
    lungs = frames["tests"][
        (frames["tests"]["region"] == "lungs") & (frames["tests"]["kind"] != "slope")
    ]
    frames["agreement"] = lungs
    if (spike := spike_frame(opened.study, measured)) is not None:
        frames["spike"] = spike
    agreement_plot(
        lungs, {c.id: c.label for c in opened.study.plan.contrasts}, folder / "agreement"
    )
    for name, frame in frames.items():
        report.write_table(folder, name, frame)
    facts = method_facts(o, opened, frames, real)
    text, (said, conclusive) = methods(facts), summary(frames)
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


@contextmanager
def new_folder(o: AtlasOutput) -> Iterator[Path]:
    """A folder beside `--out` that takes its name once everything is written; what was there is
    replaced then.

    Raises:
        UserError: Something lies there that must not be replaced.
    """
    out = Path(o.out)
    if not o.out:
        raise UserError("--out is not given; it is the folder for the atlas.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / report.RECORD).is_file():
            raise UserError(
                f"--out {out} exists, but is no atlas and is not replaced. Choose another folder."
            )
        if not o.overwrite:
            raise UserError(
                f"--out {out} holds an atlas already. Use --overwrite to replace it, or another "
                "folder."
            )
    part, aside = out.with_name(f".{out.name}.writing"), out.with_name(f".{out.name}.previous")
    shutil.rmtree(part, ignore_errors=True)
    try:
        yield part
        shutil.rmtree(aside, ignore_errors=True)
        if out.exists():
            out.rename(aside)
        try:
            part.rename(out)
        except OSError:
            if aside.exists():
                aside.rename(out)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def build_atlas(o: DiscoverCommand) -> Path:
    """Makes the atlas; returns its folder, which appears whole or not at all."""
    with new_folder(o.output) as folder:
        opened = open_all(o)
        folder.mkdir(parents=True)
        write_all(o, opened, folder)
    log.info("The atlas is in %s", o.output.out)
    return Path(o.output.out)

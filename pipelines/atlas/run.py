"""Building the counterfactual atlas of a run."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from data.cohort import Cohort
from data.resampling import patients_of
from data.text.paraphrase import reworded
from models.inference import LoadedRun
from models.text.relevance import column_relevance
from options.atlas_options import AtlasCommand
from options.parser import to_dict
from options.test_options import CaseOptions, InterventionOptions, ModelOptions, TestOptions
from pipelines.atlas import files
from pipelines.atlas.analysis import (
    Frames,
    RunFacts,
    atlas_tables,
    measure_masks,
    measure_real_scans,
)
from pipelines.atlas.attributes import attribute_variants
from pipelines.atlas.generators import AtlasNetworks, generate_cases
from pipelines.atlas.measure import Row
from pipelines.atlas.pages.charts import agreement_plot
from pipelines.atlas.planted_report import planted_effect_frame, read_planted
from pipelines.atlas.progress import AtlasProgress, GeneratedCases, progress_folder
from pipelines.atlas.report import write_pages
from pipelines.atlas.statistics import negative_controls
from pipelines.atlas.statistics.cautions import (
    Caution,
    NextCommands,
    built_in_cautions,
    changed_data_cautions,
    low_relevance_cautions,
)
from pipelines.atlas.statistics.intervals import MIN_PERMUTED
from pipelines.atlas.statistics.methods import methods_paragraph
from pipelines.atlas.statistics.outcomes import MEAN, OUTCOMES
from pipelines.atlas.statistics.regression import RealScans
from pipelines.atlas.statistics.sentences import split_reason
from pipelines.atlas.statistics.tables import effect_frame
from pipelines.atlas.study import DEFAULT_SPLIT, AtlasStudy
from pipelines.generation.case_writer import VOLUME_COLUMNS
from pipelines.generation.plan import GenerationPlan, open_plan, open_run
from pipelines.generation.results import RESULTS_FILE, atlas_page, training_page
from pipelines.refits.cross_fitting import FOLDS, NO_FOLD, finished_folds, needs_folds
from pipelines.refits.plan import OriginRun, planned_refits
from pipelines.refits.records import finished_refits
from pipelines.refits.training import changed_data, train_refits
from pipelines.run_cohort import (
    holds_training_scan,
    is_training_cohort,
    is_training_copy,
    load_run_cohort,
)
from pipelines.run_words import known_synonyms
from util.cli import counted, format_list, path_from_here
from util.files import atomic_folder, claim_folder, file_fingerprint, json_digest
from util.locks import locked_folder
from util.metrics.regions import region_name
from util.notices import Notice, collected_warnings
from util.training import checkpoint, runs
from util.web.page_links import LinkedPage, link_pages

log = logging.getLogger(__name__)

CASE_COLUMNS = (
    "case",
    "split",
    "generated",
    "real",
    "seen",
    "run",
    "lung_ml",
    "prompt",
)
ARM_COLUMNS = ("case", "column", "value", "prompt", "dropped", "file")
ADVISED_REFITS = 20
# Cautions with which nothing is a finding, and why.
NO_FINDINGS = {
    "no permuted refits": "there are too few permuted refits (scripts/refit.py; the command is "
    "among the cautions)",
    "seen": "the model was trained on scans that it is compared with",
    "other steps": "refits were trained for other steps than the run",
}
# Tables with one row per case, which atlas.json does not hold.
CASE_TABLES = ("cases", "arms", "effects_by_case", "volumes", "agreement")


@dataclass(frozen=True)
class OpenAtlas:
    """A checked atlas that is ready to be generated.

    Attributes:
        generation: The run, the cohort and the prompts.
        networks: The networks that generate.
    """

    options: AtlasCommand
    generation: GenerationPlan
    study: AtlasStudy
    networks: AtlasNetworks

    def generate(self, progress: AtlasProgress, num_kept: int) -> GeneratedCases:
        """Generate and measure every case; see `generate_cases`."""
        return generate_cases(self.generation, self.study, self.networks, progress, num_kept)

    @property
    def key(self) -> str:
        """Digest of what generated cases depend on: settings, networks, files, and format."""
        settings = to_dict(self.options)
        for name in ("out", "overwrite"):
            del settings["output"][name]
        run = self.generation.run
        checkpoint_dir = checkpoint.find(run.folder / self.options.model.which_epoch)
        cases = []
        for case in self.study.cases:
            paths = [case.mask, *([case.image] if case.image else [])]
            prompt = self.generation.prompts[case.id].sentence
            cases.append([case.id, prompt, *map(file_fingerprint, paths)])
        values = {
            "version": files.FORMAT_VERSION,
            "settings": settings,
            "run": file_fingerprint(checkpoint_dir / checkpoint.STATE_FILE),
            "synonyms": dict(known_synonyms(run.generator.encoder)),
            "refits": [dict(record) for record in self.networks.refits],
            "folds": {fold: one.run for fold, one in self.networks.by_fold.items()},
            "fold_of": self.study.fold_of,
            "values": {one.column: one.values for one in self.study.plan.attributes},
            "cases": cases,
        }
        return json_digest(values)


def build_atlas(options: AtlasCommand) -> Path:
    """Build an atlas; return its folder, which appears whole or not at all.

    Finished cases are kept beside it until then, so that a stopped command resumes.

    Raises:
        UserError: `out` holds something that must not be replaced, or run and cohort do not serve.
    """
    out = Path(options.output.out)
    with locked_folder(out, "--out"), collected_warnings() as notices:
        claim_folder(out, [files.ATLAS_RECORD], options.output.overwrite)
        with atomic_folder(out) as folder:
            opened = open_atlas(options)
            progress = AtlasProgress(progress_folder(out), opened.key)
            try:
                write_atlas(opened, folder, progress, notices)
            except BaseException:
                progress.close()
                raise
        progress.remove()
    link_atlas(out, options.model)
    log.info("The atlas is in %s", out)
    return out


def link_atlas(out: Path, model: ModelOptions) -> None:
    """Let the atlas and the run's pages (training, generated volumes) link to each other."""
    atlas = atlas_page(out)
    link_pages(atlas, training_page(runs.find_run(model.checkpoints_dir, model.name)))
    for record in sorted(out.parent.glob(f"*/{RESULTS_FILE}")):
        text = f"Volumes {record.parent.name}"
        link_pages(atlas, LinkedPage(text, record.parent / "index.html"))


def open_atlas(options: AtlasCommand) -> OpenAtlas:
    """Check run, cohort, columns and refits, and train the refits that are missing."""
    test_options = TestOptions(
        source=CaseOptions(dataroot=options.cases.dataroot, split="all"),
        model=options.model,
        arms=InterventionOptions(seed=options.output.seed),
    )
    run = open_run(test_options)
    generation = open_plan(test_options, run)
    trained_on = training_cohort(run, generation.cohort)
    fold = choose_fold(options, run, generation, trained_on)
    cases = replace(options.cases, fold=fold)
    study = AtlasStudy.from_options(cases, generation, trained_on)
    validate_texts(generation, study)
    read_planted(study.cohort.root)  # damage is found before the long work
    if study.folds or options.refit.refits or options.refit.permutations:
        origin = OriginRun.load(run.folder, str(trained_on.root))
        planned = planned_refits(origin, options.refit, study.folds)
        train_refits(origin, options.refit, planned)
    return OpenAtlas(options, generation, study, AtlasNetworks.load(options, run, study))


def validate_texts(generation: GenerationPlan, study: AtlasStudy) -> None:
    """Check the text of every volume at once, so that wording not seen is warned of once.

    Raises:
        UserError: A text is too long for the encoder.
    """
    prompts = []
    for case in study.cases:
        text = generation.text(case)
        prompts += [text.prompt, reworded(text.prompt)]
        for attribute in study.plan.attributes:
            prompts += [variant.prompt for variant in attribute_variants(text, attribute)]
    generation.run.generator.encoder.validate([prompt.texts for prompt in prompts])


def choose_fold(
    options: AtlasCommand, run: LoadedRun, generation: GenerationPlan, trained_on: Cohort
) -> str:
    """Return the folds of cross-fitting: those asked for, or the default; "" for none.

    By default patients are cross-fitted where too few are unseen, if the refits of the folds are
    finished, or are trained with other refits. They are not trained for themselves, because an
    atlas without permuted refits claims nothing.
    """
    cases = options.cases
    if cases.fold:
        return "" if cases.fold == NO_FOLD else cases.fold
    if cases.split or cases.how_many or cases.real_split or trained_on is not generation.cohort:
        return ""
    patients = patients_of(generation.cohort, generation.data.patient_column)
    if not needs_folds(generation.cohort, patients):
        return ""
    wanted = options.refit.refit_steps  # those of other steps would be trained again
    records = [
        record
        for record in finished_refits(run.folder)
        if record["steps"] == (wanted or record["run_step"])
    ]
    count = finished_folds(records)
    if not count and (options.refit.refits or options.refit.permutations):
        count = FOLDS
    if not count:
        return ""
    log.info(
        "Too few patients are outside the training split. All are cross-fitted in %d folds, each "
        "generated by a refit that has not seen them (--fold none: no cross-fitting).",
        count,
    )
    return f"all/{count}"


def training_cohort(run: LoadedRun, cohort: Cohort) -> Cohort:
    """Return the cohort that the run was trained on.

    This is `cohort`, unless that holds other patients and the run's own cohort still exists.
    """
    data = replace(run.options.data, permute=(), resample=False, fold="")
    if is_training_cohort(data, cohort.root) or not Path(data.dataroot).is_dir():
        return cohort
    seed = run.options.run.seed
    trained_on = load_run_cohort(run.folder, data, data.dataroot, seed, need_images=False)
    return cohort if is_training_copy(cohort, trained_on) else trained_on


def write_atlas(
    opened: OpenAtlas, folder: Path, progress: AtlasProgress, notices: Sequence[Notice] = ()
) -> None:
    """Generate, compare, and write everything into `folder`; the page shows `notices`."""
    options, study = opened.options, opened.study
    real = measure_real_scans(study)
    generated = opened.generate(progress, options.output.volumes)
    progress.move_volumes(folder)
    measurements = generated.measurements
    run_facts = RunFacts(
        int(opened.generation.run.state["step"]),
        opened.networks.refits,
        run_cautions(opened),
        options.cases.diagnosis_column,
        next_commands(options, int(opened.generation.run.state["step"])),
    )
    frames = atlas_tables(study, measurements, real, measure_masks(study), run_facts)
    frames["cases"] = case_frame(opened, generated.cases, real)
    frames["arms"] = pd.DataFrame(measurements.arms, columns=list(ARM_COLUMNS))
    by_case = effect_frame(measurements.effects)
    frames["effects_by_case"] = by_case.drop(columns=["kind", "noise_change"])
    frames["volumes"] = pd.DataFrame(generated.volumes, columns=list(VOLUME_COLUMNS))
    frames["maps"] = files.write_maps(folder, measurements.maps.summary_maps())
    tests = frames["tests"]
    is_shown = (tests["outcome"] == MEAN) & (tests["region"] == "lungs")
    frames["agreement"] = tests[is_shown & (tests["kind"] != "slope")]
    planted = planted_effect_frame(study, measurements, tests)
    if planted is not None:
        frames["spike"] = planted
    labels = {contrast.id: contrast.label for contrast in study.plan.contrasts}
    agreement_plot(frames["agreement"], labels, folder / "agreement", study.plan.data.terms)
    terms = study.plan.data.terms
    for name, frame in frames.items():
        files.write_table(folder, name, frame, terms)
    facts = method_facts(opened, frames, real)
    methods = terms.text(methods_paragraph(facts))
    summary = AtlasSummary.from_frames(frames)
    (folder / "methods.txt").write_text(methods + "\n", encoding="utf-8")
    record = {
        "run": facts["run"],
        "settings": to_dict(options),
        "null_column": options.cases.null_column,
        "counts": facts,
        "summary": summary.text,
        "conclusive": summary.conclusive,
        "methods": methods,
        "warnings": [notice.text for notice in notices],
    }
    record |= {name: frame for name, frame in frames.items() if name not in CASE_TABLES}
    files.write_record(folder, record)
    write_pages(folder, study)
    log.info("%s", terms.text(summary.text))


def next_commands(options: AtlasCommand, steps: int) -> NextCommands:
    """Return the commands that train missing refits, and that build a cross-fitted atlas."""
    words = ["--name", options.model.name, "--dataroot", path_from_here(options.cases.dataroot)]
    if options.model.checkpoints_dir != ModelOptions().checkpoints_dir:
        words += ["--checkpoints_dir", path_from_here(options.model.checkpoints_dir)]
    run = shlex.join(words)
    out = shlex.join(["--out", f"{path_from_here(options.output.out)}_cross_fitted"])
    return NextCommands(
        f"python scripts/refit.py {run} --refits {ADVISED_REFITS} --permutations {MIN_PERMUTED}",
        f"python scripts/build_atlas.py {run} --fold all/{FOLDS} {out}",
        f"{FOLDS} refits of {counted(steps, 'step')} each",
    )


def run_cautions(opened: OpenAtlas) -> list[Caution]:
    """Return the cautions that the run calls for, such as built-in controls and low relevance."""
    run, study = opened.generation.run, opened.study
    prompts = [study.plan.template.phrases(case.row).annotated for case in study.training]
    relevance = column_relevance(run.generator.encoder, prompts)
    columns = [attribute.column for attribute in study.plan.attributes]
    built_in = built_in_cautions(run.options.generator.text_region, run.options.text.text_mode)
    changes: list[str] = []
    root, data = study.trained_on.root, run.options.data
    if is_training_cohort(data, root) or holds_training_scan(
        study.trained_on, run.folder, run.state
    ):
        changes = changed_data(OriginRun.load(run.folder, str(root)))
    low = low_relevance_cautions(relevance, columns)
    return [*built_in, *low, *changed_data_cautions(changes)]


def case_frame(opened: OpenAtlas, generated: Sequence[Row], real: RealScans) -> pd.DataFrame:
    """Return cases.csv: every case that was generated or compared with."""
    study = opened.study
    generated_rows = {row["case"]: row for row in generated}
    split_of: dict[str, str] = {}
    for split, case_ids in study.cohort.splits.items():
        for case_id in case_ids:
            split_of.setdefault(case_id, split)
    rows = []
    for case in study.cohort.cases:
        if case.id not in generated_rows and case.id not in real.volume.index:
            continue
        prompt = opened.generation.prompts[case.id].sentence
        not_generated = {"run": "", "generated": "no", "prompt": prompt}
        rows.append(
            {
                "lung_ml": real.volume.get(case.id),
                **generated_rows.get(case.id, not_generated),
                "case": case.id,
                "split": split_of.get(case.id, ""),
                "real": "yes" if case.id in real.volume.index else "no",
                "seen": "yes" if case.id in study.seen else "no",
            }
        )
    return pd.DataFrame(rows, columns=list(CASE_COLUMNS))


def method_facts(opened: OpenAtlas, frames: Frames, real: RealScans) -> Row:
    """Return the facts of the methods paragraph."""
    run, study, options = opened.generation.run, opened.study, opened.options
    kinds = [refit["kind"] for refit in opened.networks.refits]
    cases = f"split {options.cases.split or DEFAULT_SPLIT}"
    if study.fold_of:
        cases = (
            f"cross-fitted: by refits to {len(study.folds)} folds, each without the patients it "
            "generates"
        )
    noises = options.output.n_noise if run.generator.model.noise_channels else 0
    is_compared = frames["tests"]["tested"].eq("yes") & frames["tests"]["real_p"].notna()
    has_repeats = bool(real.patient.duplicated().any())
    controls = frames["negative_controls"]
    measured = controls.loc[controls["real"].notna(), "region"].unique()
    return {
        "run": run.folder.name,
        "model": run.options.generator.model,
        "encoder": run.state["encoder"].get("kind", "text"),
        "steps": run.state["step"],
        "training": len(study.training),
        "generated": len(study.cases),
        "cases_said": cases,
        "noise_said": f" and over {noises} fields of noise" if noises > 1 else "",
        "seed": options.output.seed,
        "unit": study.plan.data.terms.unit,
        "window": " and ".join(f"{hu:g}" for hu in run.options.data.hu_window),
        "refits": kinds.count("resampled"),
        "permuted": kinds.count("permuted"),
        "real": len(real.outcomes),
        "errors": "CR3 cluster-robust" if has_repeats else "HC3",
        "imputed": bool(real.completed.imputed),
        "seen_said": _seen_text(study, real),
        "controls": [region_name(region) for region in measured],
        "tests": int(is_compared.sum()),
    }


def _seen_text(study: AtlasStudy, real: RealScans) -> str:
    """Return what the methods say of scans that were used in training."""
    seen = int(real.outcomes.index.isin(study.seen).sum())
    return f" ({seen} of them used in training)" if seen else ", none of them used in training,"


def _largest_contrast(not_found: pd.DataFrame) -> str:
    """Return the largest contrast of the mean in a sentence; "" for none."""
    if not len(not_found):
        return ""
    means = not_found.loc[not_found["outcome"] == MEAN, "sentence"].tolist()
    return f" Largest of them: {split_reason(means[0])[0]}" if means else ""


@dataclass(frozen=True)
class AtlasSummary:
    """The outcome in a sentence, and whether anything can be concluded at all."""

    text: str
    conclusive: bool

    @classmethod
    def from_frames(cls, frames: Frames) -> AtlasSummary:
        """Summarise the tables of an atlas."""
        outcome = cls._from_findings(frames)
        warned = frames["cautions"]
        is_confounded = (warned["kind"] == negative_controls.KIND) & (warned["forbids"] == "yes")
        confounded = warned.loc[is_confounded, "column"].tolist()
        if not confounded:
            return outcome
        text = (
            f"{outcome.text} Negative controls show that groups were scanned differently: "
            f"{format_list(confounded)}."
        )
        return cls(text, outcome.conclusive)

    @classmethod
    def _from_findings(cls, frames: Frames) -> AtlasSummary:
        cautions = frames["cautions"]
        too_small = cautions.loc[cautions["kind"] == "cohort too small", "text"]
        if len(too_small):
            return cls(str(too_small.iloc[0]), False)
        found = frames["findings"]["contrast"].nunique()
        studied = frames["tests"].loc[frames["tests"]["tested"] == "yes", "contrast"].nunique()
        contrasts = counted(studied, "contrast was", "contrasts were")
        for kind, reason in NO_FINDINGS.items():
            if cautions["kind"].eq(kind).any():
                text = f"{contrasts} studied; nothing is called a finding, because {reason}."
                return cls(f"{text}{_largest_contrast(frames['not_found'])}", False)
        measured = set(frames["tests"]["outcome"]) & set(OUTCOMES)
        text = (
            f"{contrasts} studied; {counted(found, 'is a finding', 'are findings')} in at least "
            f"one of {counted(len(measured), 'outcome')}."
        )
        return cls(text, True)

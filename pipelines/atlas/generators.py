"""The networks of an atlas, and the generation of its cases."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data.text.prompts import Prompt
from data.volume_dataset import VolumeSample
from models.inference import LoadedRun, VolumeGenerator
from options.atlas_options import AtlasCommand
from pipelines.atlas.measure import (
    CaseCounterfactuals,
    GenerateFn,
    Generators,
    Hu,
    Replicate,
    lung_volume_ml,
)
from pipelines.atlas.progress import AtlasProgress, GeneratedCases
from pipelines.atlas.study import AtlasStudy
from pipelines.generation.case_writer import CaseWriter, VolumeNames, display_window
from pipelines.generation.plan import GenerationPlan, run_samples
from pipelines.refits.plan import REFITS
from pipelines.refits.records import finished_refits
from pipelines.run_words import load_worded_run
from util.cli import UserError
from util.progress import RemainingTime, progress_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AtlasNetworks:
    """The networks that generate the cases of an atlas.

    Attributes:
        by_fold: Generators by fold; by "" without cross-fitting.
        refits: Records of the refits that are used: resampled, permuted, and those of folds.
    """

    by_fold: Mapping[str, Generators]
    refits: Sequence[Mapping[str, Any]]

    @classmethod
    def load(cls, options: AtlasCommand, run: LoadedRun, study: AtlasStudy) -> AtlasNetworks:
        """Load the run, the refits of its folds, and its other refits that are finished."""
        records = finished_refits(run.folder)
        used = [record for record in records if record["kind"] in ("resampled", "permuted")]
        kinds = [record["kind"] for record in used]
        log.info(
            "Refits that are used: %d resampled, %d permuted.",
            kinds.count("resampled"),
            kinds.count("permuted"),
        )
        replicates = []
        for record in used:
            generator = load_refit(options, run, record["name"])
            permuted = frozenset(record["permuted"])
            replicates.append(
                Replicate(record["name"], record["kind"], permuted, make_generate_fn(generator))
            )
        folds = [record for record in records if record["fold"] in study.folds]
        names = {record["fold"]: record["name"] for record in folds}
        generators = {"": _make_generators(options, run.folder.name, run.generator, replicates)}
        if study.folds:
            generators = {}
        for fold in study.folds:
            generator = load_refit(options, run, names[fold])
            generators[fold] = _make_generators(options, names[fold], generator, replicates)
        return cls(generators, [*used, *folds])


def _make_generators(
    options: AtlasCommand, name: str, generator: VolumeGenerator, replicates: Sequence[Replicate]
) -> Generators:
    """Return a network with its noise fields; the last field is the control."""
    noises = []
    if generator.model.noise_channels > 0:
        for k in range(1, options.output.n_noise + 1):
            noises.append(make_generate_fn(replace(generator, seed=options.output.seed + k)))
    other_noise = noises.pop() if noises else None
    return Generators(name, make_generate_fn(generator), noises, other_noise, replicates)


def load_refit(options: AtlasCommand, run: LoadedRun, name: str) -> VolumeGenerator:
    """Load a refit; raise `UserError` where its labels are not those of the run."""
    model = replace(
        options.model,
        name=name,
        checkpoints_dir=str(run.folder / REFITS),
        which_epoch="latest",
        text_encoder="",
    )
    refit = load_worded_run(model, seed=options.output.seed)
    if refit.labels != run.labels:
        raise UserError(
            f"The refit {name} was trained with other labels than the run {run.folder.name}; train "
            "the refits again."
        )
    return refit.generator


def make_generate_fn(generator: VolumeGenerator) -> GenerateFn:
    """Return a generator as a function of a case and a prompt."""

    def generate(sample: VolumeSample, prompt: Prompt) -> Hu:
        return sample.to_hu(generator(sample, prompt.texts))

    return generate


def generate_cases(
    generation: GenerationPlan,
    study: AtlasStudy,
    networks: AtlasNetworks,
    progress: AtlasProgress,
    num_kept: int,
) -> GeneratedCases:
    """Generate and measure every case, but those that are finished already.

    Args:
        generation: The run and the prompts.
        progress: Finished cases; kept volumes go to its folder.
        num_kept: Number of cases whose volumes are kept.
    """
    generated = progress.load()
    done = len(generated.cases)
    samples = run_samples(generation.run, study.cases[done:], study.plan.data)
    remaining = RemainingTime(len(study.cases) - done, "cases")
    values = {attribute.column: attribute.values for attribute in study.plan.attributes}
    names = VolumeNames.from_cohort(study.cohort, values)
    bar = progress_bar(samples, "generating")
    for index, sample in enumerate(bar, done):
        generators = networks.by_fold[study.fold_of.get(sample.case.id, "")]
        text = generation.text(sample.case)
        prompt = text.prompt
        case = CaseCounterfactuals(study.plan, sample, text, generators, generated.measurements)
        writer = CaseWriter(
            progress.folder,
            sample,
            generation.options.arms.seed,
            names,
            window=display_window(study.plan.data),
        )
        if index < num_kept:
            writer.write_factual(case.factual, "generated", prompt=prompt.sentence)
            if generators.other_noise is not None:
                volume = generators.other_noise(sample, prompt)
                writer.write_control(volume, "other noise", prompt.sentence)
            case.measure(writer.write_variant)
        else:
            case.measure()
        generated.volumes += writer.rows
        generated.cases.append(
            {
                "case": sample.case.id,
                "run": generators.run,
                "generated": "yes",
                "lung_ml": lung_volume_ml(sample, study.plan.data),
                "prompt": prompt.sentence,
            }
        )
        progress.save(generated)
        remaining.step()
    progress.save(generated, always=True)
    _add_files(generated)
    return generated


def _add_files(generated: GeneratedCases) -> None:
    """Add the kept file of each variant to its row of arms.csv."""
    files = {}
    for row in generated.volumes:
        if row["kind"] == "varied":
            files[row["case"], row["column"], row["value"]] = row["file"]
    for arm in generated.measurements.arms:
        arm["file"] = files.get((arm["case"], arm["column"], arm["value"]), "")

"""The data of a training: cohort, text and encoder, checked before any long work."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from data.checks.masks import check_labels_known
from data.cohort import Case, Cohort
from data.load_cohort import check_lungs, load_cohort, target_labels
from data.lung_density import text_statistics
from data.resampling import patients_of
from data.text.counterfactuals import (
    Intervention,
    check_intervention,
    parse_intervention,
    values_by_column,
)
from data.text.free_text import TextReader
from data.text.prompts import Prompt, Template, cohort_prompts, load_template
from data.text.synonyms import load_paraphrases
from models.base_model import BatchText
from models.inference import RUN_ENTRIES, restore_encoder
from models.text import relevance
from models.text.base_encoder import TextEncoder
from models.text.encoders import build_text_encoder
from models.text.phrase_encoder import PhraseEncoder
from options.clip_options import ClipCommand, ClipOptions
from options.train_options import TrainOptions
from pipelines.evidence import EVIDENCE, training_evidence
from pipelines.run_cohort import run_splits
from pipelines.run_words import known_synonyms
from util.cli import UserError, format_list, is_main_process
from util.training import checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """The data of a training: cohort, text, and the encoder fitted to the training prompts.

    Attributes:
        cohort: Cases, splits and labels.
        template: How rows become text.
        prompts: The prompt of each case.
        encoder: The frozen text encoder.
        case_weights: How much text may learn from each case; 1 where it is not named.
    """

    cohort: Cohort
    template: Template
    prompts: Mapping[str, Prompt]
    encoder: TextEncoder
    case_weights: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def phrases(self) -> dict[str, list[str]]:
        """The phrase texts of each case."""
        return {case: prompt.texts for case, prompt in self.prompts.items()}

    @property
    def training_cases(self) -> tuple[Case, ...]:
        """The cases of the training split; a resampled cohort repeats some."""
        return self.cohort.split("train")

    @property
    def training_values(self) -> dict[str, list[str]]:
        """The distinct values of each column in the training cases' rows."""
        return values_by_column(self.template, [case.row for case in self.training_cases])

    @property
    def reader(self) -> TextReader:
        """Reads texts that people wrote."""
        return TextReader(self.template, self.training_values, known_synonyms(self.encoder))

    def embed(self, batch: Mapping[str, Any], device: torch.device) -> BatchText:
        """Return the embeddings of a batch's prompts and of the mismatched ones."""
        weight = torch.tensor([self.case_weights.get(case, 1.0) for case in batch["cases"]])
        matched = replace(self.encoder.encode(batch["prompts"]), weight=weight)
        mismatched = self.encoder.encode(batch["mismatched_prompts"])
        return BatchText(matched.to(device), mismatched.to(device))


def ensure_cohort_clip(options: TrainOptions, folder: Path) -> TrainOptions:
    """Return the options with the cohort's own CLIP as text encoder, for `--text_encoder cohort`.

    It is pre-trained beside the run unless it is there. All other input is checked before.
    """
    if options.text.text_encoder != "cohort":
        return options
    table = replace(options.text, text_encoder="table", text_mode="phrases")
    stand_in = replace(options, text=table)
    if options.run.dry_run:  # the time of a step hardly depends on the encoder
        log.info(
            "--text_encoder cohort: the dry run leaves its pre-training out and uses table instead."
        )
        return stand_in
    from pipelines.clip_pretraining import pretrain_clip  # slow to import

    open_study(stand_in, None, check=False)
    clip = ClipOptions(out=f"{folder}.clip", seed=options.run.seed, overwrite=options.run.overwrite)
    encoder = pretrain_clip(ClipCommand(clip, options.data), options.run.gpu_ids)
    return replace(options, text=replace(options.text, text_encoder=str(encoder)))


def fix_labels(options: TrainOptions, study: Study) -> TrainOptions:
    """Return the options with the labels of the body, and of effects, in this cohort."""
    number, data = study.cohort.body_label, options.data
    is_chest = data.chest_labels.issuperset(study.cohort.labels)
    if data.body_label == "masks" and number is None and is_chest:
        log.warning(
            "The masks label lungs and airways alone, so where the body ends is left to chance: "
            "generated volumes fray there. --body_label auto finds the body in the scans."
        )
    data = replace(data, body_label="none" if number is None else str(number))
    labels = target_labels(study.cohort.labels, data)
    return replace(options, data=replace(data, lung_labels=labels))


def tracked_interventions(options: TrainOptions) -> list[Intervention]:
    """Return the intervention of `--val_effect`, if there is one."""
    return [parse_intervention("--val_effect", text, 2) for text in options.run.val_effect]


def open_study(options: TrainOptions, cache: Path | None, check: bool = True) -> Study:
    """Load cohort and text, and check everything that a user gives before any long work.

    Args:
        options: The run's options.
        cache: Folder that remembers the checks of volumes.
        check: Whether to read every volume.

    Raises:
        UserError: Something in the cohort or the options cannot be used.
    """
    encoder = build_text_encoder(options.text)  # first, because a missing encoder is found at once
    data = options.data
    cohort = load_cohort(data, seed=options.run.seed, cache=cache, check=check)
    check_lungs(cohort, data)
    template = load_template(data.template, cohort.columns, data.key_column, data.patient_column)
    rows = [case.row for case in cohort.cases]
    study = Study(cohort, template, cohort_prompts(cohort, template), encoder)
    for intervention in tracked_interventions(options):
        trained = study.training_values
        check_intervention("--val_effect", intervention, template, rows, trained, must_occur=True)
    if data.paraphrases:
        if not isinstance(encoder, PhraseEncoder):
            raise UserError(
                "--paraphrases gives other words for phrases, and --text_encoder "
                f"{options.text.text_encoder} does not read phrases. Use another encoder."
            )
        paraphrases = load_paraphrases(data.paraphrases, template, cohort.columns)
        encoder.synonyms = paraphrases.synonyms
    encoder.fit([study.phrases[case.id] for case in study.training_cases])
    return study


def has_constant_text(study: Study) -> bool:
    """Return whether all training cases have the same text."""
    return len({tuple(study.phrases[case.id]) for case in study.training_cases}) == 1


def fix_text_texture(options: TrainOptions, study: Study) -> TrainOptions:
    """Return the options without `--text_texture` where the text never varies.

    Its events would then make what all lungs have, such as vessels, out of balls of one density
    each; the network makes better ones of noise.
    """
    if options.run.init_from or not has_constant_text(study):
        return options
    return replace(options, generator=replace(options.generator, text_texture=False))


def warn_constant_text(options: TrainOptions, study: Study) -> None:
    """Warn where the training cases cannot show what text does: one text, or one patient."""
    if not is_main_process():
        return
    cases = study.training_cases
    if options.generator.fusion != "none" and has_constant_text(study):
        log.warning(
            "All training cases (%d) have the same text, so the run cannot learn what text does, "
            "and counterfactuals will hardly differ; --text_texture is left out. Check --template "
            "and the table, or train without text (--fusion none).",
            len(cases),
        )
    patients = patients_of(study.cohort, options.data.patient_column)
    if len({patients[case.id] for case in cases}) == 1:
        log.warning(
            "The training cases are of one patient, whose anatomy the run will repeat for every "
            "mask. Train on several patients."
        )


def restore_study(options: TrainOptions, study: Study, checkpoint_dir: Path) -> Study:
    """Return the study as it was when the run began: labels, splits, and the fitted encoder.

    Raises:
        UserError: The text encoder or the file of paraphrases is not that of the run, a label is
            not known to the run, cases are missing, or the splits are others and `accept_changes`
            is not given.
    """
    state, cohort = checkpoint.load_state(checkpoint_dir, RUN_ENTRIES), study.cohort
    study.encoder.check_identity(state["encoder"])
    given = dict(study.encoder.synonyms) if isinstance(study.encoder, PhraseEncoder) else {}
    restore_encoder(study.encoder, checkpoint_dir, state)
    known = state["encoder_values"].get("synonyms") or {}
    _check_paraphrases(given, known, options.data.paraphrases)
    check_labels_known(cohort.labels, state["labels"], [case.mask for case in cohort.cases])
    splits = run_splits(checkpoint_dir.parent, cohort, options.data, options.run.accept_changes)
    missing = sorted(set(splits["train"]) - {case.id for case in cohort.cases})
    if missing:
        raise UserError(
            f"--dataroot {cohort.root} lacks cases that the run was trained on: "
            f"{format_list(missing)}."
        )
    cohort = replace(cohort, labels=tuple(state["labels"]), splits=splits)
    return replace(study, cohort=cohort, case_weights=state.get("weights", {}))


def _check_paraphrases(given: Mapping[str, str], known: Mapping[str, str], file: str) -> None:
    """Raise `UserError` where a file holds words that a run was not trained with."""
    if new := [words for words, phrase in given.items() if known.get(words) != phrase]:
        raise UserError(
            f"--paraphrases {file} is not the file that the run was trained with: {new[0]!r} is "
            'not among its words. Restore the file, or give --paraphrases "" to go on with the '
            "words of the run; test.py --paraphrases adds words to a trained run."
        )


def weigh_by_relevance(options: TrainOptions, study: Study, cache: Path) -> Study:
    """Weigh phrases and cases by the evidence in the training scans, for `--text_relevance`.

    See `models.text.relevance`.
    """
    cases, encoder = study.training_cases, study.encoder
    if not options.text.text_relevance or not isinstance(encoder, PhraseEncoder):
        return study
    if len(cases) > relevance.MAX_SCANS:
        return study
    if len(cases) < relevance.MIN_SCANS and encoder.phrase_weights:
        return study  # those of the run that training started from
    prompts = [study.prompts[case.id].annotated for case in cases]
    statistics = text_statistics(
        cases,
        options.data,
        cache,
        body=study.cohort.body_label,
        everywhere=options.generator.text_region == "everywhere",
    )
    weights = relevance.estimate_relevance(encoder, prompts, statistics)
    encoder.set_phrase_weights(weights.phrase_weights, weights.terms)
    by_case = zip(cases, weights.case_weights, strict=True)
    return replace(study, case_weights={case.id: weight for case, weight in by_case})


def find_evidence(
    options: TrainOptions, study: Study, resumed: Path | None, cache: Path
) -> dict[str, Any]:
    """Return what the training cases can show (see `training_evidence`); a resumed run knows it."""
    if resumed is not None and EVIDENCE in (state := checkpoint.load_state(resumed)):
        return dict(state[EVIDENCE])
    if not is_main_process():
        return {}
    interventions = tracked_interventions(options)
    return training_evidence(study.cohort, study.template, options.data, interventions, cache)

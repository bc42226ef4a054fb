"""Evaluation of a set of volumes against real scans."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from options.evaluate_options import EvaluateOptions
from pipelines.evaluation.baselines import CaseBootstrap, Metric, ResamplingPlan
from pipelines.evaluation.counterfactuals.run import judge_counterfactuals
from pipelines.evaluation.density import density_metrics, texture_metrics
from pipelines.evaluation.diversity import diversity_metrics
from pipelines.evaluation.extractors import Extractor
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.memorisation import CopyCheck
from pipelines.evaluation.overlap import overlap_metrics
from pipelines.evaluation.page import CopyReport
from pipelines.evaluation.pairs import pair_metrics
from pipelines.evaluation.plan import EvaluationPlan
from pipelines.evaluation.realism import realism_metrics
from pipelines.evaluation.report import EvaluationResult, Measurements, write_outputs
from pipelines.evaluation.text_effect import text_metrics
from pipelines.evaluation.volume_measurer import pair_fidelity
from pipelines.evaluation.volume_sets import volumes_by_case
from util.cli import UserError, format_list
from util.locks import locked_folder

log = logging.getLogger(__name__)

CONTROLS = {"shuffled": "shuffled prompts", "empty": "empty prompts"}


def measure_sets(plan: EvaluationPlan) -> dict[str, list[VolumeMeasurements]]:
    """Measure every volume of every set; those measured before come from the cache."""
    segmented = segmented_files(plan)
    measurements: dict[str, list[VolumeMeasurements]] = {}
    total = sum(len(volumes.files) for volumes in plan.sets.values())
    with tqdm(total=total, desc="measuring", unit="volume") as bar:
        for name, volumes in plan.sets.items():
            measurements[name] = []
            for file in volumes.files:
                mask = segmented.get(name, {}).get(file.case)
                measured = plan.measurer(file, mask, plan.options.measure.resegment)
                measurements[name].append(measured)
                bar.update()
    return measurements


def segmented_files(plan: EvaluationPlan) -> dict[str, dict[str, Path]]:
    """Return the segmented lungs by set and case; raise `UserError` where one is missing."""
    o = plan.options.sets
    found = {}
    for name, flag, folder in (
        ("synthetic", "--segmented", o.segmented),
        ("real", "--segmented_real", o.segmented_real),
    ):
        if not folder:
            continue
        found[name] = volumes_by_case(Path(folder))
        missing = [case for case in plan.sets[name].cases if case not in found[name]]
        if missing:
            raise UserError(
                f"{flag}: {folder} holds no mask of {format_list(missing)}. Add it, or leave the "
                "flag out."
            )
    return found


def network_digests(networks: Sequence[Extractor]) -> dict[str, str]:
    """Return the digest of each network by the name that its metrics carry."""
    counts = Counter(network.name for network in networks)
    digests = {}
    for network in networks:
        name = network.name if counts[network.name] == 1 else network.about
        digests[name] = f"sha256 {network.digest}"
    return digests


def _show_progress(items: Iterable[Any]) -> Iterable[Any]:
    return tqdm(items, desc="resampling", leave=False)


def compute_metrics(
    plan: EvaluationPlan, measurements: Measurements, pair_rows: Sequence[Mapping[str, Any]]
) -> list[Metric]:
    """Return all metrics but those of copies."""
    m = plan.options.measure
    real = measurements["real"]
    synthetic = measurements["synthetic"]
    again = [volumes for name, volumes in measurements.items() if name.startswith("again")]
    resampling = ResamplingPlan.from_counts(len(real), len(synthetic), m.draws, m.seed)
    digests = network_digests(plan.networks)
    digests_3d = network_digests(plan.networks_3d)
    metrics = realism_metrics(real, synthetic, resampling, digests, digests_3d, _show_progress)
    metrics += density_metrics(real, synthetic, resampling, plan.measurer.grid.bins)
    metrics += texture_metrics(real, synthetic, resampling)
    metrics += pair_metrics(pair_rows, m.draws, m.seed)
    metrics += diversity_metrics(real, synthetic, again, plan.measurer.grid.window, m.seed)
    metrics += overlap_metrics(real, synthetic, m.draws, m.seed)
    sets = {"volumes": synthetic}
    for name, text in CONTROLS.items():
        if name in measurements:
            sets[f"volumes of {text}"] = measurements[name]
    for attribute in plan.table.attributes:
        metrics += text_metrics(attribute, real, sets, m.draws, m.seed)
    return metrics


def find_copies(plan: EvaluationPlan, measurements: Measurements) -> CopyReport | None:
    """Check for copies of the training scans."""
    if "train" not in measurements:
        return None
    train = measurements["train"]
    synthetic = measurements["synthetic"]
    real = measurements["real"]
    patient_of = {v.case: plan.table.patients.get(v.case, v.case) for v in (*train, *real)}
    training_patients = {patient_of[v.case] for v in train}
    test = [v for v in real if patient_of[v.case] not in training_patients]
    check = CopyCheck.from_scans(
        [v.case for v in train],
        _details(train),
        _features(train),
        test_image=_details(test) if test else None,
        test_features=_features(test) if test else None,
        patients=[patient_of[v.case] for v in train],
    )
    cases = [v.case for v in synthetic]
    edit_of = {file.case: file.edit_of for file in plan.sets["synthetic"].files}
    edit_sources = [edit_of[case] for case in cases]
    verdicts = check(_details(synthetic), _features(synthetic), cases, edit_sources)
    return CopyReport(cases, verdicts, check)


def _details(volumes: Sequence[VolumeMeasurements]) -> np.ndarray:
    return np.stack([v.detail for v in volumes])


def _features(volumes: Sequence[VolumeMeasurements]) -> np.ndarray:
    return np.stack([v.whole[0] for v in volumes])


def evaluate(options: EvaluateOptions) -> Path:
    """Measure and compare the sets, and write the report; return its page.

    Raises:
        UserError: Something that the user gave does not fit.
    """
    with locked_folder(Path(options.sets.out), "--out"):
        return _write_evaluation(options)


def _write_evaluation(options: EvaluateOptions) -> Path:
    """Evaluate in a folder that no other process uses."""
    plan = EvaluationPlan.from_options(options)
    for warning in plan.warnings:
        log.warning("%s", warning)
    cache = plan.measurer.cache
    cache.mkdir(parents=True, exist_ok=True)
    measurements = measure_sets(plan)
    pair_rows: list[dict[str, Any]] = []
    if options.measure.pairs:
        grid = plan.measurer.grid
        pair_rows = pair_fidelity(plan.sets["synthetic"], plan.sets["real"], grid, cache)
    metrics = compute_metrics(plan, measurements, pair_rows)
    copies = find_copies(plan, measurements)
    counterfactuals = judge_counterfactuals(
        plan.counterfactuals,
        plan.sets["real"],
        measurements["real"],
        plan.measurer,
        CaseBootstrap(options.measure.draws, options.measure.seed),
    )
    result = EvaluationResult(measurements, metrics, pair_rows, copies, counterfactuals)
    page = write_outputs(plan, result)
    for metric in metrics:
        baseline = f" (baseline {metric.baseline:.4g})" if np.isfinite(metric.baseline) else ""
        name = plan.measurer.grid.terms.text(metric.name)
        log.info("%s: %.4g%s", name, metric.value, baseline)
    log.info("Report: %s", page)
    return page

"""Evaluation of a set of volumes against real scans."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.fact_store import FactStore
from options.base_options import DataOptions
from options.evaluate_options import EvaluateOptions
from options.parser import to_dict
from pipelines.evaluation.axioms import CaseBootstrap
from pipelines.evaluation.baselines import Metric, ResamplingPlan
from pipelines.evaluation.charts import HISTOGRAM, TEXTURE, draw_histogram, draw_texture
from pipelines.evaluation.counterfactual_sets import find_counterfactuals
from pipelines.evaluation.counterfactuals import (
    CounterfactualPlan,
    CounterfactualReport,
    judge_counterfactuals,
)
from pipelines.evaluation.density import density_metrics, texture_metrics
from pipelines.evaluation.diversity import diversity_metrics
from pipelines.evaluation.extractors import Extractor, make_extractor
from pipelines.evaluation.inputs import (
    TableValues,
    data_options,
    find_sets,
    read_table_values,
    with_target_labels,
)
from pipelines.evaluation.measure import ComparisonGrid, VolumeMeasurer, pair_fidelity
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.memorisation import CopyCheck
from pipelines.evaluation.overlap import overlap_metrics
from pipelines.evaluation.page import WEB, CopyReport, ReportContent, copy_frame, write_report
from pipelines.evaluation.pairs import pair_metrics
from pipelines.evaluation.pictures import closest_pairs, typical_pairs, write_pairs
from pipelines.evaluation.realism import realism_metrics
from pipelines.evaluation.text_effect import text_metrics
from pipelines.evaluation.verdict import interpret_metric, verdict_sentence
from pipelines.evaluation.volume_sets import (
    VolumeFile,
    VolumeSet,
    check_intensities,
    common_spacing,
    common_window,
    median_extent,
)
from util.cli import UserError, format_list
from util.files import claim_folder, write_frame, write_json
from util.locks import locked_folder
from util.modality import Terms
from util.training.devices import make_device
from util.web.page_links import LinkedPage, link_pages

log = logging.getLogger(__name__)

TITLE = "Synthetic against real"
RECORD = "evaluation.json"
CACHE = "cache"
CHECKS = "checks.json"  # in the cache
MIN_CONCLUSIVE = 20  # volumes per set below which metrics are not interpreted
CONTROLS = {"shuffled": "shuffled prompts", "empty": "empty prompts"}

Measurements = Mapping[str, Sequence[VolumeMeasurements]]  # by set


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything that is checked before volumes are measured.

    Attributes:
        options: The command's options.
        out: Folder of the report.
        sets: Sets by name, see `pipelines.evaluation.inputs.find_sets`.
        table: Values of the real scans' table.
        networks: 2D networks.
        networks_3d: 3D networks.
        measurer: Measures a volume.
        counterfactuals: Changed volumes, which are judged by the axioms.
        volume_warnings: What a person should know of the volumes.
    """

    options: EvaluateOptions
    out: Path
    sets: Mapping[str, VolumeSet]
    table: TableValues
    networks: Sequence[Extractor]
    networks_3d: Sequence[Extractor]
    measurer: VolumeMeasurer
    counterfactuals: CounterfactualPlan
    volume_warnings: Sequence[str] = ()

    @classmethod
    def from_options(cls, options: EvaluateOptions) -> EvaluationPlan:
        """Find the sets and check that they can be compared.

        Raises:
            UserError: Something that the user gave does not fit.
        """
        m = options.measure
        out = Path(options.sets.out)
        claim_folder(out, [RECORD, CACHE], overwrite=True)
        data = data_options(options)
        sets = find_sets(options, data)
        data = with_target_labels(data, sets["real"])
        store = FactStore(out / CACHE / CHECKS)
        volume_warnings = []
        for volumes in sets.values():
            volume_warnings += check_intensities(volumes, store, data)
        grid = _common_grid(options, data, sets, store)
        changed = []
        if m.axioms:
            changed = find_counterfactuals(
                sets["synthetic"], options.sets.counterfactuals, sets["real"]
            )
        table = read_table_values(options, sets, need_rows=bool(changed))
        counterfactuals = CounterfactualPlan.from_table(
            changed, table.template, table.rows, m.column
        )
        device = make_device(m.gpu_ids)
        networks = [make_extractor(c, device, 2) for c in m.extractor or ("random",)]
        networks_3d = [
            make_extractor(c, device, 3, grid.window) for c in m.extractor_3d or ("random",)
        ]
        for network in (*networks, *networks_3d):
            log.info("Features by %s, sha256 %s", network.about, network.digest)
        measurer = VolumeMeasurer(grid, networks, networks_3d, out / CACHE)
        store.save()
        return cls(
            options,
            out,
            sets,
            table,
            networks,
            networks_3d,
            measurer,
            counterfactuals,
            volume_warnings,
        )

    @property
    def conclusive(self) -> bool:
        """Return whether there are enough volumes to interpret the metrics."""
        smaller = min(len(self.sets["real"].files), len(self.sets["synthetic"].files))
        return smaller >= MIN_CONCLUSIVE

    @property
    def shortage(self) -> str:
        """Why the metrics are not interpreted; "" where they are."""
        if self.conclusive:
            return ""
        return (
            f"{len(self.sets['real'].files)} real scans and "
            f"{len(self.sets['synthetic'].files)} synthetic volumes allow no conclusion (at least "
            f"{MIN_CONCLUSIVE} of each are needed)"
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings for the page and the log."""
        warnings = []
        if self.shortage:
            warnings.append(f"{self.shortage}: the metrics only show that everything runs.")
        if all(network.name == "random network" for network in self.networks):
            warnings.append(
                "The distances come from a network without learned weights. They rank models on "
                "the same data, and cannot be compared with published values."
            )
        for network in self.networks_3d:
            warnings += network.window_warnings(self.measurer.grid.window)
        volumes = self.sets["synthetic"].files
        if edits := [file for file in volumes if file.edit_of]:
            warnings.append(
                f"{len(edits)} of {len(volumes)} volumes are declared edits of real scans "
                "(edits.csv), not generated volumes. Realism, texture and diversity are those of "
                "the scans."
            )
        if strangers := self.foreign_edits:
            names = format_list([f"{file.case} (of {file.edit_of})" for file in strangers])
            warnings.append(
                f"{len(strangers)} declared edits are of scans that are not among those of "
                f"--train: {names}. If these people are held out, the volumes show them."
            )
        return [*warnings, *self.volume_warnings]

    @property
    def foreign_edits(self) -> list[VolumeFile]:
        """Declared edits whose scan is not a training scan, where those are given."""
        if "train" not in self.sets:
            return []
        training = set(self.sets["train"].cases)
        files = self.sets["synthetic"].files
        return [file for file in files if file.edit_of and file.edit_of not in training]


def _common_grid(
    options: EvaluateOptions,
    data: DataOptions,
    sets: Mapping[str, VolumeSet],
    store: FactStore,
) -> ComparisonGrid:
    """Return the grid and window that both sets are compared in."""
    g = options.grid
    real = sets["real"]
    synthetic = sets["synthetic"]
    spacing = common_spacing(real, synthetic, g.match)
    if g.hu_window[0] >= g.hu_window[1]:
        raise UserError(
            f"--hu_window is {g.hu_window[0]:g},{g.hu_window[1]:g}; the first must be below the "
            "second."
        )
    window = data.hu_window
    if data.terms.is_ct:  # arbitrary units are scaled to one window
        window = common_window(real, synthetic, g.hu_window, g.match, store)
    x, y, z = g.extent or map(float, median_extent(real))
    return ComparisonGrid(
        g.spacing or spacing,
        (x, y, z),
        window,
        g.slices,
        data.lung_labels,
        data.airway_label,
        data.modality,
    )


@dataclass(frozen=True)
class EvaluationResult:
    """Results of an evaluation.

    Attributes:
        measurements: Measurements of every volume by set.
        metrics: All metrics but those of copies.
        pair_rows: Rows of pairs.csv.
        copies: The check for copies, where there are training scans.
        counterfactuals: The axioms of changed volumes.
    """

    measurements: Measurements
    metrics: Sequence[Metric]
    pair_rows: Sequence[Mapping[str, Any]]
    copies: CopyReport | None
    counterfactuals: CounterfactualReport


def measure_sets(plan: EvaluationPlan) -> dict[str, list[VolumeMeasurements]]:
    """Measure every volume of every set; those measured before come from the cache."""
    segmented = {
        "synthetic": plan.options.sets.segmented,
        "real": plan.options.sets.segmented_real,
    }
    measurements: dict[str, list[VolumeMeasurements]] = {}
    total = sum(len(volumes.files) for volumes in plan.sets.values())
    with tqdm(total=total, desc="measuring", unit="volume") as bar:
        for name, volumes in plan.sets.items():
            measurements[name] = []
            for file in volumes.files:
                mask = _segmented_file(segmented.get(name, ""), file)
                measured = plan.measurer(file, mask, plan.options.measure.resegment)
                measurements[name].append(measured)
                bar.update()
    return measurements


def _segmented_file(folder: str, file: VolumeFile) -> Path | None:
    if not folder:
        return None
    for path in sorted(Path(folder).glob(f"{file.case}.*")):
        if path.is_file():
            return path
    raise UserError(
        f"--segmented: {folder} holds no mask of {file.case}. Add it, or leave the flag out."
    )


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
    training_cases = {v.case for v in train}
    test = [v for v in measurements["real"] if v.case not in training_cases]
    check = CopyCheck.from_scans(
        [v.case for v in train],
        _details(train),
        _features(train),
        test_image=_details(test) if test else None,
        test_features=_features(test) if test else None,
        patients=[plan.table.patients.get(v.case, v.case) for v in train],
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


def write_outputs(plan: EvaluationPlan, result: EvaluationResult) -> Path:
    """Write the tables as CSV, evaluation.json and the page."""
    out = plan.out
    for name, table in _result_tables(plan, result).items():
        if len(table):
            write_frame(out / f"{name}.csv", table)
    measurements = result.measurements
    shown = {name: measurements[name] for name in ("real", "synthetic")}
    grid = plan.measurer.grid
    draw_histogram(out / HISTOGRAM, shown, grid)
    draw_texture(out / TEXTURE, shown, grid.terms)
    pairs = typical_pairs(plan.sets, measurements, result.pair_rows)
    if result.copies is not None:
        pairs += closest_pairs(plan.sets, result.copies.by_case)
    verdicts = None if result.copies is None else result.copies.verdicts
    content = ReportContent(
        grid.terms.text(verdict_sentence(result.metrics, verdicts, plan.shortage)),
        write_pairs(out / WEB, pairs),
        grid.window,
        {path.name: path.name for path in sorted(out.glob("*.csv"))},
        _describe_inputs(plan),
        _describe_networks(plan),
        plan.warnings,
        result.metrics,
        result.copies,
        [*unmeasured_metrics(plan), *result.counterfactuals.left_out],
        to_dict(plan.options),
        plan.conclusive,
        result.counterfactuals,
        grid.terms,
    )
    page = write_report(out, TITLE, content)
    _link_sets(plan, page)
    figures = pd.DataFrame([metric.row() for metric in result.metrics])
    record: dict[str, Any] = {
        "verdict": content.verdict,
        "facts": {**content.facts, **content.networks},
        "warnings": content.warnings,
        "options": content.options,
        "figures": _records(figures, grid.terms),
        "counterfactuals": _records(result.counterfactuals.frame, grid.terms),
        "not_measured": content.left_out,
    }
    if result.copies is not None:
        by_case = result.copies.by_case
        record["memorisation"] = {
            "copies": [case for case, verdict in by_case.items() if verdict.copy],
            "declared_edits": {case: v.edit_of for case, v in by_case.items() if v.edit_of},
            "closer_than_real": [case for case, verdict in by_case.items() if verdict.alarm],
        }
    write_json(out / RECORD, record)
    return page


def _result_tables(plan: EvaluationPlan, result: EvaluationResult) -> dict[str, pd.DataFrame]:
    terms = plan.measurer.grid.terms
    figures = []
    for metric in result.metrics:
        reading = interpret_metric(metric) if plan.conclusive else ""
        figures.append(metric.row() | {"reading": reading})
    volumes = []
    for name, measured in result.measurements.items():
        for v in measured:
            density = {terms.name(key): value for key, value in v.density.items()}
            volumes.append({"set": name, "case": v.case, **density, **v.overlap})
    return {
        "figures": terms.frame(pd.DataFrame(figures)),
        "volumes": pd.DataFrame(volumes),
        "pairs": pd.DataFrame(terms.rows(result.pair_rows)),
        "counterfactuals": terms.frame(result.counterfactuals.frame),
        "memorisation": pd.DataFrame() if result.copies is None else copy_frame(result.copies),
    }


def _describe_inputs(plan: EvaluationPlan) -> dict[str, str]:
    """Return sets and grid in words, for the page."""
    grid = plan.measurer.grid
    facts = {name: f"{len(s.files)} volumes, {s.root}" for name, s in plan.sets.items()}
    facts["grid"] = (
        f"{grid.spacing:.3g} mm, {' x '.join(f'{e:.0f}' for e in grid.extent)} mm, "
        f"{grid.slices} slices per plane, {grid.window[0]:g} to {grid.window[1]:g} "
        f"{grid.terms.unit}"
    )
    return facts


def _describe_networks(plan: EvaluationPlan) -> dict[str, str]:
    """Return the feature networks with the digests of their weights."""
    return {
        f"network {number}": f"{network.about}, sha256 {network.digest}"
        for number, network in enumerate((*plan.networks, *plan.networks_3d), start=1)
    }


def _link_sets(plan: EvaluationPlan, page: Path) -> None:
    """Let the page and those of the sets link to each other, where the sets have pages."""
    here = LinkedPage(f"Evaluation {plan.out.name}", page)
    for volumes in plan.sets.values():
        name = volumes.root.resolve().name
        link_pages(here, LinkedPage(f"Volumes {name}", volumes.root / "index.html"))


def _records(frame: pd.DataFrame, terms: Terms) -> list[dict[str, Any]]:
    """Return the rows of a table for JSON, which has no NaN, in the words of the modality."""
    rows = []
    for row in terms.frame(frame).to_dict("records"):
        is_nan = {k: isinstance(v, float) and not np.isfinite(v) for k, v in row.items()}
        rows.append({str(k): None if is_nan[k] else v for k, v in row.items()})
    return rows


def unmeasured_metrics(plan: EvaluationPlan) -> list[str]:
    """Return the metrics that are not computed, each with the input that it needs."""
    o = plan.options.sets
    needs = []
    if not plan.counterfactuals.sets and plan.options.measure.axioms:
        needs.append(
            "Counterfactuals (effectiveness, composition, reversibility, minimality, realism): "
            "--synthetic or --counterfactuals with results of test.py --vary."
        )
    if not o.train:
        needs.append("Memorisation: --train with the scans that the generator was trained on.")
    if not plan.table.attributes:
        needs.append("Text effect: --column with a column of the real scans' table.")
    elif not (o.shuffled and o.empty):
        needs.append(
            "Controls of the text effect: --shuffled and --empty with volumes of "
            "scripts/make_controls.py."
        )
    if not o.again:
        needs.append("Diversity under new noise: --again with volumes of scripts/make_controls.py.")
    common_cases = set(plan.sets["real"].cases) & set(plan.sets["synthetic"].cases)
    if not (plan.options.measure.pairs and common_cases):
        needs.append("Closeness to the own scan: real and synthetic volumes of the same names.")
    if not plan.measurer.grid.terms.is_ct:
        needs.append("Faithfulness to the mask: it is known for the lungs of chest CT alone.")
    elif not any(file.mask for file in plan.sets["synthetic"].files):
        needs.append(
            "Faithfulness to the mask: --masks with the masks that the volumes were made from."
        )
    return needs


def evaluate(options: EvaluateOptions) -> Path:
    """Measure and compare the sets, and write the report; return its page.

    Raises:
        UserError: Something that the user gave does not fit.
    """
    if not options.sets.out:
        raise UserError("--out is not given; it is the folder for the report.")
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

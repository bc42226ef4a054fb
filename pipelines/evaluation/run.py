"""Evaluation of a set of volumes against real scans."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.volumes import load_volume
from options.evaluate_options import EvaluateOptions
from options.parser import to_dict
from pipelines.evaluation.baselines import Metric, ResamplingPlan
from pipelines.evaluation.density import density_metrics
from pipelines.evaluation.diversity import diversity_metrics
from pipelines.evaluation.extractors import Extractor, make_extractor
from pipelines.evaluation.inputs import find_sets, read_attributes
from pipelines.evaluation.measure import ComparisonGrid, VolumeMeasurer, pair_fidelity
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.memorisation import CopyCheck
from pipelines.evaluation.overlap import overlap_metrics
from pipelines.evaluation.page import (
    MIN_CONCLUSIVE,
    CopyReport,
    copy_frame,
    draw_histogram,
    interpret_metric,
    write_report,
)
from pipelines.evaluation.pairs import pair_metrics
from pipelines.evaluation.realism import realism_metrics
from pipelines.evaluation.text_effect import PredictedAttribute, text_metrics
from pipelines.evaluation.volume_sets import (
    VolumeFile,
    VolumeSet,
    common_spacing,
    common_window,
    median_extent,
    on_grid,
)
from util.cli import UserError, safe_name
from util.files import atomic_path, claim_folder, write_json
from util.training.devices import make_device
from util.web.figures import LUNG, Panel, save_slices_png

log = logging.getLogger(__name__)

RECORD = "evaluation.json"

CACHE = "cache"

PICTURES = "pictures"

CLOSEST = 4  # pairs shown

CONTROLS = {"shuffled": "shuffled prompts", "empty": "empty prompts"}


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything checked before volumes are measured."""

    options: EvaluateOptions
    out: Path
    sets: Mapping[
        str, VolumeSet
    ]  # real, synthetic, and where given train, shuffled, empty, again_<i>
    attributes: Sequence[PredictedAttribute]
    patients: Mapping[str, str]
    networks: Sequence[Extractor]
    networks_3d: Sequence[Extractor]
    measurer: VolumeMeasurer
    warnings: Sequence[str]

    @property
    def conclusive(self) -> bool:
        """Whether there are volumes enough to put figures into words."""
        return min(len(self.sets[name].files) for name in ("real", "synthetic")) >= MIN_CONCLUSIVE


def make_plan(options: EvaluateOptions) -> EvaluationPlan:
    """Finds the sets and checks that they can be compared; raises `UserError` before anything
    long.
    """
    o, g, m = options.sets, options.grid, options.measure
    out = _out_folder(o.out)
    sets = find_sets(options)
    spacing = common_spacing(sets["real"], sets["synthetic"], g.match)
    if g.hu_window[0] >= g.hu_window[1]:
        raise UserError(
            f"--hu_window is {g.hu_window[0]:g},{g.hu_window[1]:g}; the first must be below the "
            "second."
        )
    window = common_window(sets["real"], sets["synthetic"], g.hu_window, g.match)
    x, y, z = g.extent or map(float, median_extent(sets["real"]))
    grid = ComparisonGrid(
        g.spacing or spacing, (x, y, z), window, g.slices, g.lung_labels, g.airway_label
    )
    attributes, patients = read_attributes(options, sets)
    device = make_device(m.gpu_ids)
    networks, networks_3d = (
        [make_extractor(c, device, d) for c in chosen or ("random",)]
        for chosen, d in ((m.extractor, 2), (m.extractor_3d, 3))
    )
    for network in (*networks, *networks_3d):
        log.info("Features by %s, sha256 %s", network.about, network.digest)
    measurer = VolumeMeasurer(grid, networks, networks_3d, out / CACHE)
    return EvaluationPlan(
        options,
        out,
        sets,
        attributes,
        patients,
        networks,
        networks_3d,
        measurer,
        _warnings(sets, networks),
    )


def _out_folder(name: str) -> Path:
    out = Path(name)
    if not name:
        raise UserError("--out is not given; it is the folder for the report.")
    claim_folder(out, [RECORD, CACHE], overwrite=True)
    return out


def _warnings(sets: Mapping[str, VolumeSet], networks: Sequence[Extractor]) -> list[str]:
    n, made = (len(sets[name].files) for name in ("real", "synthetic"))
    found = []
    if min(n, made) < MIN_CONCLUSIVE:
        found.append(
            f"{n} real scans and {made} synthetic volumes allow no conclusion (at least {MIN_CONCLUSIVE} "
            "of each are needed): the figures below only show that everything runs."
        )
    if all(network.name == "random network" for network in networks):
        found.append(
            "The distances come from a network without learned weights: they rank models on the "
            "same data, and compare with no published figure."
        )
    return found


def measure_sets(plan: EvaluationPlan) -> dict[str, list[VolumeMeasurements]]:
    """Every volume of every set in numbers; those measured before come from the cache."""
    o = plan.options.sets
    again = {"synthetic": o.segmented, "real": o.segmented_real}
    jobs = [(name, file) for name, volumes in plan.sets.items() for file in volumes.files]
    found: dict[str, list[VolumeMeasurements]] = {name: [] for name in plan.sets}
    for name, file in tqdm(jobs, desc="measuring", unit="volume"):
        segmented = _segmented(again.get(name, ""), file)
        found[name].append(plan.measurer(file, segmented, plan.options.measure.resegment))
    return found


def _segmented(folder: str, file: VolumeFile) -> Path | None:
    if not folder:
        return None
    path = next((p for p in sorted(Path(folder).glob(f"{file.case}.*")) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"--segmented: {folder} holds no mask of {file.case}. Add it, or leave the flag out."
        )
    return path


def network_digests(networks: Sequence[Extractor]) -> dict[str, str]:
    """What their figures are called, and the digest that tells which can be compared."""
    names = [n.name for n in networks]
    return {n.name if names.count(n.name) == 1 else n.about: f"sha256 {n.digest}" for n in networks}


def compute_metrics(
    plan: EvaluationPlan, measured: Mapping[str, list[VolumeMeasurements]]
) -> tuple[list[Metric], list[dict[str, Any]]]:
    """All figures but those of copies, and the rows of the pairs."""
    m, real, made = plan.options.measure, measured["real"], measured["synthetic"]
    draws = ResamplingPlan.from_counts(len(real), len(made), m.draws, m.seed)

    def progress(items: Iterable[Any]) -> Iterable[Any]:
        return tqdm(items, desc="drawing", leave=False)

    flat, deep = (network_digests(group) for group in (plan.networks, plan.networks_3d))
    figures = realism_metrics(real, made, draws, flat, deep, progress)
    figures += density_metrics(real, made, draws)
    grid, cache = plan.measurer.grid, plan.measurer.cache
    rows = pair_fidelity(plan.sets["synthetic"], plan.sets["real"], grid, cache) if m.pairs else []
    figures += pair_metrics(rows, m.draws, m.seed)
    again = [group for name, group in measured.items() if name.startswith("again")]
    figures += diversity_metrics(real, made, again, grid.window, m.seed)
    figures += overlap_metrics(real, made, m.draws, m.seed)
    sets = {
        "volumes": made,
        **{
            f"volumes of {text}": measured[name]
            for name, text in CONTROLS.items()
            if name in measured
        },
    }
    for attribute in plan.attributes:
        figures += text_metrics(attribute, real, sets, m.draws, m.seed)
    return figures, rows


def find_copies(
    plan: EvaluationPlan, measured: Mapping[str, list[VolumeMeasurements]]
) -> CopyReport | None:
    """The check for copies against the training scans, with pictures of the closest pairs."""
    if "train" not in measured:
        return None
    train, made = measured["train"], measured["synthetic"]
    names = {v.case for v in train}
    others = [v for v in measured["real"] if v.case not in names]

    def arrays(group: Sequence[VolumeMeasurements]) -> tuple[Any, Any]:
        return (
            (np.stack([v.detail for v in group]), np.stack([v.whole[0] for v in group]))
            if group
            else (None, None)
        )

    image, features = arrays(train)
    test_image, test_features = arrays(others)
    check = CopyCheck.from_scans(
        [v.case for v in train],
        image,
        features,
        test_image=test_image,
        test_features=test_features,
        patients=[plan.patients.get(v.case, v.case) for v in train],
    )
    cases = [v.case for v in made]
    verdicts = check(*arrays(made), sources=cases)
    order = np.argsort([v.image.distance for v in verdicts])[:CLOSEST]
    files = {name: {f.case: f for f in plan.sets[name].files} for name in ("synthetic", "train")}
    pictures = []
    for i in order:
        near = verdicts[i].image
        link = f"{PICTURES}/{safe_name(cases[i])}.png"
        _draw_pair(
            plan.out / link,
            files["synthetic"][cases[i]],
            files["train"][near.case],
            plan.measurer.grid,
        )
        pictures.append(
            (
                link,
                f"{cases[i]} and training scan {near.case}: distance {near.distance:.2f}, copy "
                f"below {near.threshold:.2f}, closest real {near.closest_real:.2f}",
            )
        )
    return CopyReport(cases, verdicts, check, pictures)


def _draw_pair(path: Path, made: VolumeFile, scan: VolumeFile, grid: ComparisonGrid) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    panels = [
        Panel(
            title,
            "ct",
            on_grid(load_volume(file.path), grid.spacing, grid.extent).array,
            (grid.spacing,) * 3,
        )
        for title, file in (("synthetic", made), ("training scan", scan))
    ]
    with atomic_path(path) as part:
        save_slices_png(part, panels, window=LUNG, dpi=80)


def write_outputs(
    plan: EvaluationPlan,
    measured: Mapping[str, list[VolumeMeasurements]],
    figures: Sequence[Metric],
    rows: Sequence[Mapping[str, Any]],
    copies: CopyReport | None,
) -> Path:
    """figures.csv, volumes.csv, pairs.csv, memorisation.csv, evaluation.json and report.html."""
    out, grid = plan.out, plan.measurer.grid
    tables = {
        "figures": pd.DataFrame(
            [f.row() | {"reading": interpret_metric(f) if plan.conclusive else ""} for f in figures]
        ),
        "volumes": pd.DataFrame(
            [
                {"set": name, "case": v.case, **v.density, **v.overlap}
                for name, group in measured.items()
                for v in group
            ]
        ),
        "pairs": pd.DataFrame(rows),
        "memorisation": pd.DataFrame() if copies is None else copy_frame(copies),
    }
    for name, table in tables.items():
        if len(table):
            with atomic_path(out / f"{name}.csv") as part:
                table.to_csv(part, index=False)
    draw_histogram(out / "histogram.svg", measured["real"], measured["synthetic"])
    facts = {name: f"{len(s.files)} volumes, {s.root}" for name, s in plan.sets.items()} | {
        "grid": f"{grid.spacing:.3g} mm, {' x '.join(f'{e:.0f}' for e in grid.extent)} mm, "
        f"{grid.slices} slices a plane, "
        f"{grid.window[0]:g} to {grid.window[1]:g} HU",
        **{
            f"network {i + 1}": f"{n.about}, sha256 {n.digest}"
            for i, n in enumerate((*plan.networks, *plan.networks_3d))
        },
    }
    options = to_dict(plan.options)
    page = write_report(
        out,
        "Synthetic against real",
        facts,
        plan.warnings,
        figures,
        copies,
        unmeasured_metrics(plan),
        options,
        "histogram.svg",
        plan.conclusive,
    )
    record = {
        "facts": facts,
        "warnings": list(plan.warnings),
        "options": options,
        "figures": [_plain(f.row()) for f in figures],
    }
    if copies is not None:
        verdicts = dict(zip(copies.cases, copies.verdicts, strict=True))
        record["memorisation"] = {
            "copies": [c for c, v in verdicts.items() if v.copy],
            "closer_than_real": [c for c, v in verdicts.items() if v.alarm],
        }
    write_json(out / RECORD, record)
    return page


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for JSON, which knows no NaN."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}


def unmeasured_metrics(plan: EvaluationPlan) -> list[str]:
    """What was not measured, and what it needs."""
    o, needs = plan.options.sets, []
    if not o.train:
        needs.append("Memorisation: --train with the scans that the generator was trained on.")
    if not plan.attributes:
        needs.append("Text effect: --column with a column of the real scans' table.")
    elif not (o.shuffled and o.empty):
        needs.append(
            "Controls of the text effect: --shuffled and --empty with volumes of "
            "scripts/make_controls.py."
        )
    if not o.again:
        needs.append("Diversity under new noise: --again with volumes of scripts/make_controls.py.")
    if not plan.options.measure.pairs or not set(plan.sets["real"].cases) & set(
        plan.sets["synthetic"].cases
    ):
        needs.append("Closeness to the own scan: real and synthetic volumes of the same names.")
    if not any(f.mask for f in plan.sets["synthetic"].files):
        needs.append(
            "Faithfulness to the mask: --masks with the masks that the volumes were made from."
        )
    return needs


def evaluate(options: EvaluateOptions) -> Path:
    """Measures, compares and writes; returns the report."""
    plan = make_plan(options)
    for warning in plan.warnings:
        log.warning("%s", warning)
    plan.measurer.cache.mkdir(parents=True, exist_ok=True)
    measured = measure_sets(plan)
    figures, rows = compute_metrics(plan, measured)
    page = write_outputs(plan, measured, figures, rows, find_copies(plan, measured))
    for figure in figures:
        floor = f" (floor {figure.floor:.4g})" if np.isfinite(figure.floor) else ""
        log.info("%s: %.4g%s", figure.name, figure.value, floor)
    log.info("Report: %s", page)
    return page

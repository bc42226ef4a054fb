"""Count how often 95 % intervals of the atlas hold a planted effect, for effects of every kind.

A triple is an attribute, a cohort and an outcome in a region: smooth (dense), sparse and texture
effects of `benchmarks/kinds.py`, trained with the default settings. Sides: scans (the adjusted
regression of the real scans, no training) and generator (a run, its refits and its atlas).

Pieces (group, seed, side) are kept in OUT/pieces as JSON, and finished runs and refits too, so that
a stopped benchmark resumes. --part 1/4 to 4/4 divide the pieces among processes with one OUT. After
each piece the table of all finished ones is printed, and written to OUT/tables.md.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.statistics import CoverageBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, CoverageBenchmarkOptions, __doc__ or "")  # the imports below are slow

import numpy as np
import pandas as pd

from benchmarks import kinds
from benchmarks.common import part_of
from data.cohort import Case
from data.load_cohort import load_cohort
from data.phantom.kinds.cohort import KindsCohort
from data.phantom.kinds.columns import CONTROL, NULL, Measure
from data.text.prompts import load_template
from data.volume_dataset import VolumeDataset
from options.atlas_options import AtlasCases, AtlasCommand, AtlasOutput, RefitOptions
from options.base_options import DataOptions
from options.benchmarks.effects import KindsBenchmarkOptions
from options.test_options import ModelOptions
from pipelines.atlas import run as atlas_run
from pipelines.atlas.attributes import choose_attributes
from pipelines.atlas.measure import MeasurementPlan, lung_volume_ml, real_outcomes
from pipelines.atlas.statistics.adjustment import Roles
from pipelines.atlas.statistics.contrasts import contrasts_of
from pipelines.atlas.statistics.outcomes import OUTCOMES, Values, outcome_frame
from pipelines.atlas.statistics.regional import RegionOutcomes
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from util.cli import run_command
from util.files import read_json, write_json
from util.markdown import markdown_table
from util.metrics.regions import chest_regions

log = logging.getLogger(__name__)

SCANS, GENERATOR = "scans", "generator"
MODEL = "pix2pixhd"
WINDOW = DataOptions().hu_window
OUTCOME_OF = {outcome.statistic: outcome for outcome in OUTCOMES.values()}
KIND_OF = {CONTROL.name: "dense", "RETICULATION": "texture"}  # of a column; else its group's
KIND_OF_GROUP = {"texture": "texture", "sparse": "sparse"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Piece:
    """One cohort and side."""

    group: str
    seed: int
    side: str

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.group}_seed{self.seed}_{self.side}"


def kinds_options(o: CoverageBenchmarkOptions) -> KindsBenchmarkOptions:
    """Return the options of the cohorts and their training."""
    return KindsBenchmarkOptions(
        OUT=o.OUT,
        cases=o.cases,
        test_cases=o.test_cases,
        size=o.size,
        patient_sd=o.patient_sd,
        text_encoder=o.text_encoder,
        max_steps=o.max_steps,
        train_flags=o.train_flags,
    )


def pieces(o: CoverageBenchmarkOptions) -> list[Piece]:
    """Return the pieces of this process's part, in a fixed order."""
    sides = (SCANS, GENERATOR) if o.side == "both" else (o.side,)
    every = [Piece(g, seed, side) for side in sides for seed in o.seeds for g in o.groups]
    return part_of(every, o.part)


def measures(cohort: KindsCohort) -> Iterator[tuple[str, Measure]]:
    """Yield each planted column with each region and statistic in which it is measured."""
    for column in cohort.columns.all_columns:
        if column.effect is not None and not column.rare and column.name != NULL.name:
            for region, statistic in column.measures:
                if statistic in OUTCOME_OF and region != "near_airways":
                    yield column.name, (region, statistic)


def true_effects(cohort: KindsCohort, cases: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return the planted change by column: cases in rows, (outcome, region) in columns.

    Volumes are clipped and measured as the atlas does.
    """
    columns = dict.fromkeys(column for column, _ in measures(cohort))
    changes: dict[str, dict[str, Values]] = {column: {} for column in columns}
    for case in cases:
        scan = cohort.render(case)
        regions = chest_regions(scan.mask, scan.spacing)
        outcomes = RegionOutcomes.from_masks(regions, scan.spacing)
        own = outcomes.measure(np.clip(scan.hu, *WINDOW))
        for column in columns:
            value = cohort.rows[case][column]
            other = cohort.render(case, {column: "Yes" if value == "No" else "No"}).hu
            changed = outcomes.measure(np.clip(other, *WINDOW))
            no, yes = (own, changed) if value == "No" else (changed, own)
            changes[column][case] = {key: yes[key] - no[key] for key in own}
    return {column: outcome_frame(values) for column, values in changes.items()}


def triples(
    piece: Piece, cohort: KindsCohort, truth: dict[str, pd.DataFrame], estimates: pd.DataFrame
) -> list[Row]:
    """Return every triple of a cohort: estimate, interval and truth.

    Args:
        piece: The cohort and side.
        cohort: The cohort.
        truth: See `true_effects`.
        estimates: Columns `column`, `outcome`, `region`, `value`, `low`, `high` of No to Yes.
    """
    found = estimates.set_index(["column", "outcome", "region"])
    rows = []
    for column, (region, statistic) in measures(cohort):
        outcome = OUTCOME_OF[statistic].name
        true = float(truth[column][outcome, region].mean())
        row = found.loc[(column, outcome, region)]
        low, high = float(row["low"]), float(row["high"])
        rows.append(
            {
                "side": piece.side,
                "group": piece.group,
                "seed": piece.seed,
                "column": column,
                "kind": KIND_OF.get(column, KIND_OF_GROUP.get(piece.group, piece.group)),
                "outcome": outcome,
                "region": region,
                "truth": true,
                "estimate": float(row["value"]),
                "low": low,
                "high": high,
                "holds": bool(low <= true <= high),
            }
        )
    return rows


def scan_estimates(cohort: KindsCohort) -> tuple[list[str], pd.DataFrame]:
    """Return the cases of the real scans and the atlas's regressions of them."""
    data = DataOptions(dataroot=str(cohort.root), template="auto")
    loaded = load_cohort(data, seed=0)
    template = load_template(data.template, loaded.columns, data.key_column, "")
    rows = [template.consistent(case.row).row for case in loaded.cases]
    known = template.attributes(loaded.columns)
    chosen = choose_attributes(template, rows, loaded.columns, [], known, {}).attributes
    contrasts = [contrast for attribute in chosen for contrast in contrasts_of(attribute)]
    plan = MeasurementPlan(template, data, chosen, contrasts)
    measured: dict[str, Values] = {}
    volume = {}
    kept: list[Case] = []
    for sample in VolumeDataset(loaded.cases, loaded.labels, data):
        values = real_outcomes(sample, plan)
        if values is not None:
            measured[sample.case.id] = values
            volume[sample.case.id] = lung_volume_ml(sample, data)
            kept.append(sample.case)
    ids = [case.id for case in kept]
    index = pd.Index(ids, dtype=object)
    table = pd.DataFrame(
        [{a.column: template.format_value(case.row, a.column) for a in chosen} for case in kept],
        index=index,
    )
    scans = RealScans(
        outcome_frame(measured),
        table,
        pd.Series(volume, index=index, dtype=float),
        pd.Series(ids, index=index, dtype=object),
        frozenset(),
    )
    roles = Roles({attribute.column: attribute for attribute in chosen}, frozenset(), "")
    real = estimate_contrasts(scans, contrasts, roles)
    names = {contrast.id: contrast.column for contrast in contrasts}
    real = real[real["primary"] == "yes"].assign(column=real["contrast"].map(names))
    return ids, real.rename(columns={"real": "value"})


def generator_estimates(
    o: CoverageBenchmarkOptions, piece: Piece, cohort: KindsCohort
) -> pd.DataFrame:
    """Return the generated effects of a run's atlas, with intervals from refits."""
    k = kinds_options(o)
    kinds.train_configuration(k, cohort, piece.seed, MODEL)
    columns = [c.name for c in cohort.columns.all_columns if c.effect is not None]
    command = AtlasCommand(
        AtlasCases(
            dataroot=str(cohort.root),
            split="test",
            columns=",".join(columns),
            reference=tuple(f"{column}=No" for column in columns),
        ),
        ModelOptions(
            name=kinds.configuration_key(k, piece.group, piece.seed, MODEL),
            checkpoints_dir=f"{o.OUT}/runs",
        ),
        RefitOptions(refits=o.refits, gpus=o.gpus),
        AtlasOutput(out=f"{o.OUT}/atlases/{piece.name}", overwrite=True, volumes=0),
    )
    folder = atlas_run.build_atlas(command)
    effects = pd.read_csv(folder / "effects.csv", dtype={"from": str, "to": str})
    names = {"generated": "value", "refit_low": "low", "refit_high": "high"}
    return effects[effects["kind"] == "category"].rename(columns=names)


def run_piece(o: CoverageBenchmarkOptions, piece: Piece) -> list[Row]:
    """Return the triples of one cohort and side."""
    cohort = kinds.make_cohort(kinds_options(o), piece.group, piece.seed)
    if piece.side == SCANS:
        cases, estimates = scan_estimates(cohort)
    else:
        cases = list(cohort.splits["test"])
        estimates = generator_estimates(o, piece, cohort)
    return triples(piece, cohort, true_effects(cohort, cases), estimates)


def summary(rows: Sequence[Row]) -> str:
    """Return the coverage by side and kind, and every triple that is not held, as Markdown."""
    if not rows:
        return "No piece is finished."
    frame = pd.DataFrame(rows)
    counted = frame.groupby(["side", "kind"], sort=False)["holds"].agg(["sum", "count"])
    total = frame.groupby("side", sort=False)["holds"].agg(["sum", "count"])
    total.index = pd.MultiIndex.from_tuples([(side, "all") for side in total.index])
    table = pd.concat([counted, total]).reset_index(names=["side", "kind"])
    table["share held"] = table["sum"] / table["count"]
    table = table.rename(columns={"sum": "held", "count": "triples"})
    is_right = np.sign(frame["truth"]) == np.sign(frame["estimate"])
    frame["sign"] = is_right.astype(float).where(~np.isclose(frame["truth"], 0, atol=1e-3))
    by_effect = frame.groupby(["side", "column", "outcome", "region"], sort=False).agg(
        cohorts=("seed", "size"),
        truth=("truth", "mean"),
        estimate=("estimate", "mean"),
        low=("low", "mean"),
        high=("high", "mean"),
        right_signs=("sign", "mean"),
        held=("holds", "sum"),
    )
    missed = frame.loc[~frame["holds"]].drop(columns=["holds", "group", "sign"])
    parts = ["Intervals that hold the truth:", markdown_table(table)]
    parts += ["Means over cohorts:", markdown_table(by_effect.reset_index())]
    if len(missed):
        parts += ["Not held:", markdown_table(missed)]
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the pieces that are not finished, and print the table after each."""
    o = parse(CoverageBenchmarkOptions, __doc__ or "", argv)
    folder = Path(o.OUT) / "pieces"
    for piece in pieces(o):
        path = folder / f"{piece.name}.json"
        if path.is_file():
            log.info("%s is finished; it is kept.", path)
            continue
        write_json(path, {"rows": run_piece(o, piece)})
        log.info("%s is finished.\n\n%s", piece.name, write_tables(o, folder))
    log.info("%s", write_tables(o, folder))


def write_tables(o: CoverageBenchmarkOptions, folder: Path) -> str:
    """Write OUT/tables.md and figures.json from all finished pieces; return the text."""
    rows: list[Row] = []
    for path in sorted(folder.glob("*.json")):
        rows += read_json(path)["rows"]
    text = summary(rows)
    write_json(Path(o.OUT) / "figures.json", {"rows": rows})
    (Path(o.OUT) / "tables.md").write_text(text + "\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    run_command(main)

"""Compare atlases of runs on phantoms with the effects planted there.

Studies (`--studies`): coverage (intervals from refits, over several cohorts), permuted (each
permuted fit judged against the others), ties (two associated attributes), spike (an effect planted
in one region). Finished pieces are kept in OUT/pieces as JSON, and so are finished fits, so that a
stopped benchmark resumes. OUT/figures.json and OUT/index.html hold the results.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.statistics import AtlasBenchmarkOptions
from options.parser import answer_early, parse

answer_early(__name__, AtlasBenchmarkOptions, __doc__ or "")  # the imports below are slow

import numpy as np
import pandas as pd

from benchmarks.common import encoder_flag, flag_words, train_run
from benchmarks.report.atlas_page import write_atlas_page
from benchmarks.report.planted_truth import NULL_COLUMN
from data.phantom.cohort import PhantomCohort
from data.phantom.write import make_phantom_cohort
from data.resampling import apply_resampling
from options.atlas_options import AtlasCases, AtlasCommand, AtlasOutput, RefitOptions
from options.base_options import DataOptions
from options.phantom_options import PhantomOptions
from options.plant_options import PlantOptions
from options.test_options import ModelOptions
from pipelines.atlas import run as atlas_run
from pipelines.atlas.analysis import adjustable_columns, measure_real_scans
from pipelines.atlas.planted_effect import plant_effect
from pipelines.atlas.progress import AtlasProgress
from pipelines.atlas.statistics import findings, intervals, tables
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.regional import LUNG_REGIONS
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from pipelines.atlas.study import AtlasStudy
from util.cli import run_command
from util.files import read_json, write_json
from util.metrics.regions import chest_regions

log = logging.getLogger(__name__)

Row = dict[str, Any]
Keep = Callable[[str, Callable[[], Row]], Row]  # returns a piece by its name, computed at most once
# One contrast of each attribute with an effect: column, from, to; AGE between its outer quantiles.
CONTRASTS = (
    ("SMOKING HISTORY", "Never smoker", "Current smoker"),
    ("DIAGNOSIS", "HP", "IPF"),
    ("AGE", "", ""),
)
COLUMNS = ",".join([*(column for column, _, _ in CONTRASTS), NULL_COLUMN])
CONFOUNDING = 0.7  # of the study of associated attributes
ASSOCIATED_COLUMNS = ("SMOKING HISTORY", "DIAGNOSIS")
THIRDS = ("upper", "middle", "lower")


def make_cohort(b: AtlasBenchmarkOptions, name: str, seed: int, confounding: float = 0.0) -> Path:
    """Make a phantom cohort; return its folder."""
    options = PhantomOptions(
        OUT=f"{b.OUT}/cohorts/{name}",
        cases=b.cases + b.test_cases,
        size=b.size,
        seed=seed,
        test_cases=b.test_cases,
        val_cases=0,
        missing=0.12,
        patient_sd=b.patient_sd,
        confounding=confounding,
    )
    return make_phantom_cohort(options)


def train_cohort_run(b: AtlasBenchmarkOptions, root: Path, name: str, seed: int) -> None:
    """Train the run of a cohort, unless it is finished."""
    first_words = flag_words(
        dataroot=root,
        preset="cpu",
        template="aiib23",
        val_cases=0,
        text_encoder=encoder_flag(b.text_encoder),
        cache_dir=f"{b.OUT}/cache",
        seed=seed,
    )
    words = flag_words(max_steps=b.max_steps) if b.max_steps else []
    train_run(Path(b.OUT) / "runs" / name, words, [*first_words, *b.train_flags.split()])


def atlas_command(
    b: AtlasBenchmarkOptions, root: Path, name: str, refits: RefitOptions, columns: str = COLUMNS
) -> AtlasCommand:
    """Return the command that builds the atlas of a run."""
    reference = ("DIAGNOSIS=HP",) if "DIAGNOSIS" in columns else ()
    return AtlasCommand(
        AtlasCases(dataroot=str(root), columns=columns, reference=reference, fold="none"),
        ModelOptions(name=name, checkpoints_dir=f"{b.OUT}/runs"),
        refits,
        AtlasOutput(out=f"{b.OUT}/atlases/{name}", overwrite=True, volumes=0),
    )


def read_table(folder: Path, table: str) -> pd.DataFrame:
    """Read a table of an atlas."""
    return pd.read_csv(folder / f"{table}.csv", dtype={"from": str, "to": str, "contrast": str})


def true_effect(phantoms: PhantomCohort, column: str, start: str, end: str) -> float:
    """Return the planted change of the lungs in HU, mean over test cases."""
    changes = []
    for case in phantoms.splits["test"]:
        before = phantoms.render(case, {column: start})
        after = phantoms.render(case, {column: end})
        lungs = chest_regions(before.mask, before.spacing)["lungs"]
        changes.append((after.hu - before.hu)[lungs].mean())
    return float(np.mean(changes))


def lung_rows(effects: pd.DataFrame, phantoms: PhantomCohort) -> list[Row]:
    """Return an atlas's effects in the lungs for each of `CONTRASTS`, beside the truth."""
    rows = []
    effects = effects[(effects["outcome"] == MEAN) & (effects["kind"] != "slope")]
    lungs = effects[effects["region"] == "lungs"]
    for column, start, end in CONTRASTS:
        part = lungs[lungs["column"] == column]
        if start:
            part = part[(part["from"] == start) & (part["to"] == end)]
        row = part.iloc[0]
        true = true_effect(phantoms, column, row["from"], row["to"])
        low, high = float(row["refit_low"]), float(row["refit_high"])
        rows.append(
            {
                "column": column,
                "from": row["from"],
                "to": row["to"],
                "true_hu": true,
                "generated_hu": float(row["generated"]),
                "low_hu": low,
                "high_hu": high,
                "holds": low <= true <= high,
                "tied_low_hu": float(row["tied_low"]),
                "tied_high_hu": float(row["tied_high"]),
            }
        )
    return rows


def interval_coverage(
    b: AtlasBenchmarkOptions, name: str, seed: int, confounding: float = 0.0
) -> Row:
    """Return the lungs' intervals of one cohort, from a run, its refits and its atlas."""
    root = make_cohort(b, name, seed, confounding)
    train_cohort_run(b, root, name, seed)
    # Without permuted fits the atlas declares no findings at all.
    permutations = intervals.MIN_PERMUTED if confounding else 0
    refits = RefitOptions(gpus=b.gpus, refits=b.refits, permutations=permutations)
    folder = atlas_run.build_atlas(atlas_command(b, root, name, refits))
    ties = _about_associated(read_table(folder, "ties"))
    cautions = _about_associated(read_table(folder, "cautions"))
    return {
        "rows": lung_rows(read_table(folder, "effects"), PhantomCohort.from_folder(root)),
        "cramers_v": float(ties["value"].max()) if len(ties) else 0.0,
        "warnings": cautions["text"].tolist(),
        "findings": read_table(folder, "findings")["column"].tolist(),
    }


def _about_associated(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows about the two associated columns."""
    return frame[frame[["column", "other"]].isin(ASSOCIATED_COLUMNS).all(axis=1)]


def _cohort_pieces(
    b: AtlasBenchmarkOptions, keep: Keep, kind: str, confounding: float = 0.0
) -> list[Row]:
    pieces = []
    for seed in range(1, b.cohorts + 1):
        name = f"{kind}_{seed}"
        pieces.append(keep(name, partial(interval_coverage, b, name, seed, confounding)))
    return pieces


def coverage_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    """Count the attribute-cohort pairs whose 95 % interval of the lungs' effect holds the truth."""
    rows: list[Row] = []
    for piece in _cohort_pieces(b, keep, "coverage"):
        rows += piece["rows"]
    return {"pairs": len(rows), "held": sum(row["holds"] for row in rows), "rows": rows}


def _interval_frame(pieces: list[Row]) -> pd.DataFrame:
    rows = []
    for cohort, piece in enumerate(pieces, 1):
        rows += [{"cohort": cohort, **row} for row in piece["rows"]]
    return pd.DataFrame(rows)


def associations_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    """Compare intervals of cohorts with two associated attributes and of the same without.

    Widths are means over the cohorts.
    """
    free = _interval_frame(_cohort_pieces(b, keep, "coverage"))
    pieces = _cohort_pieces(b, keep, "tied", CONFOUNDING)
    tied = _interval_frame(pieces)
    # Intervals from refits alone, without the widening for associations.
    refits_low = tied["low_hu"] - tied["tied_low_hu"]
    refits_high = tied["high_hu"] - tied["tied_high_hu"]
    widths = tied[["cohort", "column"]].assign(
        free=free["high_hu"] - free["low_hu"],
        refits_alone=refits_high - refits_low,
        tied=tied["high_hu"] - tied["low_hu"],
        refits_alone_hold=tied["true_hu"].between(refits_low, refits_high),
        hold=tied["true_hu"].between(tied["low_hu"], tied["high_hu"]),
    )
    by_column = widths.groupby("column", sort=False)
    claimed = []
    for seed, piece in enumerate(pieces, 1):
        for column in piece["findings"]:
            if column in ASSOCIATED_COLUMNS:
                claimed.append(f"{column} (cohort {seed})")
    return {
        "cohorts": b.cohorts,
        "cramers_v": float(np.mean([piece["cramers_v"] for piece in pieces])),
        "widths_hu": by_column[["free", "refits_alone", "tied"]].mean().to_dict(),
        "held": by_column[["refits_alone_hold", "hold"]].sum().to_dict(),
        "widths": plain_rows(widths),
        "warnings": {str(seed): piece["warnings"] for seed, piece in enumerate(pieces, 1)},
        "claimed": claimed,
    }


def permutation_tests(b: AtlasBenchmarkOptions) -> Row:
    """Count permuted fits that would be declared a finding.

    Each is judged against all others by the atlas's own rule, though its rows are shuffled.
    """
    name = "coverage_1"
    root = make_cohort(b, name, 1)
    train_cohort_run(b, root, name, 1)
    refits = RefitOptions(gpus=b.gpus, permutations=b.permutations)
    opened = atlas_run.open_atlas(atlas_command(b, root, name, refits))
    with tempfile.TemporaryDirectory() as folder:
        measured = opened.generate(AtlasProgress(Path(folder), ""), 0).measurements
    study, real = opened.study, measure_real_scans(opened.study)
    effects = intervals.effects_over_patients(tables.effect_frame(measured.effects))
    null = tables.refit_frame(measured.refits)
    null = null[null["kind"] == "permuted"]
    roles = adjustable_columns(study, "DIAGNOSIS")
    of_column = {a.column: a.role for a in study.plan.attributes}
    keys = ["contrast", "outcome", "region"]
    declared: dict[str, list[str]] = {}
    for refit in opened.networks.refits:
        if refit["kind"] != "permuted":
            continue
        is_own = null["refit"] == refit["name"]
        of_refit = null[is_own].set_index(keys)["effect"]
        others = null[~is_own].groupby(keys)["effect"].apply(list)
        largest = intervals.largest_effects(null[~is_own])
        rows = []
        for row in effects.to_dict("records"):
            key = tuple(row[name] for name in keys)
            if key in of_refit.index:
                is_lung = key[2] in LUNG_REGIONS
                of_regions = largest[key[0], key[1]] if is_lung else []
                test = intervals.permuted_null(of_refit[key], others[key], of_regions)
                rows.append(row | {"generated": of_refit[key]} | test)
        scans = shuffle_column(study, real, refit)
        contrasts = estimate_contrasts(scans, study.plan.contrasts, roles)
        tests = findings.judge_effects(pd.DataFrame(rows), contrasts, of_column, [])
        positive = tests[tests["verdict"] == "finding"]
        declared[refit["name"]] = [": ".join(place) for place in positive[keys].to_numpy()]
    lungs = null[(null["outcome"] == MEAN) & (null["region"] == "lungs")]
    return {
        "fits": len(declared),
        "declared": sum(bool(v) for v in declared.values()),
        "findings": declared,
        "largest_lung_effect_hu": float(lungs["effect"].abs().max()),
    }


def shuffle_column(study: AtlasStudy, scans: RealScans, refit: Mapping[str, Any]) -> RealScans:
    """Return the real training scans beside the rows that a permuted fit was trained with."""
    options = replace(study.plan.data, permute=tuple(refit["permuted"]))
    cohort = apply_resampling(study.cohort, options, refit["seed"])
    rows = {case.id: study.formatted_row(case) for case in cohort.cases}
    ids = [case.id for case in study.training if case.id in scans.outcomes.index]
    index = pd.Index(ids, dtype=object)
    table = pd.DataFrame([rows[case] for case in ids], index=index, columns=list(study.every))
    return scans.of_cases(ids, table)


def permutation_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    """Return the declared findings of permuted fits."""
    return keep("permuted", partial(permutation_tests, b))


def planted_effect_atlas(b: AtlasBenchmarkOptions, k: int) -> Row:
    """Return what the atlas shows of an effect planted in the lower thirds of half the scans.

    `k` is the number of the cohort and of the random half.
    """
    name = f"spike_{k}"
    source, root = make_cohort(b, f"spike_source_{k}", k), Path(b.OUT) / "cohorts" / name
    if not (root / "plant.json").is_file():
        plant_effect(
            DataOptions(dataroot=str(source)),
            PlantOptions(out=str(root), hu=b.planted_hu, region="lower", plant_seed=k),
        )
    train_cohort_run(b, root, name, k)
    atlas = atlas_run.build_atlas(
        atlas_command(b, root, name, RefitOptions(gpus=b.gpus), "PLANTED")
    )
    rows = read_table(atlas, "spike")
    real = read_table(atlas, "real").query("primary == 'yes' and outcome == @MEAN")
    names = {"real": "real_hu", "low": "low_hu", "high": "high_hu"}
    real = real[["region", *names]].rename(columns=names)
    rows = rows[rows["region"].isin([*THIRDS, "lungs", "elsewhere"])].merge(
        real, how="left", on="region"
    )
    return {"rows": plain_rows(rows)}


def planted_effect_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    """Return planted and generated effects by region, for each random half and on average."""
    draws = []
    for k in range(1, b.planted_cohorts + 1):
        piece = keep(f"spike_{k}", partial(planted_effect_atlas, b, k))
        draws += [{"draw": k, **row} for row in piece["rows"]]
    frame = pd.DataFrame(draws)
    mean = (
        frame.astype({"recovered": float})
        .groupby("region", sort=False)[["planted_hu", "generated_hu", "recovered", "leaked_hu"]]
        .mean()
        .reset_index()
    )
    return {"rows": plain_rows(mean), "draws": plain_rows(frame)}


def plain_rows(frame: pd.DataFrame) -> list[Row]:
    """Return rows for JSON, with None for missing numbers."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


STUDIES = {
    "coverage": coverage_study,
    "permuted": permutation_study,
    "ties": associations_study,
    "spike": planted_effect_study,
}


def summary_sentence(name: str, figures: Mapping[str, Any]) -> str:
    """Return a study's result as a sentence."""
    if name == "coverage":
        pairs = f"{figures['held']} of {figures['pairs']} attribute-cohort pairs"
        return f"The 95 % interval holds the truth in {pairs}."
    if name == "permuted":
        return (
            f"{figures['declared']} of {figures['fits']} permuted fits would be declared a "
            "finding; the largest effect in the lungs is "
            f"{figures['largest_lung_effect_hu']:.1f} HU."
        )
    if name == "ties":
        return _associations_sentence(figures)
    parts = []
    for row in figures["rows"]:
        change = f"{row['generated_hu']:+.1f} of {row['planted_hu']:+.1f} HU"
        parts.append(f"{row['region']} {change}")
    draws = len({row["draw"] for row in figures["draws"]})
    return f"Recovered, mean over {draws} random halves: {'; '.join(parts)}."


def _associations_sentence(figures: Mapping[str, Any]) -> str:
    widths, held = figures["widths_hu"], figures["held"]
    parts = []
    for column, width in widths["tied"].items():
        alone = f"{widths['refits_alone'][column]:.1f} HU, {held['refits_alone_hold'][column]}"
        parts.append(
            f"{column}: {widths['free'][column]:.1f} to {width:.1f} HU, truth held in "
            f"{held['hold'][column]} (refits alone: {alone})"
        )
    warned = sum(bool(texts) for texts in figures["warnings"].values())
    return (
        f"Cramer's V {figures['cramers_v']:.2f}; {warned} of {figures['cohorts']} cohorts warned "
        f"of; mean widths of the intervals {'; '.join(parts)}; claimed: "
        f"{', '.join(figures['claimed']) or 'nothing'}."
    )


def main() -> None:
    """Run the studies and write figures and page."""
    b = parse(AtlasBenchmarkOptions, __doc__ or "")
    out = Path(b.OUT)

    def keep(name: str, compute: Callable[[], Row]) -> Row:
        path = out / "pieces" / f"{name}.json"
        if not path.is_file():
            write_json(path, compute())
        return dict(read_json(path))

    file = out / "figures.json"
    figures = dict(read_json(file)) if file.is_file() else {}
    for name in b.studies or tuple(STUDIES):
        figures[name] = STUDIES[name](b, keep)
        write_json(file, figures)
        sentences = {study: summary_sentence(study, of) for study, of in figures.items()}
        page = write_atlas_page(out, figures, sentences)
        log.info("%s: %s (%s)", name, sentences[name], page)


if __name__ == "__main__":
    run_command(main)

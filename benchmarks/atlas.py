"""Proof of the atlas on planted truth: do intervals hold it, are shuffled columns declared
findings, does a spike return?

Studies (`--studies`): coverage (intervals from refits over several cohorts), permuted (every
permuted fit judged against the others), ties (two attributes tied to each other), spike (an effect
planted in one place). Each finished piece is kept in OUT/pieces as JSON, and finished fits are kept
too, so that a stopped benchmark goes on where it was. OUT/figures.json and OUT/index.html hold the
outcome.
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
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

import train
from benchmarks.effects import minilm_folder
from benchmarks.report.atlas_page import write_atlas_proof
from benchmarks.report.planted_truth import NULL
from data.phantom.cohort import PhantomCohort
from data.phantom.write import make_phantom_cohort
from data.resampling import apply_resampling
from options.atlas_options import AtlasCases, AtlasCommand, AtlasOutput, RefitOptions
from options.base_options import DataOptions
from options.benchmark_options import AtlasBenchmarkCommand, AtlasBenchmarkOptions
from options.parser import parse
from options.phantom_options import PhantomOptions
from options.plant_options import PlantOptions
from options.test_options import ModelOptions
from pipelines.atlas import run as atlas_run
from pipelines.atlas.analysis import RealCohort, adjustable_columns
from pipelines.atlas.planted_effect import plant_effect
from pipelines.atlas.statistics import findings, intervals, tables
from pipelines.atlas.statistics.regional import RegionVoxels, find_vessels
from pipelines.atlas.statistics.regression import RealScans, estimate_contrasts
from pipelines.atlas.study import AtlasStudy
from util.cli import run_command
from util.files import read_json, write_json
from util.metrics.regions import chest_regions
from util.training import checkpoint

log = logging.getLogger(__name__)

Row = dict[str, Any]
Keep = Callable[
    [str, Callable[[], Row]], Row
]  # a piece by its name, made only where it is not there
# One contrast of each attribute that has an effect: column, from, to; AGE between its outer
# quantiles.
CONTRASTS = (
    ("SMOKING HISTORY", "Never smoker", "Current smoker"),
    ("DIAGNOSIS", "HP", "IPF"),
    ("AGE", "", ""),
)
COLUMNS = ",".join([*(column for column, _, _ in CONTRASTS), NULL])
TIED = 0.7
TIED_COLUMNS = ("SMOKING HISTORY", "DIAGNOSIS")
THIRDS = ("upper", "middle", "lower")


def make_cohort(b: AtlasBenchmarkOptions, name: str, seed: int, confounding: float = 0.0) -> Path:
    return make_phantom_cohort(
        PhantomOptions(
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
    )


def train_run(b: AtlasBenchmarkOptions, root: Path, name: str, seed: int) -> None:
    """A run with a CLIP of its own; one that is finished is kept, one that was stopped goes on."""
    folder = Path(b.OUT) / "runs" / name
    words = ["--name", name, "--checkpoints_dir", str(folder.parent)]
    words += ["--max_steps", str(b.max_steps)] if b.max_steps else []
    if (folder / "finished").is_file():
        return
    if (folder / "latest" / checkpoint.STATE_FILE).is_file():
        train.train(train.read_options([*words, "--continue_train"]))
    else:
        encoder = minilm_folder() if b.text_encoder == "minilm" else b.text_encoder
        train.train(
            train.read_options(
                [
                    *words,
                    "--dataroot",
                    str(root),
                    "--overwrite",
                    "--preset",
                    "cpu",
                    "--template",
                    "aiib23",
                    "--val_cases",
                    "0",
                    "--text_encoder",
                    encoder,
                    "--cache_dir",
                    f"{b.OUT}/cache",
                    "--seed",
                    str(seed),
                    *b.train_flags.split(),
                ]
            )
        )
    (folder / "finished").touch()


def atlas_command(
    b: AtlasBenchmarkOptions,
    root: Path,
    name: str,
    columns: str = COLUMNS,
    refits: int = 0,
    permutations: int = 0,
) -> AtlasCommand:
    """How the atlas of a run is made."""
    return AtlasCommand(
        AtlasCases(
            dataroot=str(root),
            columns=columns,
            reference=("DIAGNOSIS=HP",) if "DIAGNOSIS" in columns else (),
        ),
        ModelOptions(name=name, checkpoints_dir=f"{b.OUT}/runs"),
        RefitOptions(gpus=b.gpus, refits=refits, permutations=permutations),
        AtlasOutput(out=f"{b.OUT}/atlases/{name}", overwrite=True, volumes=0),
    )


def read_table(folder: Path, table: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{table}.csv", dtype={"from": str, "to": str, "contrast": str})


def true_effect(
    phantoms: PhantomCohort, column: str, start: str, end: str, vessel_hu: float = 150.0
) -> float:
    """The planted change of the lungs without vessels, mean over test cases; HU."""
    found = []
    for case in phantoms.splits["test"]:
        one, two = (phantoms.render(case, {column: value}) for value in (start, end))
        masks = chest_regions(one.mask, voxel_sizes(one.affine))
        vessels = find_vessels(one.hu, masks["lungs"], vessel_hu)
        found.append(RegionVoxels.from_masks(masks, vessels).means(two.hu - one.hu)["lungs"])
    return float(np.mean(found))


def lung_rows(effects: pd.DataFrame, phantoms: PhantomCohort) -> list[Row]:
    """What an atlas says of the lungs in each of `CONTRASTS`, beside the truth."""
    rows = []
    lungs = effects[(effects["region"] == "lungs") & (effects["kind"] != "slope")]
    for column, start, end in CONTRASTS:
        part = lungs[lungs["column"] == column]
        if start:
            part = part[(part["from"] == start) & (part["to"] == end)]
        row = part.iloc[0]
        true = true_effect(phantoms, column, row["from"], row["to"])
        low, high = float(row["refit_low_hu"]), float(row["refit_high_hu"])
        rows.append(
            {
                "column": column,
                "from": row["from"],
                "to": row["to"],
                "true_hu": true,
                "generated_hu": float(row["generated_hu"]),
                "low_hu": low,
                "high_hu": high,
                "holds": low <= true <= high,
                "tied_low_hu": float(row["tied_low_hu"]),
                "tied_high_hu": float(row["tied_high_hu"]),
            }
        )
    return rows


def interval_coverage(b: AtlasBenchmarkOptions, name: str, seed: int, confounding: float = 0.0) -> Row:
    """One cohort with a run, its refits and its atlas."""
    root = make_cohort(b, name, seed, confounding)
    train_run(b, root, name, seed)
    permutations = (
        intervals.MIN_PERMUTED if confounding else 0
    )  # without them nothing could be claimed at all
    folder = atlas_run.build_atlas(
        atlas_command(b, root, name, refits=b.refits, permutations=permutations)
    )
    ties, cautions = read_table(folder, "ties"), read_table(folder, "cautions")
    pair, about = (
        frame[frame[["column", "other"]].isin(TIED_COLUMNS).all(axis=1)]
        for frame in (ties, cautions)
    )
    return {
        "rows": lung_rows(read_table(folder, "effects"), PhantomCohort.from_folder(root)),
        "cramers_v": float(pair["value"].max()) if len(pair) else 0.0,
        "warnings": about["text"].tolist(),
        "findings": read_table(folder, "findings")["column"].tolist(),
    }


def coverage_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    """In how many attribute-cohort pairs the 95 % interval of the lungs' effect holds the truth."""
    found = [
        keep(f"coverage_{k}", partial(interval_coverage, b, f"coverage_{k}", k))
        for k in range(1, b.cohorts + 1)
    ]
    rows = [row for f in found for row in f["rows"]]
    return {"pairs": len(rows), "held": sum(row["holds"] for row in rows), "rows": rows}


def associations_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    """Widths of the intervals with the two attributes tied, against the same cohorts' without;
    means over the cohorts.
    """
    seeds = range(1, b.cohorts + 1)
    found = {
        "free": [
            keep(f"coverage_{k}", partial(interval_coverage, b, f"coverage_{k}", k)) for k in seeds
        ],
        "tied": [
            keep(f"tied_{k}", partial(interval_coverage, b, f"tied_{k}", k, TIED)) for k in seeds
        ],
    }
    free, tied = (
        pd.DataFrame(
            [{"cohort": k, **row} for k, piece in enumerate(pieces, 1) for row in piece["rows"]]
        )
        for pieces in found.values()
    )
    alone = [
        tied["low_hu"] - tied["tied_low_hu"],
        tied["high_hu"] - tied["tied_high_hu"],
    ]  # what refits say of the tied
    wide = tied[["cohort", "column"]].assign(
        free=free["high_hu"] - free["low_hu"],
        refits_alone=alone[1] - alone[0],
        tied=tied["high_hu"] - tied["low_hu"],
        refits_alone_hold=tied["true_hu"].between(*alone),
        hold=tied["true_hu"].between(tied["low_hu"], tied["high_hu"]),
    )
    by_column = wide.groupby("column", sort=False)
    mean, held = (
        by_column[["free", "refits_alone", "tied"]].mean(),
        by_column[["refits_alone_hold", "hold"]].sum(),
    )
    return {
        "cohorts": b.cohorts,
        "cramers_v": float(np.mean([piece["cramers_v"] for piece in found["tied"]])),
        "widths_hu": mean.to_dict(),
        "held": held.to_dict(),
        "widths": plain_rows(wide),
        "warnings": {
            str(k): piece["warnings"] for k, piece in zip(seeds, found["tied"], strict=True)
        },
        "claimed": [
            f"{column} (cohort {k})"
            for k, piece in zip(seeds, found["tied"], strict=True)
            for column in piece["findings"]
            if column in TIED_COLUMNS
        ],
    }


def permutation_tests(b: AtlasBenchmarkOptions) -> Row:
    """How often a fit that can know nothing is declared a finding, judged against all others by the
    atlas's own rule.
    """
    name = "coverage_1"
    root = make_cohort(b, name, 1)
    train_run(b, root, name, 1)
    opened = atlas_run.open_atlas(atlas_command(b, root, name, permutations=b.permutations))
    with tempfile.TemporaryDirectory() as folder:
        measured = opened.generate(Path(folder), 0).measurements
    study, real = opened.study, RealCohort.from_study(opened.study)
    effects = intervals.effects_over_patients(tables.effect_frame(measured.effects))
    null = tables.refit_frame(measured.refits)
    null = null[null["kind"] == "permuted"]
    roles = adjustable_columns(study, "DIAGNOSIS")
    of_column = {a.column: a.role for a in study.plan.attributes}
    declared: dict[str, list[str]] = {}
    for refit in (r for r in opened.networks.refits if r["kind"] == "permuted"):
        own = null[null["refit"] == refit["name"]].set_index(["contrast", "region"])["effect_hu"]
        others = (
            null[null["refit"] != refit["name"]]
            .groupby(["contrast", "region"])["effect_hu"]
            .apply(list)
        )
        rows = [
            {**row, "generated_hu": own[key], **intervals.permuted_null(own[key], others[key])}
            for row in effects.to_dict("records")
            if (key := (row["contrast"], row["region"])) in own.index
        ]
        scans = shuffle_column(study, real, refit)
        tests = findings.judge_effects(
            pd.DataFrame(rows),
            estimate_contrasts(scans, study.plan.contrasts, roles),
            of_column,
            [],
        )
        found = tests[tests["verdict"] == "finding"]
        declared[refit["name"]] = [
            f"{c}: {r}" for c, r in zip(found["contrast"], found["region"], strict=True)
        ]
    lungs = null[null["region"] == "lungs"]
    return {
        "fits": len(declared),
        "declared": sum(bool(v) for v in declared.values()),
        "findings": declared,
        "largest_lung_effect_hu": float(lungs["effect_hu"].abs().max()),
    }


def shuffle_column(study: AtlasStudy, real: RealCohort, refit: Mapping[str, Any]) -> RealScans:
    """The real training scans beside the rows that a permuted fit was trained with."""
    options = replace(study.plan.data, permute=tuple(refit["permuted"]))
    rows = {
        case.id: study.formatted_row(case)
        for case in apply_resampling(study.cohort, options, refit["seed"]).cases
    }
    kept = [case.id for case in study.training if case.id in real.scans.density.index]
    table = pd.DataFrame(
        [rows[case] for case in kept], index=pd.Index(kept, dtype=object), columns=list(study.every)
    )
    return RealScans(
        real.scans.density.loc[kept],
        table,
        real.scans.volume.loc[kept],
        real.scans.patient.loc[kept],
    )


def permutation_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    return keep("permuted", partial(permutation_tests, b))


def planted_effect_atlas(b: AtlasBenchmarkOptions, k: int) -> Row:
    """What comes back of an effect planted in the lower thirds of the scans of the k-th random half
    of the k-th cohort.
    """
    name = f"spike_{k}"
    source, root = make_cohort(b, f"spike_source_{k}", k), Path(b.OUT) / "cohorts" / name
    if not (root / "plant.json").is_file():
        plant_effect(
            DataOptions(dataroot=str(source)),
            PlantOptions(out=str(root), hu=b.spike_hu, region="lower", plant_seed=k),
        )
    train_run(b, root, name, k)
    atlas = atlas_run.build_atlas(atlas_command(b, root, name, "PLANTED"))
    rows = read_table(atlas, "spike")
    real = read_table(atlas, "real").query("primary == 'yes'")[["region", "real_hu", "low_hu", "high_hu"]]
    rows = rows[rows["region"].isin([*THIRDS, "lungs", "elsewhere"])].merge(
        real, how="left", on="region"
    )
    return {"rows": plain_rows(rows)}


def planted_effect_study(b: AtlasBenchmarkOptions, keep: Keep) -> Row:
    draws = [keep(f"spike_{k}", partial(planted_effect_atlas, b, k))["rows"] for k in range(1, b.spikes + 1)]
    frame = pd.DataFrame([{"draw": k, **row} for k, rows in enumerate(draws, 1) for row in rows])
    mean = (
        frame.astype({"recovered": float})
        .groupby("region", sort=False)[["planted_hu", "generated_hu", "recovered", "leaked_hu"]]
        .mean()
        .reset_index()
    )
    return {"rows": plain_rows(mean), "draws": plain_rows(frame)}


def plain_rows(frame: pd.DataFrame) -> list[Row]:
    """Rows as JSON knows them, null where there is no number."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


STUDIES = {"coverage": coverage_study, "permuted": permutation_study, "ties": associations_study, "spike": planted_effect_study}


def summary_sentence(name: str, found: Mapping[str, Any]) -> str:
    """A study's outcome in a sentence."""
    if name == "coverage":
        return f"The 95 % interval holds the truth in {found['held']} of {found['pairs']} attribute-cohort pairs."
    if name == "permuted":
        return (
            f"{found['declared']} of {found['fits']} permuted fits would be declared a finding; "
            f"the largest effect in the lungs is {found['largest_lung_effect_hu']:.1f} HU."
        )
    if name == "ties":
        of, held = found["widths_hu"], found["held"]
        widths = "; ".join(
            f"{c}: {of['free'][c]:.1f} to {w:.1f} HU, truth held in {held['hold'][c]} (refits "
            f"alone: {of['refits_alone'][c]:.1f} HU, {held['refits_alone_hold'][c]})"
            for c, w in of["tied"].items()
        )
        warned = sum(bool(texts) for texts in found["warnings"].values())
        return (
            f"Cramer's V {found['cramers_v']:.2f}; {warned} of {found['cohorts']} cohorts warned "
            f"of; mean widths of the intervals {widths}; claimed: "
            f"{', '.join(found['claimed']) or 'nothing'}."
        )
    back = (
        f"{r['region']} {r['generated_hu']:+.1f} of {r['planted_hu']:+.1f} HU"
        for r in found["rows"]
    )
    return f"Came back, mean over {len({r['draw'] for r in found['draws']})} random halves: {'; '.join(back)}."


def main() -> None:
    b = parse(AtlasBenchmarkCommand, __doc__ or "").benchmark
    folder = Path(b.OUT) / "pieces"
    folder.mkdir(parents=True, exist_ok=True)

    def piece(name: str, make_it: Callable[[], Row]) -> Row:
        path = folder / f"{name}.json"
        if not path.is_file():
            write_json(path, make_it())
        return dict(read_json(path))

    figures = Path(b.OUT) / "figures.json"
    found = dict(read_json(figures)) if figures.is_file() else {}
    for name in b.studies or tuple(STUDIES):
        found[name] = STUDIES[name](b, piece)
        write_json(figures, found)
        page = write_atlas_proof(
            Path(b.OUT), found, {study: summary_sentence(study, of) for study, of in found.items()}
        )
        log.info("%s: %s (%s)", name, summary_sentence(name, found[name]), page)


if __name__ == "__main__":
    run_command(main)

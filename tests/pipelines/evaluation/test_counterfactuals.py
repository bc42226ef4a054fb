"""Axioms of counterfactuals: methods whose quality is known, through scripts/evaluate.py."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from data.phantom.cohort import PhantomCohort
from data.phantom.write import make_phantom_cohort
from data.volumes import load_volume, write_like
from options.phantom_options import PhantomOptions
from pipelines.evaluation.baselines import CaseBootstrap
from pipelines.evaluation.counterfactuals.axiom_rows import CHANGED, DIVERGENCE, FID, OTHER
from pipelines.evaluation.counterfactuals.divergence import divergence
from pipelines.evaluation.counterfactuals.measured import MeasuredChange, MeasuredMethod
from pipelines.evaluation.counterfactuals.regression_baseline import BASELINE
from pipelines.evaluation.counterfactuals.regression_map import CELLS, LungCells, RegressionMap
from pipelines.evaluation.counterfactuals.sets import Counterfactual, read_counterfactuals
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.volume_sets import VolumeFile, find_set
from tests.commands import Outcome, TrainedRun, command, refused

SMOKING, AGE = "SMOKING HISTORY", "AGE"
VALUES = {SMOKING: ("Never smoker", "Current smoker"), AGE: ("45", "80")}
FEW = ("--draws", "20", "--slices", "4", "--template", "aiib23", "--no-pairs", "--no-resegment")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms, which differ by smoking (41 HU) and age."""
    return make_phantom_cohort(
        PhantomOptions(
            OUT=str(tmp_path_factory.mktemp("axioms") / "cohort"),
            cases=32,
            size=(24, 24, 16),
            seed=4,
            test_cases=9,
            val_cases=0,
            missing=0.0,
            patient_sd=0.0,
        )
    )


def write_results(
    cohort: Path,
    out: Path,
    change: Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]],
    run: str,
    edited: bool = False,
) -> Path:
    """Write a results folder whose changed volumes are a function of (scan, truth, mask)."""
    phantoms = PhantomCohort.from_folder(cohort)
    rows, metrics = [], []
    for case in phantoms.splits["test"]:
        path = cohort / "img" / f"{case}.nii.gz"
        scan = load_volume(path).array.astype(np.float32)
        mask = load_volume(cohort / "gtlung" / f"{case}.nii.gz").array
        write_like(out / "volumes" / f"{case}.nii.gz", scan, path)
        rows.append({"file": f"volumes/{case}.nii.gz", "case": case, "kind": "own"})
        before = phantoms.render(case, noise=False).hu
        for column, values in VALUES.items():
            for value in values:
                truth = phantoms.render(case, {column: value}, noise=False).hu - before
                file = (
                    f"volumes/{case}__{column.replace(' ', '_')}={value.replace(' ', '_')}.nii.gz"
                )
                write_like(out / file, change(scan, truth, mask), path)
                rows.append(
                    {"file": file, "case": case, "kind": "varied", "column": column, "value": value}
                )
                name = f"reversibility_mae_hu {column}={value}"
                metrics.append({"case": case, "region": "lungs", "metric": name, "value": 0.5})
    pd.DataFrame(rows).to_csv(out / "volumes.csv", index=False)
    pd.DataFrame(metrics).to_csv(out / "metrics.csv", index=False)
    record = {"run": run, "options": {"edit": {"edit_real": edited}}}
    (out / "results.json").write_text(json.dumps(record))
    return out


def truth_added(scan: Any, truth: Any, mask: Any) -> Any:
    return scan + truth


def everything_moved(scan: Any, truth: Any, mask: Any) -> Any:
    """The effect, and 60 HU outside the lungs."""
    return scan + truth + np.where(mask == 0, 60, 0)


def wrong_sign(scan: Any, truth: Any, mask: Any) -> Any:
    return scan - truth


@pytest.fixture(scope="module")
def folder(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the truth (as edits), and of two methods that move too much or wrongly."""
    place = tmp_path_factory.mktemp("methods")
    truth = write_results(cohort, place / "truth", truth_added, "truth", edited=True)
    moved = write_results(cohort, place / "moved", everything_moved, "moved")
    wrong = write_results(cohort, place / "wrong", wrong_sign, "wrong")
    done = evaluate(
        cohort, truth, place / "out", "--counterfactuals", moved, "--counterfactuals", wrong
    )
    assert done.code == 0, done.text
    return place / "out"


def evaluate(real: Path, synthetic: Path, out: Path, *words: str | Path) -> Outcome:
    common = ("--real", real, "--synthetic", synthetic, "--out", out, *FEW)
    return command("scripts/evaluate.py", *common, *words)


def read_axioms(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "counterfactuals.csv", keep_default_na=True)


def one(frame: pd.DataFrame, **where: str) -> pd.Series:
    """Return the only row with these values."""
    for column, value in where.items():
        frame = frame[frame[column].fillna("") == value]
    assert len(frame) == 1, (where, len(frame))
    return frame.iloc[0]


TRUTH = "truth, edited scans"


def test_effectiveness_tells_a_right_change_from_none_and_from_a_wrong_one(folder: Path) -> None:
    rows = read_axioms(folder)
    assert list(dict.fromkeys(rows["method"])) == [
        TRUTH,
        "moved",
        "wrong",
        BASELINE,
        "scan, unchanged",
    ]
    auc = {
        method: one(rows, method=method, column=SMOKING, of=CHANGED, measure="AUC")
        for method in dict.fromkeys(rows["method"])
    }
    assert auc["scan, unchanged"]["value"] == 0.5  # exactly chance, whoever is shown
    assert auc[TRUTH]["value"] > 0.9 > 0.2 > auc["wrong"]["value"]
    assert auc[BASELINE]["value"] > 0.9  # the map holds the effect of smoking
    assert auc[TRUTH]["reference"] > 0.8 and auc[TRUTH]["volumes"] == 18
    age = one(rows, method=TRUTH, column=AGE, of=CHANGED, measure="rank correlation")
    still = one(rows, method="scan, unchanged", column=AGE, of=CHANGED, measure="rank correlation")
    assert age["value"] > 0.7 and abs(still["value"]) < 1e-9


def test_other_attributes_are_read_beside_the_value_before_the_change(folder: Path) -> None:
    rows = read_axioms(folder)
    others = rows[rows["of"].str.startswith(OTHER)]
    assert set(others["of"]) == {f"{OTHER}: {SMOKING}", f"{OTHER}: {AGE}"}
    still = others[others["method"] == "scan, unchanged"]
    scores = still[still["better"] == "near"]
    assert np.allclose(scores["value"], scores["reference"])
    shifts = still[still["measure"].str.startswith("change of the prediction")]
    assert len(shifts) == 2 and (shifts["value"] == 0).all()


def test_composition_reversibility_and_minimality(folder: Path) -> None:
    rows = read_axioms(folder)
    for method in (TRUTH, BASELINE, "scan, unchanged"):
        assert one(rows, method=method, axiom="composition", of="lungs")["value"] == 0
    generated = one(rows, method="moved", axiom="composition", of="lungs")
    assert "not from the scan" in generated["note"]
    back = {"axiom": "reversibility", "of": "lungs", "column": SMOKING}
    assert one(rows, method=TRUTH, **back)["value"] == 0.5  # as metrics.csv has it
    assert one(rows, method=BASELINE, **back)["note"] == "by construction"
    outside = {"axiom": "minimality", "of": "outside", "column": SMOKING}
    assert one(rows, method=TRUTH, **outside)["value"] < 1
    assert one(rows, method=BASELINE, **outside)["value"] == 0
    assert 50 < one(rows, method="moved", **outside)["value"] < 62
    lungs = one(rows, method=TRUTH, axiom="minimality", of="lungs", column=SMOKING)
    assert 20 < lungs["value"] < 60
    least = math.log(0.8 + 0.2 * math.e)
    still = one(rows, method="scan, unchanged", measure=DIVERGENCE, column=SMOKING)
    assert still["value"] == pytest.approx(least)
    moved = one(rows, method="moved", measure=DIVERGENCE, column=SMOKING)
    assert moved["value"] > still["value"]
    fid = {m: one(rows, method=m, measure=FID, column=SMOKING)["value"] for m in (TRUTH, "moved")}
    assert fid["moved"] > fid[TRUTH]


def test_the_section_stands_on_the_page_and_in_the_json(
    folder: Path, visit: Callable[[Path], Any]
) -> None:
    record = json.loads((folder / "evaluation.json").read_text())
    assert len(record["counterfactuals"]) == len(read_axioms(folder))
    page = visit(folder / "report.html")
    card = page.locator("section", has_text="do changed volumes keep the axioms")
    assert card.count() == 1
    text = card.inner_text()
    assert BASELINE in text and "scan, unchanged" in text and f"Changed: {AGE}" in text
    assert "real scans" in text and "nan" not in text


def test_results_of_test_py_are_judged_with_their_own_reversibility(
    trained_run: TrainedRun, tmp_path: Path
) -> None:
    words = (
        "--vary",
        "SMOKING HISTORY=Never smoker,Current smoker",
        "--split",
        "all",
        "--how_many",
        "4",
    )
    assert trained_run.test(tmp_path / "results", *words).code == 0
    results = next((tmp_path / "results").rglob("volumes.csv")).parent
    metrics = pd.read_csv(results / "metrics.csv")
    back = metrics[metrics["metric"].str.startswith("reversibility_mae_hu SMOKING")]
    assert len(back) == 4 * 2 * 2 and (back["value"] >= 0).all()
    # Pack-years that a never smoker drops do not come back; where nothing is dropped all does.
    assert (back["value"] == 0).any() and (back["value"] > 0).any()
    done = evaluate(trained_run.cohort, results, tmp_path / "out")
    assert done.code == 0, done.text
    rows = read_axioms(tmp_path / "out")
    shown = one(rows, method="tiny", axiom="reversibility", of="lungs")
    in_lungs = back.loc[back["region"] == "lungs", "value"]
    assert shown["value"] == pytest.approx(in_lungs.mean(), abs=1e-4)
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert any(text.startswith("Effectiveness on attributes") for text in record["not_measured"])
    done = evaluate(trained_run.cohort, results, tmp_path / "none", "--no-axioms")
    assert done.code == 0 and not (tmp_path / "none" / "counterfactuals.csv").exists()


# --- parts


def measured(case: str, feature: float) -> VolumeMeasurements:
    nothing = np.zeros(0)
    whole = [np.array([feature], np.float32)]
    return VolumeMeasurements(
        case,
        [],
        whole,
        nothing.astype(np.float16),
        nothing.astype(np.int64),
        {},
        nothing,
        nothing.astype(np.float16),
        nothing,
        {},
    )


def test_divergence_is_least_for_a_change_between_nothing_and_another_patient() -> None:
    """Never smokers lie around 0, smokers around 10, patients of a group 1 apart."""
    factual = {f"n{i}": measured(f"n{i}", i) for i in range(4)}
    factual |= {f"s{i}": measured(f"s{i}", 10 + i) for i in range(4)}
    rows = {case: {SMOKING: "never" if case[0] == "n" else "smoker"} for case in factual}
    method = MeasuredMethod("m", factual, rows, {})

    def of_change(feature: float) -> float:
        file = VolumeFile("n0", Path("x"), None)
        change = Counterfactual(SMOKING, "smoker", file)
        volume = measured("n0", feature)
        return divergence(method, SMOKING, MeasuredChange(change, "smoker", {}, volume, {}))

    assert of_change(5) == pytest.approx(0)  # further than any never smoker, nearer than a smoker
    assert of_change(0) == pytest.approx(math.log(0.8 + 0.2 * math.e))
    assert of_change(100) == pytest.approx(math.log(0.8 * math.e + 0.2))
    few = MeasuredMethod("m", {c: factual[c] for c in ("n0", "s0")}, rows, {})
    change = MeasuredChange(
        Counterfactual(SMOKING, "smoker", VolumeFile("n0", Path("x"), None)),
        "smoker",
        {},
        measured("n0", 5),
        {},
    )
    assert math.isnan(divergence(few, SMOKING, change))


def test_the_bootstrap_draws_cases_and_not_volumes() -> None:
    """Many equal volumes of a case are no more evidence than one."""
    bootstrap = CaseBootstrap(400, 0)
    values = np.array([0.0, 1.0, 2.0, 3.0])
    cases = list("abcd")
    _, low, high = bootstrap.mean(cases, values)
    _, same_low, same_high = bootstrap.mean(cases * 9, np.tile(values, 9))
    assert low == pytest.approx(same_low) and high == pytest.approx(same_high)
    assert all(map(math.isnan, bootstrap.mean(["a", "a"], np.array([0.0, 1.0]))[1:]))


def test_a_regression_map_finds_an_effect_where_it_is_and_has_not_seen_the_case() -> None:
    labels = np.zeros((20, 16, 20), np.uint8)
    labels[2:9, 2:14, 2:18], labels[11:18, 2:14, 2:18] = 1, 2
    cells = LungCells.from_labels(labels, (1, 2))
    assert cells is not None and LungCells.from_labels(labels * (labels == 1), (1, 2)) is None
    lower = (labels > 0) & (np.arange(20) < 10)[None, None]
    rng = np.random.default_rng(0)
    means, rows = {}, {}
    for i in range(30):
        smokes, age = i % 2, 40 + i
        hu = np.full(labels.shape, -850.0) + rng.normal(0, 5, labels.shape)
        hu[lower] += 40 * smokes
        hu[labels > 0] += age
        means[str(i)] = cells.means(hu)
        rows[str(i)] = {SMOKING: "Current" if smokes else "Never", AGE: str(age)}
    model = RegressionMap.from_scans(means, rows, 0)
    spread = cells.spread(model.change("0", rows["0"], SMOKING, "Current"))
    assert spread[(labels > 0) & (np.arange(20) < 8)[None, None]].mean() == pytest.approx(40, abs=2)
    assert abs(spread[(labels > 0) & (np.arange(20) > 12)[None, None]].mean()) < 2
    assert (spread[labels == 0] == 0).all()
    older = cells.spread(model.change("0", rows["0"], AGE, "50"))
    assert older[labels > 0].mean() == pytest.approx(10, abs=2)
    held_out = [i for i, fold in model.unseen.items() if fold == model.unseen["0"]]
    strange = {**means, **{i: means[i] + 1000 for i in held_out}}
    again = RegressionMap.from_scans(strange, rows, 0)
    same = again.change("0", rows["0"], SMOKING, "Current")
    assert np.allclose(same, model.change("0", rows["0"], SMOKING, "Current"))
    assert means["0"].shape == (2 * np.prod(CELLS),)


# --- bad input


def test_results_that_cannot_be_judged_are_refused(cohort: Path, tmp_path: Path) -> None:
    truth = write_results(cohort, tmp_path / "truth", truth_added, "truth", edited=True)
    no_changes = evaluate(cohort, truth, tmp_path / "out", "--counterfactuals", cohort)
    refused(no_changes, "--counterfactuals", "holds no changed volumes", "--vary")
    scans = find_set("--real", str(cohort), split="train")
    with pytest.raises(Exception, match="edited scans of cases that are not among"):
        read_counterfactuals("--synthetic", truth, scans)
    text = (truth / "metrics.csv").read_text()
    (truth / "metrics.csv").write_text(text.replace("0.5", "half", 1))
    refused(evaluate(cohort, truth, tmp_path / "out"), "metrics.csv", "'half'", "must be a number")
    (truth / "metrics.csv").write_text(text)
    next((truth / "volumes").glob("*Current*")).unlink()
    refused(evaluate(cohort, truth, tmp_path / "out"), "which is not there")

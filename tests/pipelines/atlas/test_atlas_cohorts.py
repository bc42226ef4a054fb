"""Atlases of patients other than those of training."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.phantom.write import make_phantom_cohort
from options.atlas_options import AtlasCommand
from options.phantom_options import PhantomOptions
from pipelines.atlas import generators, progress
from pipelines.atlas.measure import CaseCounterfactuals, KeepFn
from pipelines.atlas.statistics.cautions import refit_cautions
from pipelines.atlas.statistics.population import FRAME
from tests.atlas_run import discover, record, table
from tests.commands import TrainedRun, files, refused
from util.files import read_json, write_csv


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other patients with the same names."""
    root = tmp_path_factory.mktemp("others") / "cohort"
    return make_phantom_cohort(
        PhantomOptions(
            OUT=str(root), cases=4, size=(24, 24, 16), seed=77, test_cases=2, val_cases=0
        )
    )


def test_other_patients_are_not_taken_for_those_of_training(
    trained_run: TrainedRun, others: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (tmp_path / ".out.previous").mkdir()  # left by a program that was killed
    for more in ((), ("--overwrite",)):
        done = discover(
            trained_run, out, "--columns", "SEX", "--how_many", "1", *more, cohort=others
        )
        assert done.code == 0, done.text
    warned = table(out, "cautions")
    texts = warned.loc[warned["kind"] == "other cohort", "text"].tolist()
    assert len(texts) == 1 and str(trained_run.cohort) in texts[0]
    assert not (warned["kind"] == "seen").any() and set(table(out, "cases")["seen"]) == {"no"}
    assert (
        record(out)["counts"]["training"] > 4
    )  # the run's own training cases, of which the others have too few
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_training_scans_under_other_names_count_as_seen(
    trained_run: TrainedRun, others: Path, tmp_path: Path
) -> None:
    cohort = Path(shutil.copytree(others, tmp_path / "cohort"))
    test = read_json(cohort / "splits.json")["test"][0]
    trained = next(
        case for case in read_json(trained_run.folder / "splits.json")["train"] if case != test
    )
    for folder in ("img", "gtlung"):
        source = trained_run.cohort / folder / f"{trained}.nii.gz"
        shutil.copy(source, cohort / folder / f"{test}.nii.gz")
    done = discover(
        trained_run, tmp_path / "out", "--columns", "SEX", "--volumes", "0", cohort=cohort
    )
    assert done.code == 0, done.text
    cases = table(tmp_path / "out", "cases").set_index("case")
    assert cases.index[cases["seen"] == "yes"].tolist() == [test]
    warned = table(tmp_path / "out", "cautions").set_index("kind")["text"]
    assert "scans of 1 of 4 patients" in warned["seen"]
    assert (
        f"but for 1 case whose scan or mask is in the training ({test})" in warned["other cohort"]
    )


class Killed(BaseException):
    """Stands for SIGKILL within one process: no handler of errors sees it."""


def test_a_killed_atlas_resumes_and_is_the_same(
    trained_run: TrainedRun, others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--columns", "SEX,AGE", "--split", "all", "--volumes", "3")
    assert discover(trained_run, tmp_path / "whole", *words, cohort=others).code == 0
    measure = CaseCounterfactuals.measure
    measured: list[str] = []

    def killed(case: CaseCounterfactuals, keep: KeepFn | None = None) -> None:
        measure(case, keep)  # its volumes are written, and its rows are lost
        measured.append(case.case)
        if len(measured) == 3:
            raise Killed

    monkeypatch.setattr(progress, "SAVE_EVERY_S", 0)
    monkeypatch.setattr(CaseCounterfactuals, "measure", killed)
    out = tmp_path / "out"
    with pytest.raises(Killed):
        discover(trained_run, out, *words, cohort=others)
    kept = tmp_path / ".out.progress"
    assert len(read_json(kept / "state.json")["cases"]) == 2 and not out.exists()
    done = discover(trained_run, out, *words, cohort=others)
    assert done.code == 0 and "Used from the interrupted atlas: 2 cases" in done.text
    assert len(measured) == 5 and measured[3] == measured[2] and not kept.exists()
    for name in ("effects_by_case", "cases", "arms", "volumes", "doses", "controls", "maps"):
        assert (out / f"{name}.csv").read_text() == (tmp_path / "whole" / f"{name}.csv").read_text()
    assert files(out / "volumes") == files(tmp_path / "whole" / "volumes")
    assert (out / "maps.npz").read_bytes() == (tmp_path / "whole" / "maps.npz").read_bytes()


def test_cases_of_other_settings_or_damaged_ones_are_not_used(tmp_path: Path) -> None:
    first = progress.AtlasProgress(tmp_path / "kept", "a")
    generated = first.load()
    generated.cases.append({"case": "x"})
    generated.measurements.maps.add(("effect", "A", ""), np.ones(FRAME, np.float32))
    generated.measurements.effects.append({"case": "x", "effect": float("nan")})
    first.save(generated, always=True)
    assert "NaN" not in (tmp_path / "kept" / "state.json").read_text()
    again = progress.AtlasProgress(tmp_path / "kept", "a").load()
    assert np.isnan(again.measurements.effects[0]["effect"])
    assert again.cases == [{"case": "x"}]
    assert again.measurements.maps.averages["effect", "A", ""].cases == 1
    assert not progress.AtlasProgress(tmp_path / "kept", "b").load().cases
    first.save(generated, always=True)
    (tmp_path / "kept" / "maps_1.npz").write_bytes(b"PK broken")
    assert not progress.AtlasProgress(tmp_path / "kept", "a").load().cases


def test_folds_are_of_the_runs_own_patients(
    trained_run: TrainedRun, others: Path, tmp_path: Path
) -> None:
    done = discover(trained_run, tmp_path / "out", "--fold", "1/2", cohort=others)
    refused(done, "--fold is '1/2'", "is for the run's own cohort")


def test_refits_of_folds_are_judged_by_their_steps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"seed": 1, "permuted": [], "run_step": 9, "steps": 9, "fold": ""}
    records = [
        {**common, "name": "resampled_001", "kind": "resampled"},
        {**common, "name": "fold_1_of_2", "kind": "fold", "fold": "1/2", "steps": 4},
        {**common, "name": "fold_1_of_5", "kind": "fold", "fold": "1/5"},  # of other folds
    ]
    network = SimpleNamespace(model=SimpleNamespace(noise_channels=0))
    monkeypatch.setattr(generators, "finished_refits", lambda _: records)
    monkeypatch.setattr(generators, "load_refit", lambda *_: network)
    run: Any = SimpleNamespace(folder=Path("run"), generator=network)
    study: Any = SimpleNamespace(folds=["1/2"])
    networks = generators.AtlasNetworks.load(AtlasCommand(), run, study)
    assert [refit["name"] for refit in networks.refits] == ["resampled_001", "fold_1_of_2"]
    assert set(networks.by_fold) == {"1/2"} and networks.by_fold["1/2"].run == "fold_1_of_2"
    (other,) = [c for c in refit_cautions(networks.refits, 9) if c.kind == "other steps"]
    assert other.forbids and "for 4 steps" in other.text


def test_words_of_the_texts_are_studied(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    """Reports without a column that could be studied, beside cases worded by the template."""
    splits = read_json(cohort_copy / "splits.json")
    rows = [
        {
            "File Name": case,
            "Prompt": f"{'No nodule' if number % 2 else 'Nodule'} in the left lung.",
        }
        for number, case in enumerate(splits["train"] + splits["test"])
    ]
    write_csv(cohort_copy / "prompts.csv", ("File Name", "Prompt"), rows)
    edit = ("--vary_text", "No nodule=>Nodule=>", "--volumes", "0")
    out = tmp_path / "out"
    done = discover(trained_run, out, *edit, cohort=cohort_copy)
    assert done.code == 0, done.text
    column = "text: No nodule"
    attributes = table(out, "attributes").set_index("column")
    assert attributes.loc[column, "status"] == "studied"
    assert (attributes.drop(column)["status"] == "left out").all()
    assert attributes.loc[column, "counts"] == "No nodule: 4 | Nodule: 5 | (removed): 0"
    arms = table(out, "arms")
    assert set(arms["column"]) == {column} and set(arms["value"]) == {
        "No nodule", "Nodule", "(removed)",
    }  # fmt: skip
    assert len(set(arms["case"])) == 1 and "hold the words 'No nodule'" in done.text
    kinds = table(out, "cautions").set_index("kind")["text"]
    assert "change of words" in kinds["wording"]
    reasons = set(table(out, "real")["reason"].dropna())
    assert any("(removed)" in reason or "few" in reason for reason in reasons)
    page = (out / "index.html").read_text()
    assert "text: No nodule Nodule against No nodule" in page
    refused(
        discover(trained_run, tmp_path / "no", "--vary_text", "emphysema=>", cohort=cohort_copy),
        "do not hold the words 'emphysema'",
    )

"""Scans of another scanner, voxel size or segmentation than the training's are recognised."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.phantom.write import make_phantom_cohort
from data.volumes import load_volume, write_like
from options.anomaly_options import AnomalyCommand
from options.parser import parse
from options.phantom_options import PhantomOptions
from pipelines.anomaly import run as anomaly
from pipelines.anomaly.domain_shift import DomainShift, prediction_interval
from tests.commands import TrainedRun

SCAN = {
    "smallest_side_mm": 1.0,
    "largest_side_mm": 2.0,
    "lung_ml": 4000.0,
    "mean_hu": -850.0,
    "detail_sd_hu": 60.0,
}


def scans_like(count: int, seed: int) -> list[dict[str, float]]:
    """Scans of one world: lungs differ by 20 %, density by 25 HU, detail by 10 %."""
    rng = np.random.default_rng(seed)
    return [
        {
            **SCAN,
            "lung_ml": 4000 * float(np.exp(rng.normal(0, 0.2))),
            "mean_hu": -850 + float(rng.normal(0, 25)),
            "detail_sd_hu": 60 * float(np.exp(rng.normal(0, 0.1))),
        }
        for _ in range(count)
    ]


def shift_of(*scans: dict[str, float], reference: int = 20) -> DomainShift:
    searched = {f"s{number}": scan for number, scan in enumerate(scans)}
    return DomainShift.from_properties(searched, scans_like(reference, 1), "training scans")


def test_scans_of_the_same_world_are_seldom_named() -> None:
    alarms = 0
    for seed in range(300):
        searched = {"s": scans_like(1, seed)[0]}
        reference = scans_like(20, 1000 + seed)
        alarms += len(DomainShift.from_properties(searched, reference, "training scans").cases)
    assert alarms <= 5  # 3 properties that vary, at 0.1 % each: 0.9 expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mean_hu": -700.0}, "mean of the lungs -700 HU (expected -"),
        ({"largest_side_mm": 5.0}, "largest voxel side 5 mm (expected 1."),
        ({"detail_sd_hu": 20.0}, "SD of the detail in the lungs 20 HU"),
        ({"lung_ml": 300.0}, "lung volume in the mask 300 ml"),
    ],
)
def test_what_differs_is_named(change: dict[str, float], words: str) -> None:
    shift = shift_of(SCAN, {**SCAN, **change}, {})
    assert shift.cases == ["s1"]
    assert shift.sentence() == "1 of 3 scans is unlike the 20 training scans"
    assert words in shift.warning() and "not disease" in shift.warning()


def test_too_few_scans_to_compare_with_name_nothing() -> None:
    shift = shift_of({**SCAN, "mean_hu": 0.0}, reference=3)
    assert not shift.limits and not shift.warning() and not shift.cases


def test_the_interval_is_that_of_a_further_scan() -> None:
    low, high = prediction_interval("mean_hu", [-870.0, -850.0, -830.0, -850.0])
    # t(3; 0.9995) = 12.924, SD 16.33, sqrt(1 + 1/4) = 1.118
    assert (low, high) == pytest.approx((-850 - 235.96, -850 + 235.96), abs=0.1)
    assert prediction_interval("lung_ml", [4000.0] * 20)[1] == pytest.approx(5960, rel=0.01)


# --- the command


def search(run: TrainedRun, cohort: Path, out: Path, *words: str) -> str:
    """Search all scans of a cohort; return the text of the page."""
    flags = ["--dataroot", str(cohort), *run.flags(), "--out", str(out), "--samples", "2"]
    page = anomaly.find_anomalies(parse(AnomalyCommand, "", [*flags, "--split", "all", *words]))
    return page.read_text()


@pytest.fixture(scope="module")
def other_patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms of other patients, drawn as those of the run."""
    return make_phantom_cohort(
        PhantomOptions(
            OUT=str(tmp_path_factory.mktemp("others") / "cohort"),
            cases=3,
            size=(24, 24, 16),
            seed=9,
            test_cases=1,
            val_cases=0,
            patient_sd=0.0,
        )
    )


def test_scans_of_another_world_are_warned_of_on_page_and_terminal(
    trained_run: TrainedRun,
    other_patients: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert "unlike" not in search(trained_run, other_patients, tmp_path / "same")
    assert "unlike" not in caplog.text
    shifted = Path(shutil.copytree(other_patients, tmp_path / "shifted"))
    for path in (shifted / "img").iterdir():
        hu = load_volume(path).array
        lungs = np.isin(load_volume(shifted / "gtlung" / path.name).array, (1, 2))
        write_like(path, np.where(lungs, hu + 200, hu), path, np.int16)
    for name, words in (("own", ()), ("clean", ("--clean", str(shifted)))):
        caplog.clear()
        text = search(trained_run, shifted, tmp_path / name, *words)
        headline = text[text.index('class="headline"') :].partition("</p>")[0]
        assert "3 of 3 scans are unlike the 9 training scans of the run. A strong" in headline
        assert "mean of the lungs" in text and "not disease" in text
        assert text.count(">unlike the run's scans<") == 3
        assert "3 of 3 scans are unlike" in caplog.text


def test_without_the_training_scans_the_calibration_scans_stand_in(
    run_copy: TrainedRun, other_patients: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run_copy.folder / "options.json"
    path.write_text(path.read_text().replace(str(run_copy.cohort), str(tmp_path / "gone")))
    search(run_copy, other_patients, tmp_path / "out", "--clean", str(other_patients))
    assert "There are 3 scans to compare with, fewer than 4" in caplog.text

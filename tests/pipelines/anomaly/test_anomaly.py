"""Anomalies: planted ones are detected, false alarms are counted, and the page says its limits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from benchmarks.anomaly import nodule_share
from data.volumes import load_volume
from options.anomaly_options import AnomalyCommand
from options.parser import parse
from pipelines.anomaly import run as anomaly
from pipelines.anomaly.findings import (
    FINDING_COLUMNS,
    finding_rows,
    finding_sentence,
    label_regions,
    strongest_sentence,
    top_regions,
)
from pipelines.anomaly.normal_model import (
    Calibration,
    LazyScans,
    ScanComparison,
    conformal_threshold,
)
from tests.commands import TrainedRun, command, refused
from tests.pages import shows_picture_first
from util.cli import UserError
from util.metrics.regions import chest_regions

SHAPE, SPACING = (24, 20, 18), (5.0, 5.0, 6.0)


def scan(seed: int, edge_sd: float = 60.0) -> ScanComparison:
    """A scan that differs from what is expected by little (SD 10 HU), but by much in one slab that
    the generator blurs.
    """
    rng = np.random.default_rng(seed)
    where = np.zeros(SHAPE, bool)
    where[2:-2, 2:-2, 2:-2] = True
    mean = np.full(SHAPE, -850.0, np.float32)
    mean[10:13] = -600
    sd = np.full(SHAPE, 3.0, np.float32)
    spread = np.where(mean > -700, edge_sd, 10.0)
    return ScanComparison(
        f"s{seed}", (mean + 5 + rng.normal(0, spread)).astype(np.float32), mean, sd, where, SPACING
    )


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration.from_scans([scan(k) for k in range(10)], 12.0, 0.1)


def labels() -> NDArray[np.uint8]:
    mask = np.where(scan(0).lungs, 1, 0).astype(np.uint8)
    mask[SHAPE[0] // 2 :][mask[SHAPE[0] // 2 :] == 1] = 2
    return mask


def test_a_planted_nodule_is_the_strongest_region(calibration: Calibration) -> None:
    fresh = scan(99)
    share = np.zeros(SHAPE)
    share[5:7, 8:10, 6:8] = 1
    planted = replace(fresh, real=fresh.real + np.float32(150) * share.astype(np.float32))
    findings = top_regions(
        calibration.deviation_map(planted),
        chest_regions(labels(), SPACING),
        calibration.threshold,
        3,
    )
    assert (
        findings[0].strong
        and findings[0].peak > 0
        and share[findings[0].at] == 1
        and "left lung" in findings[0].place
    )
    assert abs(findings[1].peak) < findings[0].peak / 1.5
    less = replace(fresh, real=fresh.real - np.float32(150) * share.astype(np.float32))
    assert (
        top_regions(calibration.deviation_map(less), {}, calibration.threshold, 1)[0].peak
        < -calibration.threshold
    )


def test_differences_that_are_usual_at_their_place_are_not_strong(calibration: Calibration) -> None:
    """The slab varies six times as much as the rest; its peaks in the map are no higher."""
    maps = [np.abs(calibration.deviation_map(scan(k))) for k in range(50, 54)]
    slab, rest = (
        np.mean([m[where].mean() for m in maps])
        for where in (np.s_[10:13, 3:-3, 3:-3], np.s_[4:9, 3:-3, 3:-3])
    )
    assert 0.6 < slab / rest < 1.6
    assert (
        abs(
            np.mean(
                [calibration.deviation_map(scan(k))[scan(0).lungs].mean() for k in range(50, 54)]
            )
        )
        < 0.2
    )  # the 5 HU are bias


def test_false_alarms_are_held_and_told(calibration: Calibration) -> None:
    alarms = [
        np.abs(calibration.deviation_map(scan(k))).max() > calibration.threshold
        for k in range(100, 130)
    ]
    assert np.mean(alarms) < 0.35
    assert 0 <= calibration.false_alarm_rate() <= 0.3 and set(calibration.highest) == {
        f"s{k}" for k in range(10)
    }
    values = [float(v) for v in range(1, 20)]
    assert [conformal_threshold(values, share) for share in (0.5, 0.1, 0.05, 0.001)] == [
        10,
        18,
        19,
        19,
    ]


def test_a_scan_is_never_judged_by_a_fit_to_itself(calibration: Calibration) -> None:
    assert calibration.held_out["s3"] is not calibration.normal_model
    assert np.array_equal(
        calibration.deviation_map(scan(3)), calibration.held_out["s3"].deviation_map(scan(3))
    )


def test_marked_voxels_are_not_learnt_as_usual() -> None:
    marked = np.zeros(SHAPE, bool)
    marked[5:8, 8:11, 6:9] = True
    ill = [replace(scan(k), real=scan(k).real + np.float32(300) * marked) for k in range(4)]
    annotated = [replace(s, annotated=marked) for s in ill]
    without = Calibration.from_scans(ill, 12.0, 0.1)
    with_marks = Calibration.from_scans(annotated, 12.0, 0.1)
    deviation = with_marks.deviation_map(ill[0])[6, 9, 7]
    assert deviation > 2 * without.deviation_map(ill[0])[6, 9, 7]
    assert deviation > with_marks.threshold


def test_one_scan_is_too_few() -> None:
    with pytest.raises(UserError, match=r"calibrated on 1 scan; it takes two.*--clean"):
        Calibration.from_scans([scan(1)], 12.0, 0.1)


def test_scans_are_read_one_at_a_time() -> None:
    seen: list[int] = []

    def read(key: int) -> ScanComparison:
        seen.append(key)
        return scan(key)

    Calibration.from_scans(LazyScans([1, 2, 3], read), 12.0, 0.1)
    assert seen == [1, 2, 3, 1, 2, 3]


def test_regions_do_not_touch_and_are_described() -> None:
    deviation = np.zeros(SHAPE, np.float32)
    deviation[4:6, 4:6, 4:6], deviation[4, 4, 4] = 5, 9
    deviation[18, 15, 14] = -7
    findings = top_regions(deviation, chest_regions(labels(), SPACING), 8.0, 5)
    assert [(f.at, f.peak, f.strong) for f in findings[:2]] == [
        ((4, 4, 4), 9, True),
        ((18, 15, 14), -7, False),
    ]
    assert findings[0].voxels.sum() == 8 and len(findings) == 2
    assert findings[0].place == "left lung, lower third, central"
    assert findings[1].place.startswith("right lung, upper third")
    drawn = label_regions(findings, SHAPE)
    assert set(np.unique(drawn)) == {0, 1, 2} and (drawn == 2).sum() == 1
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = 10
    marked = drawn == 1
    rows = finding_rows("case", findings, np.where(drawn == 1, 120.0, -40.0), affine, marked)
    assert tuple(rows[0]) == FINDING_COLUMNS and (rows[0]["x_mm"], rows[0]["z_mm"]) == (30.0, 34.0)
    assert (
        rows[0]["volume_ml"] == 1.2 and rows[0]["marked_share"] == 1.0 and rows[1]["strong"] == "no"
    )
    assert (
        "120 HU denser than expected, 1.2 ml, peak +9.0 usual spreads (strong); 100% of it marked"
        in finding_sentence(rows[0])
    )
    assert "less dense" in finding_sentence(
        rows[1]
    ) and "weak: calibration scans show peaks as high" in finding_sentence(rows[1])
    other_way = {**rows[0], "mean_diff_hu": 18.0, "peak_spreads": -4.8}
    words = "18 HU denser than generated but less dense than expected, 1.2 ml, peak −4.8"
    assert words in finding_sentence(other_way)
    low = [{**row, "peak_spreads": -9.5} if row["number"] == 2 else row for row in rows]
    sentence = strongest_sentence(low, 3)
    assert "A strong region in 1 of 3 scans; the highest peak is in region 2 of case" in sentence
    assert "peak −9.5" in sentence and "peak +9.0" in strongest_sentence(rows, 3)
    assert strongest_sentence([], 2) == "A strong region in 0 of 2 scans; no region stands out."


def test_a_ball_has_its_volume() -> None:
    share = nodule_share(scan(1), 20.0, np.random.default_rng(0))
    assert share.sum() * np.prod(SPACING) == pytest.approx(np.pi / 6 * 20**3, rel=0.1)
    assert (share[~scan(1).lungs] == 0).all() and share.max() == 1
    with pytest.raises(UserError, match="does not fit"):
        nodule_share(scan(1), 90.0, np.random.default_rng(0))


# --- the command


def options(run: TrainedRun, out: Path, *words: str) -> AnomalyCommand:
    return parse(
        AnomalyCommand,
        "",
        ["--dataroot", str(run.cohort), *run.flags(), "--out", str(out), "--samples", "2", *words],
    )


@pytest.fixture(scope="module")
def looked(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with marks on one test case."""
    root = tmp_path_factory.mktemp("unusual")
    marks = root / "marks"
    marks.mkdir()
    first = min((trained_run.cohort / "gtlung").iterdir())
    for path in (trained_run.cohort / "gtlung").iterdir():
        image = nib.load(path)
        array = np.zeros(image.shape, np.uint8)
        array[6:9, 10:13, 6:9] = 3 if path != first else 0
        nib.save(nib.Nifti1Image(array, image.affine), marks / path.name)
    anomaly.find_anomalies(options(trained_run, root / "out", "--annotations", str(marks)))
    return root / "out"


def test_what_is_written(looked: Path, trained_run: TrainedRun) -> None:
    table = pd.read_csv(looked / "findings.csv")
    assert list(table.columns) == list(FINDING_COLUMNS) and set(table.groupby("case").size()) == {3}
    assert len(pd.read_csv(looked / "calibration.csv")) == 9
    case = table["case"].iloc[0]
    mask = load_volume(trained_run.cohort / "gtlung" / f"{case}.nii.gz")
    for kind, dtype in (("unusual", np.float32), ("expected", np.int16), ("regions", np.uint8)):
        volume = load_volume(looked / "volumes" / f"{case}__{kind}.nii.gz")
        assert (
            volume.shape == mask.shape
            and np.allclose(volume.affine, mask.affine)
            and volume.array.dtype == dtype
        )
    drawn = load_volume(looked / "volumes" / f"{case}__regions.nii.gz").array
    assert set(np.unique(drawn)) == {0, 1, 2, 3} and np.isin(mask.array[drawn > 0], (1, 2)).all()
    text = (looked / "index.html").read_text()
    assert (
        "makes no diagnosis" in text
        and "A usual spread is" in text
        and "Calibrated on 9 training scans" in text
        and "too few to know this rate" in text
    )
    assert text.count(">known findings<") == 2 and "usual spreads" in text


def test_it_goes_on_where_it_was(looked: Path, trained_run: TrainedRun) -> None:
    written_at = {p: p.stat().st_mtime_ns for p in (looked / "compared").rglob("*.npz")}
    assert len(written_at) == 11
    marks = str(looked.parent / "marks")
    anomaly.find_anomalies(options(trained_run, looked, "--annotations", marks, "--regions", "2"))
    assert {p: p.stat().st_mtime_ns for p in written_at} == written_at
    assert set(pd.read_csv(looked / "findings.csv").groupby("case").size()) == {2}
    with pytest.raises(UserError, match=r"other settings \(samples "):
        anomaly.find_anomalies(options(trained_run, looked, "--samples", "3"))


def test_refits_widen_the_spread(
    trained_run: TrainedRun, run_copy: TrainedRun, tmp_path: Path
) -> None:
    """A second run beside the first: both are used; one of another window is refused."""
    shutil.copytree(run_copy.folder, run_copy.checkpoints / "again")
    both = replace(run_copy, name="again")
    loaded = anomaly.open_runs(options(both, tmp_path, "--name", run_copy.name))
    assert [run.folder.name for run in loaded] == ["again", "tiny"]
    path = run_copy.checkpoints / "again" / "options.json"
    path.write_text(path.read_text().replace("-1000.0", "-900.0"))
    with pytest.raises(UserError, match=r"again and tiny differ in --hu_window"):
        anomaly.open_runs(options(both, tmp_path, "--name", run_copy.name))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--annotations", "nowhere"), "--annotations nowhere does not exist"),
        (("--clean", "nowhere"), "nowhere does not exist"),
        (("--name", "nobody"), "there is no run"),
    ],
)
def test_bad_input_writes_nothing(
    trained_run: TrainedRun, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        anomaly.find_anomalies(options(trained_run, tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_marks_on_another_grid_and_masks_without_lungs(
    trained_run: TrainedRun, cohort_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "marks").mkdir()
    case = max((cohort_copy / "gtlung").iterdir(), key=lambda p: p.name)
    nib.save(
        nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), np.eye(4)), tmp_path / "marks" / case.name
    )
    run = replace(trained_run, cohort=cohort_copy)
    with pytest.raises(
        UserError, match=r"--annotations: .*phantom_012\.nii\.gz lies on another grid"
    ):
        anomaly.find_anomalies(
            options(
                run, tmp_path / "out", "--split", "all", "--annotations", str(tmp_path / "marks")
            )
        )
    image = nib.load(case)
    nib.save(
        nib.Nifti1Image(
            np.where(np.asarray(image.dataobj) == 3, 3, 0).astype(np.uint8), image.affine
        ),
        case,
    )
    with pytest.raises(UserError, match=r"holds no lung \(labels \(1, 2\)\)"):
        anomaly.find_anomalies(options(run, tmp_path / "out", "--split", "all"))


def test_the_program_ends_with_one_message(tmp_path: Path) -> None:
    refused(
        command("scripts/find_anomalies.py", "--dataroot", tmp_path, "--out", tmp_path / "o"),
        "--name is not given",
    )


# --- in a browser


def test_outlines_are_drawn(looked: Path, visit: Callable[[Path], Any]) -> None:
    page = shows_picture_first(visit, looked / "index.html")
    first = page.locator(".case").first
    first.locator(".panel[data-state=ready]").nth(4).wait_for()
    painted = first.locator("canvas.lines").evaluate_all(
        "all => all.map(c => c.width > 0 && "
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0))"
    )
    assert [bool(p) for p in painted[:4]] == [True, False, False, True]
    assert "spreads" in page.inner_text(".score .bar")
    first.locator(".score .stage").hover()
    page.keyboard.press("d")  # differences and scores on the scan
    assert page.is_checked("#overlay")
    assert first.locator(".stage.overlaid").count() == 2

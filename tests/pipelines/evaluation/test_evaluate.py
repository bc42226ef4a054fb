"""scripts/evaluate.py and scripts/make_controls.py as a user starts them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from data.fact_store import FactStore
from data.geometry import resample
from data.volumes import load_volume, write_like
from options.control_options import CONTROL_KINDS
from options.evaluate_options import EvaluateOptions
from options.parser import parse
from pipelines.evaluation.inputs import find_sets, read_table_values
from pipelines.evaluation.run import segmented_files
from pipelines.evaluation.volume_measurer import ComparisonGrid, pair_fidelity
from pipelines.evaluation.volume_sets import check_intensities, common_window, find_set, with_masks
from tests.commands import Outcome, TrainedRun, command, refused
from tests.pages import shows_picture_first
from util.cli import UserError

REALCT = Path(__file__).resolve().parents[4] / "shared" / "realct"
FEW = ("--draws", "10", "--slices", "6", "--no-resegment")

Hu = NDArray[np.floating]


def altered(
    cohort: Path, out: Path, change: Callable[[Hu], Hu] = lambda hu: hu, cases: int = 12
) -> Path:
    """The cohort's scans with a change, as a folder of volumes."""
    for path in sorted((cohort / "img").iterdir())[:cases]:
        hu = load_volume(path).array.astype(np.float32)
        write_like(out / path.name, change(hu), path, np.int16)
    return out


def noisy(hu: Hu) -> Hu:
    return hu + np.random.default_rng(int(abs(hu).sum()) % 1000).normal(0, 40, hu.shape)


def run_evaluate(real: Path, synthetic: Path, out: Path, *words: str | Path) -> Outcome:
    return command(
        "scripts/evaluate.py", "--real", real, "--synthetic", synthetic, "--out", out, *FEW, *words
    )


@pytest.fixture(scope="module")
def noisy_set(cohort_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy copies of the cohort's scans."""
    return altered(cohort_dir, tmp_path_factory.mktemp("made"), noisy)


def test_one_volume_is_not_judged_for_two_patients(tmp_path: Path) -> None:
    """Results of versions that gave two cases one file name."""
    (tmp_path / "volumes.csv").write_text(
        "file,case,kind\nvolumes/p_1.nii.gz,p 1,own\nvolumes/p_1.nii.gz,p_1,own\n"
    )
    with pytest.raises(UserError, match="for both 'p 1' and 'p_1'"):
        find_set("--synthetic", str(tmp_path))


@pytest.fixture(scope="module")
def report(cohort_dir: Path, noisy_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with everything in it, of volumes that are copies of the training scans."""
    out = tmp_path_factory.mktemp("report") / "out"
    done = command(
        "scripts/evaluate.py",
        "--real",
        cohort_dir,
        "--synthetic",
        noisy_set,
        "--out",
        out,
        "--train",
        cohort_dir,
        "--draws",
        "10",
        "--slices",
        "6",
        "--column",
        "AGE",
        "--column",
        "DIAGNOSIS",
        "--template",
        "aiib23",
        "--again",
        noisy_set,
        "--shuffled",
        noisy_set,
        "--empty",
        noisy_set,
        "--train_split",
        "all",
    )
    assert done.code == 0, done.text
    assert "The effect of the text is not evaluated. --column 'DIAGNOSIS'" in done.text
    return out


def read_metrics(folder: Path) -> Any:
    return pd.read_csv(folder / "figures.csv").set_index("name")


def test_a_column_that_too_few_scans_show_is_left_out(report: Path) -> None:
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "The effect of the text is not evaluated." in page and "at least two values" in page
    assert "AGE" in " ".join(read_metrics(report).query("group == 'text'").index)


def test_a_report_holds_every_part(report: Path) -> None:
    table = read_metrics(report)
    assert set(table["group"]) == {
        "realism",
        "planes",
        "hu",
        "texture",
        "pairs",
        "diversity",
        "mask",
        "text",
    }
    assert {f.name for f in report.iterdir()} >= {
        "report.html",
        "histogram.svg",
        "texture.svg",
        "figures.csv",
        "volumes.csv",
        "pairs.csv",
        "memorisation.csv",
        "evaluation.json",
        "web",
        "cache",
    }
    assert 30 < table.loc["Mean absolute error (HU), lungs", "value"] < 40  # of noise with SD 40
    assert table.loc["Dice, lungs", "ceiling"] > 0.8
    fid = table.filter(like="2.5D FID", axis=0).iloc[0]
    assert fid["floor"] > 0 and fid["matched"] > 0 and fid["low"] < fid["value"] < fid["high"]
    record = json.loads((report / "evaluation.json").read_text())
    assert (
        "allow no conclusion" in record["warnings"][0]
        and "without learned weights" in record["warnings"][1]
    )
    assert any("sha256" in str(v) for v in record["facts"].values())
    assert record["verdict"].startswith("Called copies of training scans: 12 of 12 volumes. No")


def test_planted_copies_raise_the_alarm(report: Path) -> None:
    with (report / "memorisation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and all(
        row["copy"] == "yes" and row["nearest by detail"] == row["case"] for row in rows
    )
    page = (report / "report.html").read_text()
    assert "copies of a training scan: 12 of 12 volumes" in page
    assert page.count("training scan nearest to it") == 4 and '"badge">copy<' in page


def test_the_report_opens_with_its_verdict_and_a_typical_pair(
    report: Path, cohort_dir: Path, visit: Callable[[Path], Any]
) -> None:
    page = shows_picture_first(visit, report / "report.html")
    page.locator("#pair-01 .panel[data-state=ready]").nth(3).wait_for()
    errors = pd.read_csv(report / "pairs.csv").query("metric == 'mae_hu' and region == 'lungs'")
    case = errors.sort_values("value")["case"].iloc[6]  # of twelve
    assert page.inner_text("#pair-01 h2").startswith(f"{case}: the typical volume")
    titles = page.locator("#pair-01 .title").all_inner_texts()
    wanted = [f"real scan {case}", f"synthetic {case}", "synthetic minus real scan", "mask"]
    assert titles == wanted
    box = page.locator("#pair-01 .stage").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    i, j, k = page.evaluate("Mask2CT.viewers[0].cursor")
    scan = load_volume(cohort_dir / "img" / f"{case}.nii.gz").array
    shown = page.locator("#pair-01 .value").first.inner_text().replace("−", "-")
    assert float(shown.removesuffix(" HU")) == pytest.approx(float(scan[i, j, k]), abs=0.51)
    for image in page.locator("img").all():
        image.scroll_into_view_if_needed()
    page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth > 50)")
    assert page.evaluate("document.images.length") == 2
    headings = page.locator("h2").all_inner_texts()
    assert "Memorisation" in headings and "Texture of the lungs" in headings
    assert headings[-1] == "Networks and their weights"
    assert "sha256" in page.inner_text("#hashes") and "sha256" not in page.inner_text("#realism")
    columns = page.locator("#realism thead th").all_inner_texts()
    assert columns[:3] == ["metric", "value", "baseline"]  # the reading is left out: too few


def test_a_set_against_itself_is_zero_and_training_scans_are_optional(
    cohort_dir: Path, tmp_path: Path
) -> None:
    done = run_evaluate(cohort_dir, cohort_dir / "img", tmp_path / "out")
    assert done.code == 0, done.text
    table = read_metrics(tmp_path / "out")
    zero = table[
        table["group"].isin(["realism", "planes"])
        | table.index.str.contains("minus real|Wasserstein")
    ]
    assert len(zero) > 8 and zero["value"].abs().max() < 1e-6
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Memorisation: <code>--train" in page and "called copies" not in page
    assert "beside its own scan" in page and "training scan nearest" not in page


def test_a_second_start_measures_nothing_again(
    report: Path, cohort_dir: Path, noisy_set: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(report, tmp_path / "out"))
    before = {p.name: p.stat().st_mtime_ns for p in (out / "cache").iterdir()}
    cut = out / "cache" / sorted(before)[0]
    cut.write_bytes(cut.read_bytes()[:100])  # a truncated file is measured again
    done = command(
        "scripts/evaluate.py",
        "--real",
        cohort_dir,
        "--synthetic",
        noisy_set,
        "--out",
        out,
        "--draws",
        "10",
        "--slices",
        "6",
    )
    assert done.code == 0, done.text
    after = {p.name: p.stat().st_mtime_ns for p in (out / "cache").iterdir()}
    assert set(after) == set(before) and sum(after[n] != before[n] for n in before) == 1
    # Without --train nothing is said of copies; the earlier table would be linked as this one's.
    assert (report / "memorisation.csv").is_file() and not (out / "memorisation.csv").exists()
    assert "memorisation.csv" not in (out / "report.html").read_text()


def test_a_changed_volume_is_measured_again(
    report: Path, cohort_dir: Path, noisy_set: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(report, tmp_path / "out"))
    before = {path.name for path in (out / "cache").glob("*.npz")}
    path = sorted(noisy_set.glob("*.nii.gz"))[0]
    original = path.read_bytes()
    image = nib.load(path)
    try:
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(50), image.affine), path)
        words = ("--real", cohort_dir, "--synthetic", noisy_set, "--out", out)
        done = command("scripts/evaluate.py", *words, "--draws", "10", "--slices", "6")
    finally:
        path.write_bytes(original)
    assert done.code == 0, done.text
    added = {path.name for path in (out / "cache").glob("*.npz")} - before
    assert added and len(added) <= 2  # this volume, and its pair with a scan
    assert not read_metrics(out)["value"].equals(read_metrics(report)["value"])


def test_pairs_of_a_changed_mask_are_compared_again(cohort_copy: Path, tmp_path: Path) -> None:
    made = find_set("--synthetic", str(altered(cohort_copy, tmp_path / "made", noisy, cases=1)))
    grid = ComparisonGrid(8.0, (64.0, 64.0, 48.0), (-1000.0, 400.0), 2)

    def errors() -> list[float]:
        rows = pair_fidelity(made, find_set("--real", str(cohort_copy)), grid, tmp_path / "cache")
        return [row["value"] for row in rows if row["metric"] == "mae_hu"]

    body, lungs = errors()
    assert errors() == [body, lungs]
    path = cohort_copy / "gtlung" / made.files[0].path.name
    mask = load_volume(path).array
    mask[mask == 2] = 0  # one lung was corrected
    write_like(path, mask, path, np.uint8)
    assert errors()[1] != lungs


def test_results_of_test_and_controls(trained_run: TrainedRun, tmp_path: Path) -> None:
    assert trained_run.test(tmp_path / "results", "--vary", "AGE=45,80").code == 0
    words: tuple[str | Path, ...] = ("--dataroot", trained_run.cohort, *trained_run.flags())
    done = command("scripts/make_controls.py", tmp_path / "controls", *words)
    assert done.code == 0, done.text
    tables = {
        k: pd.read_csv(tmp_path / "controls" / k / "volumes.csv", keep_default_na=False)
        for k in CONTROL_KINDS
    }
    assert (tables["empty"]["prompt"] == "").all() and len(tables["noise"]) == 2
    results = next((tmp_path / "results").rglob("volumes.csv")).parent
    factual_rows = pd.read_csv(results / "volumes.csv", keep_default_na=False).query(
        "kind == 'own'"
    )
    assert tables["shuffled"]["prompt"].tolist() == factual_rows["prompt"].tolist()[::-1]
    assert tables["noise"]["seed"].tolist() == [1, 1]
    factual = load_volume(results / factual_rows["file"].iloc[0]).array
    renewed = load_volume(tmp_path / "controls" / "noise" / factual_rows["file"].iloc[0]).array
    assert factual.shape == renewed.shape and not np.array_equal(factual, renewed)
    assert len(find_set("--synthetic", str(results)).files) == 2  # factual volumes only
    refused(
        command("scripts/make_controls.py", tmp_path / "controls", *words, "--seed", "5"),
        "other settings",
    )
    refused(
        command("scripts/make_controls.py", tmp_path / "x", *words, "--controls", "random"),
        "--controls is 'random'",
    )


# --- bad input


def test_other_spacing_is_refused_or_matched(cohort_dir: Path, tmp_path: Path) -> None:
    for path in sorted((cohort_dir / "img").iterdir())[:3]:
        image = nib.load(path)
        affine = image.affine @ np.diag([0.5, 0.5, 0.5, 1])
        out = tmp_path / "fine" / path.name
        out.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), out)
    words: tuple[Any, ...] = (cohort_dir, tmp_path / "fine", tmp_path / "out", "--no-pairs")
    # Masks of the cohort do not lie on such volumes: the lungs are found by the segmentation of
    # scans without a mask.
    words = (*words, "--real_masks", tmp_path / "none")
    (tmp_path / "none").mkdir()
    refused(run_evaluate(*words), "--real has voxels of 15 x 11.2 x 18 mm", "--match")
    assert not (tmp_path / "out").exists()
    done = run_evaluate(*words, "--match")
    assert done.code == 0, done.text


def test_other_windows_are_refused_or_matched(cohort_dir: Path, tmp_path: Path) -> None:
    cut = altered(cohort_dir, tmp_path / "cut", lambda hu: np.clip(hu, -1000, -300), 3)
    refused(
        run_evaluate(cohort_dir, cut, tmp_path / "out"),
        "--hu_window -1000,400",
        "one was cut",
        "--match",
    )
    sets = find_set("--real", str(cohort_dir)), find_set("--synthetic", str(cut))
    assert common_window(*sets, (-1000, 400), True)[1] == -300
    unit = altered(cohort_dir, tmp_path / "unit", lambda hu: np.clip(hu / 1000, -1, 1), 3)
    refused(run_evaluate(cohort_dir, unit, tmp_path / "out"), "--synthetic", "is not in HU")


def test_one_raw_scan_is_found_by_its_lungs(cohort_dir: Path, tmp_path: Path) -> None:
    """Every volume is judged, by the rule of training: padding of -2000 is no air."""
    raw = altered(cohort_dir, tmp_path / "raw", cases=6)
    path = raw / "phantom_003.nii.gz"
    image = nib.load(path)
    hu = np.asarray(image.dataobj) + np.int16(1024)
    hu[:1] = hu[-1:] = -2000
    nib.save(nib.Nifti1Image(hu, image.affine), path)
    out = tmp_path / "out"
    refused(run_evaluate(cohort_dir, raw, out), "--synthetic", "phantom_003", "is not in HU")
    refused(run_evaluate(raw, cohort_dir, out), "--real", "phantom_003", "is not in HU")
    assert not out.exists()


def test_a_case_that_differs_is_named_in_the_report(cohort_dir: Path, tmp_path: Path) -> None:
    dense = altered(cohort_dir, tmp_path / "dense", cases=4)
    path = dense / "phantom_002.nii.gz"
    hu = load_volume(path).array
    lungs = load_volume(cohort_dir / "gtlung" / path.name).array
    write_like(path, np.where(np.isin(lungs, (1, 2)), hu + 350.0, hu), path)
    done = run_evaluate(cohort_dir, dense, tmp_path / "out")
    assert done.code == 0, done.text
    warning = "phantom_002.nii.gz: the median of the lungs is"
    assert warning in done.text and warning in (tmp_path / "out" / "report.html").read_text()


def test_generated_volumes_that_are_bad_are_judged_with_a_warning(
    cohort_dir: Path, tmp_path: Path
) -> None:
    bad = altered(cohort_dir, tmp_path / "bad" / "volumes", lambda hu: hu.clip(-1000, 40) / 2, 3)
    rows = [f"volumes/{path.name},{path.name[:-7]},own" for path in sorted(bad.iterdir())]
    table = bad.parent / "volumes.csv"
    table.write_text("\n".join(["file,case,kind", *rows]))
    store = FactStore(None)
    volumes = with_masks(find_set("--synthetic", str(bad.parent)), find_set("", str(cohort_dir)))
    assert len(check_intensities(volumes, store)) >= 3
    table.write_text(table.read_text().replace("volumes/", "../bad/volumes/", 1))
    assert len(find_set("--synthetic", str(bad.parent)).files) == 3  # still inside
    for name in ("../../etc/passwd", str(cohort_dir / "img" / "phantom_001.nii.gz"), "/dev/zero"):
        table.write_text(f"file,case,kind\n{name},a,own\n")
        with pytest.raises(UserError, match="does not lie in"):
            find_set("--synthetic", str(bad.parent))


def test_segmented_lungs_belong_to_the_whole_name_of_a_case(tmp_path: Path) -> None:
    """A name may be the beginning of another one, as those of DICOM series are."""
    for name in ("1.2.nii.gz", "1.2.3.nii.gz", "[a].nii.gz"):
        (tmp_path / name).touch()
    sets = SimpleNamespace(segmented=str(tmp_path), segmented_real=str(tmp_path))
    plan: Any = SimpleNamespace(
        options=SimpleNamespace(sets=sets),
        sets={
            "synthetic": SimpleNamespace(cases=["1.2", "[a]"]),
            "real": SimpleNamespace(cases=[]),
        },
    )
    found = segmented_files(plan)["synthetic"]
    assert {case: found[case].name for case in ("1.2", "[a]")} == {
        "1.2": "1.2.nii.gz",
        "[a]": "[a].nii.gz",
    }
    plan.sets["real"].cases.append("1")
    with pytest.raises(UserError, match=r"--segmented_real: .* holds no mask of 1\."):
        segmented_files(plan)


def test_the_patients_of_training_scans_are_known(cohort_dir: Path, tmp_path: Path) -> None:
    """By the table of --train; a scan without a patient is a patient."""
    bare, train = tmp_path / "bare", tmp_path / "train"
    for folder in (bare, train):
        altered(cohort_dir, folder / "img", cases=3)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (train / "img").iterdir())
    lines = ["File Name,P", f"{names[0]},1", f"{names[1]},", f"{names[2]},"]
    (train / "clinical.csv").write_text("\n".join(lines))
    words = ["--real", str(bare), "--synthetic", str(bare), "--out", str(tmp_path / "out")]

    def patients(*more: str) -> dict[str, str]:
        options = parse(EvaluateOptions, "", [*words, *more])
        return read_table_values(options, find_sets(options)).patients

    known = patients("--train", str(train), "--patient_column", "P")
    assert known == {names[0]: "1", names[1]: names[1], names[2]: names[2]}
    assert patients("--train", str(train)) == {}
    with pytest.raises(UserError, match="--patient_column P needs a clinical"):
        patients("--patient_column", "P")
    with pytest.raises(UserError, match="no column 'Q'"):
        patients("--train", str(train), "--patient_column", "Q")


def test_bad_sets_are_refused(cohort_dir: Path, noisy_set: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    one = altered(cohort_dir, tmp_path / "one", cases=1)
    out = tmp_path / "out"
    refused(run_evaluate(cohort_dir, tmp_path / "absent", out), "--synthetic", "does not exist")
    refused(
        run_evaluate(cohort_dir, tmp_path / "empty", out), "holds no volumes; it holds: nothing"
    )
    refused(run_evaluate(cohort_dir, one, out), "--synthetic", "holds 1 volume", "at least two")
    refused(run_evaluate(cohort_dir, noisy_set, out, "--train", one), "--train", "at least two")
    refused(
        run_evaluate(cohort_dir, noisy_set, out, "--extractor", "inception"), "needs its weights"
    )
    refused(run_evaluate(noisy_set, noisy_set, out, "--real_split", "test"), "no splits.json")
    refused(run_evaluate(cohort_dir, noisy_set, tmp_path), "holds no evaluation.json")
    refused(
        command("scripts/evaluate.py", "--real", cohort_dir, "--synthetic", noisy_set),
        "--out is not given",
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "file,case,kind\nvolumes/a.nii.gz,Müller,own\n".encode("latin-1"),
            "line 2 holds the byte",
        ),
        (b"file,case,kind\na.nii.gz," + b"x" * 200_000 + b",own\n", "row 2, cannot be read"),
        (b"file,case,kind\na.nii.gz,a,own,more\n", "row 2, has 4 cells"),
        (b"file,case\n", "lacks the columns kind"),
        (b"", "lacks the columns file, case, kind"),
        (b"file,case,kind\n/dev/zero,a,own\n", "'/dev/zero', which does not lie in"),
        (b"file,case,kind\n../../a.nii.gz,a,own\n", "does not lie in"),
        (b"file,case,kind\nvolumes/a.nii.gz,a,own\n", "that are not there"),
    ],
)
def test_a_table_of_results_that_cannot_be_read_is_named(
    content: bytes, message: str, cohort_dir: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    (results / "volumes").mkdir(parents=True)
    (results / "volumes.csv").write_bytes(content)
    out = tmp_path / "out"
    refused(run_evaluate(cohort_dir, results, out), "volumes.csv", message)
    assert not out.exists()
    if message != "that are not there":
        refused(
            command("scripts/make_picture.py", results, "--out", tmp_path / "a.png"),
            "volumes.csv",
        )


def test_bad_columns_and_names_are_refused(
    cohort_dir: Path, noisy_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused(
        run_evaluate(cohort_dir, noisy_set, out, "--column", "HEIGHT"), "no column 'HEIGHT'", "SEX"
    )
    refused(run_evaluate(noisy_set, noisy_set, out, "--column", "SEX"), "clinical.csv")
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for path in noisy_set.iterdir():
        shutil.copy(path, renamed / f"other_{path.name}")
    refused(
        run_evaluate(cohort_dir, renamed, out, "--column", "AGE"),
        "no case in common",
        "other_phantom_001",
    )
    refused(
        run_evaluate(cohort_dir, noisy_set, out, "--empty", renamed), "--empty", "no case in common"
    )
    assert not out.exists()


def test_pairs_that_are_not_on_one_grid_are_refused(cohort_dir: Path, tmp_path: Path) -> None:
    for path in sorted((cohort_dir / "img").iterdir())[:3]:
        image = nib.load(path)
        out = tmp_path / "cut" / path.name
        out.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), out)
    (tmp_path / "none").mkdir()
    words: tuple[Any, ...] = (
        cohort_dir,
        tmp_path / "cut",
        tmp_path / "out",
        "--real_masks",
        tmp_path / "none",
    )
    refused(run_evaluate(*words), "not on one grid", "--no-pairs")


@pytest.mark.skipif(not REALCT.is_dir(), reason="no real scans beside the project")
def test_real_scans_allow_no_conclusion(tmp_path: Path) -> None:
    real = tmp_path / "real"
    for kind, order in (("img", 1), ("gtlung", 0)):  # coarser, for time
        (real / kind).mkdir(parents=True)
        for path in (REALCT / kind).glob("*.nii.gz"):
            coarse = resample(load_volume(path), spacing=(6, 6, 6), order=order)
            nib.save(
                nib.Nifti1Image(coarse.array.astype(np.int16), coarse.affine),
                real / kind / path.name,
            )
    noisy_set = altered(real, tmp_path / "made", noisy, 2)
    done = run_evaluate(real, noisy_set, tmp_path / "out", "--train", real)
    assert done.code == 0, done.text
    page = (tmp_path / "out" / "report.html").read_text()
    assert (
        "2 real scans and 2 synthetic volumes allow no conclusion" in page
        and "Too few real scans" in page
    )

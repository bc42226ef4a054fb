"""MR volumes as a user works with them: training, test, page and atlas, without a word of HU."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mask2ct
from tests.commands import TrainedRun, command, refused, train
from tests.mr_cohort import BRAIN, LESION, write_mr_cohort
from util.cli import UserError
from util.files import read_csv

CHEST = re.compile(r"\bHU\b|_hu\b|[Ll]ungs?\b|airway|Hounsfield|denser|less dense|\bCT\b")


@pytest.fixture(scope="module")
def mr_run(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    folder = tmp_path_factory.mktemp("mr_run")
    cohort = write_mr_cohort(folder / "heads", 10)
    flags = ("--modality", "mr", "--template", "auto", "--val_effect", "SEX=F,M")
    done = train(cohort, folder / "checkpoints", *flags, name="mr")
    assert done.code == 0, done.text
    return TrainedRun(folder / "checkpoints", "mr", cohort)


def seen_words(page: Path) -> list[str]:
    """What a reader sees that is of a chest CT, but for names of flags."""
    text = re.sub(r"<script.*?</script>", " ", page.read_text(), flags=re.DOTALL)
    text = re.sub(r'class="option-groups".*?</details>', " ", text, flags=re.DOTALL)
    seen = re.findall(r'(?:alt|title|placeholder|aria-label)="([^"]*)"', text)
    seen += re.sub(r"<[^>]+>", "\n", text).split("\n")
    return [line.strip() for line in seen if CHEST.search(line)]


def test_the_run_keeps_how_intensities_are_scaled(mr_run: TrainedRun) -> None:
    data = json.loads((mr_run.folder / "options.json").read_text())["data"]
    assert data["modality"] == "mr" and data["percentiles"] == [0.5, 99.5]
    assert data["hu_window"] == [0, 1000] and data["lung_labels"] == [LESION, BRAIN]
    log = [json.loads(line) for line in (mr_run.folder / "log.jsonl").read_text().splitlines()]
    names = {name for record in log for name in record}
    assert {"val_mae", "val_effect"} <= names and not any(CHEST.search(name) for name in names)
    assert seen_words(mr_run.folder / "web" / "index.html") == []
    assert "a.u." in (mr_run.folder / "web" / "index.html").read_text()


def test_the_library_knows_unit_and_window(mr_run: TrainedRun, tmp_path: Path) -> None:
    run = mask2ct.load(mr_run.folder)
    mask = next((mr_run.cohort / "gtlung").iterdir())
    pair = run.compare(mask, "SEX is F.", "SEX is M.")
    assert pair.a.unit == "a.u." and pair.a.window == (0, 1000) and "a.u." in repr(pair.a)
    assert not any(CHEST.search(name) for name in [*pair.effects, *pair.effects["region"]])
    assert "mean_diff" in pair.effects and "label_1" in set(pair.effects["region"])
    saved = nib.load(pair.b.save(tmp_path / "b.nii.gz"))
    assert (saved.header["cal_min"], saved.header["cal_max"]) == (0, 1000)
    with pytest.raises(UserError, match="a CT series holds HU"):
        pair.a.save_dicom(tmp_path / "series")


@pytest.fixture(scope="module")
def results(mr_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the run on three of its cases."""
    folder = tmp_path_factory.mktemp("results")
    words = ("--vary", "SEX=F,M", "--page", "--split", "all", "--how_many", "3")
    done = mr_run.test(folder, *words)
    assert done.code == 0, done.text
    return folder / "mr" / "all_latest"


def test_results_have_the_unit_and_the_labels(results: Path) -> None:
    folder = results
    effects = read_csv(folder / "effects.csv")
    assert {row["region"] for row in effects} == {
        "labelled", "outside", "label_0", "label_1", "label_5",
    }  # fmt: skip
    assert "mean_diff" in effects[0] and not any(CHEST.search(name) for name in effects[0])
    assert not any("below" in name or "above" in name for name in effects[0])
    metrics = {row["metric"] for row in read_csv(folder / "metrics.csv")}
    assert {"mean_intensity", "mae", "ssim"} <= metrics
    assert not any(CHEST.search(name) or "share" in name for name in metrics)
    assert seen_words(folder / "index.html") == []
    page = (folder / "index.html").read_text()
    changes = [float(row["mean_diff"]) for row in effects if row["region"] == "labelled"]
    direction = "brighter" if sum(changes) > 0 else "darker"
    assert f"in the labelled region; {direction} in" in page
    assert "&quot;unit&quot;: &quot;a.u.&quot;" in page
    name = next(row["file"] for row in read_csv(folder / "volumes.csv") if row["kind"] == "own")
    volume = np.asarray(nib.load(folder / name).dataobj)  # type: ignore[attr-defined]
    assert volume.min() >= 0 and volume.max() <= 1000 and volume.std() > 10


def test_pictures_and_evaluation_know_the_scale_of_the_run(
    mr_run: TrainedRun, results: Path, tmp_path: Path
) -> None:
    where = (results, "--dataroot", mr_run.cohort, "--out", tmp_path / "pictures")
    done = command("scripts/make_pictures.py", *where, "--formats", "svg")
    assert done.code == 0, done.text
    (figure,) = (tmp_path / "pictures").glob("*.svg")
    assert not CHEST.search(figure.read_text()) and "a.u." in figure.read_text()

    out = tmp_path / "evaluation"
    words = ("--real", mr_run.cohort, "--synthetic", results, "--out", out)
    small = ("--draws", "10", "--slices", "2", "--spacing", "4")
    done = command("scripts/evaluate.py", *words, *small)
    assert done.code == 0, done.text
    assert seen_words(out / "report.html") == []
    for table in ("figures.csv", "pairs.csv", "volumes.csv", "counterfactuals.csv"):
        assert not CHEST.search((out / table).read_text().replace(",", " ")), table
    names = {row["name"] for row in read_csv(out / "figures.csv")}
    assert "Mean intensity of the labelled region (a.u.), synthetic minus real" in names
    assert not any("Share" in name for name in names)
    errors = [float(r["value"]) for r in read_csv(out / "pairs.csv") if r["metric"] == "mae"]
    assert len(errors) == 6 and 0 < max(errors) < 1000  # in a.u., not in the scanner's units
    refused(
        command("scripts/evaluate.py", *words, "--modality", "ct"),
        "--modality is ct, but --synthetic was generated by a run with --modality mr",
    )


def test_runs_are_compared_in_their_unit(mr_run: TrainedRun, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("mr", "mr2", "ct"):
        shutil.copytree(mr_run.folder, runs / name)
    options = runs / "ct" / "options.json"
    options.write_text(options.read_text().replace('"modality": "mr"', '"modality": "ct"'))
    words = ("--checkpoints_dir", runs, "--dataroot", mr_run.cohort, "--how_many", "1")
    command_words = ("scripts/compare_models.py", tmp_path / "out", *words, "--run", "mr")
    refused(command(*command_words, "--run", "ct"), "several modalities: mr (mr), ct (ct)")
    vary = ("--vary", "SEX=F,M", "--noises", "2")
    done = command(*command_words, "--run", "mr2", *vary)
    assert done.code == 0, done.text
    assert seen_words(tmp_path / "out" / "index.html") == []
    header = (tmp_path / "out" / "models.csv").read_text().split("\n", 1)[0]
    assert "labelled: mae" in header and "SEX: F to M, a.u." in header
    assert not CHEST.search(header.replace(",", " "))


def test_an_atlas_over_labels(mr_run: TrainedRun, tmp_path: Path) -> None:
    out = tmp_path / "atlas"
    flags = ("--dataroot", str(mr_run.cohort), *mr_run.flags(), "--out", str(out))
    done = command("scripts/build_atlas.py", *flags, "--n_noise", "1", "--columns", "SEX")
    assert done.code == 0, done.text
    tests = read_csv(out / "tests.csv")
    assert {row["region"] for row in tests if row["tested"] == "yes"} == {
        "labelled", "label_1", "label_5",
    }  # fmt: skip
    assert {row["outcome"] for row in tests} == {
        "mean", "detail_sd", "percentile_5", "percentile_95", "percentile_99.5",
    }  # fmt: skip
    assert {row["zone"] for row in read_csv(out / "pairs.csv")} == {"label 1", "label 5"}
    for page in (out / "index.html", *sorted((out / "cases").glob("*.html"))):
        assert seen_words(page) == [], page
    for table in out.glob("*.csv"):
        header = table.read_text().split("\n", 1)[0]
        assert not CHEST.search(header.replace(",", " ")), (table, header)
    assert not CHEST.search((out / "methods.txt").read_text())


def test_commands_for_chests_refuse(mr_run: TrainedRun, tmp_path: Path) -> None:
    flags = ("--dataroot", str(mr_run.cohort), "--modality", "mr", "--out", str(tmp_path / "out"))
    done = command("scripts/plant.py", *flags)
    assert done.code == 2 and "works on chest CT in HU" in done.text
    done = command("scripts/app.py", *mr_run.flags())
    assert done.code == 2 and "the live page works on chest CT in HU" in done.text


@pytest.mark.parametrize("model", ["pix2pixhd", "diffusion"])
def test_masks_of_many_labels(model: str, tmp_path: Path) -> None:
    cohort = write_mr_cohort(tmp_path / "heads", 3)
    for mask in (cohort / "gtlung").iterdir():
        image = nib.load(mask)  # type: ignore[attr-defined]
        labels = np.asarray(image.dataobj)
        blocks = np.arange(labels.size).reshape(labels.shape) % 131
        many = np.where(labels > 0, 1 + blocks, 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(many, image.affine), mask)
    flags = ("--modality", "mr", "--template", "auto", "--model", model)
    dry = train(cohort, tmp_path / "runs", *flags, "--dry_run", name="many")
    assert dry.code == 0, dry.text
    assert "132 labels, which take 16 channels and 0.1 MiB" in dry.text, dry.text
    assert "one-hot: 1.0 MiB" in dry.text
    done = train(cohort, tmp_path / "runs", *flags, "--max_steps", "2", name="many")
    assert done.code == 0, done.text
    run = TrainedRun(tmp_path / "runs", "many", cohort)
    words = ("--vary", "SEX=F,M", "--how_many", "1")
    tested = (
        run.test(tmp_path / "results", *words, "--sampling_steps", "2")
        if model == "diffusion"
        else run.test(tmp_path / "results", *words)
    )
    assert tested.code == 0, tested.text
    effects = read_csv(tmp_path / "results" / "many" / "test_latest" / "effects.csv")
    assert {"labelled", "label_131"} <= {row["region"] for row in effects}

"""MR volumes as a user works with them: training, test, page and atlas, without a word of HU."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.commands import TrainedRun, command, train
from tests.mr_cohort import BRAIN, LESION, write_mr_cohort
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


def words(page: Path) -> list[str]:
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
    assert words(mr_run.folder / "web" / "index.html") == []
    assert "a.u." in (mr_run.folder / "web" / "index.html").read_text()


def test_results_have_the_unit_and_the_labels(mr_run: TrainedRun, tmp_path: Path) -> None:
    done = mr_run.test(tmp_path, "--vary", "SEX=F,M", "--page")
    assert done.code == 0, done.text
    folder = tmp_path / "mr" / "test_latest"
    effects = read_csv(folder / "effects.csv")
    assert {row["region"] for row in effects} == {
        "labelled", "outside", "label_0", "label_1", "label_5",
    }  # fmt: skip
    assert "mean_diff" in effects[0] and not any(CHEST.search(name) for name in effects[0])
    assert not any("below" in name or "above" in name for name in effects[0])
    metrics = {row["metric"] for row in read_csv(folder / "metrics.csv")}
    assert {"mean_intensity", "mae", "ssim"} <= metrics
    assert not any(CHEST.search(name) or "share" in name for name in metrics)
    assert words(folder / "index.html") == []
    page = (folder / "index.html").read_text()
    assert "a.u. in the labelled region" in page and "&quot;unit&quot;: &quot;a.u.&quot;" in page
    name = next(row["file"] for row in read_csv(folder / "volumes.csv") if row["kind"] == "own")
    volume = np.asarray(nib.load(folder / name).dataobj)  # type: ignore[attr-defined]
    assert volume.min() >= 0 and volume.max() <= 1000 and volume.std() > 10


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
        assert words(page) == [], page
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

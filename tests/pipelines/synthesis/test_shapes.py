"""Masks drawn from a statistical shape model: volume, anatomy, and nobody's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.cache import load_mask
from data.geometry import Volume
from data.load_cohort import load_cohort
from data.text.prompts import load_template
from data.volumes import load_volume
from options.base_options import DataOptions
from options.expand_options import ExpandCommand
from options.parser import parse
from pipelines.synthesis import masks as mask_makers
from pipelines.synthesis import run as synthesis
from pipelines.synthesis.row_features import RowFeatures
from pipelines.synthesis.shape_model import (
    MaskLabels,
    ShapeModel,
    anatomy_facts,
    anatomy_problems,
    keep_largest_pieces,
)
from tests.commands import TrainedRun, command
from tests.pages import page_warnings
from util.cli import UserError

LABELS = MaskLabels((1, 2, 3), (1, 2), 3)
SHAPE = (32, 24, 24)


def chest(size: float, shift: float = 0.0) -> Volume:
    """Two ellipsoids beside a pipe, in voxels of 8 mm."""
    x, y, z = np.meshgrid(*(np.arange(n) - n / 2 for n in SHAPE), indexing="ij")
    labels = np.zeros(SHAPE, np.uint8)
    for label, side in ((1, -1), (2, 1)):
        lung = ((x - side * 6.5 * size) / 5.5) ** 2 + ((y - shift) / 7) ** 2 + (z / 9) ** 2
        labels[lung < size**2] = label
    labels[(np.hypot(x, y - shift) < 1.6) & (z > -2) & (z < 9)] = 3
    return Volume(labels, np.diag([8.0, 8.0, 8.0, 1.0]))


def patients(count: int) -> tuple[list[dict[str, str]], list[Volume]]:
    rng = np.random.default_rng(0)
    rows, masks = [], []
    for _ in range(count):
        height = rng.uniform(150, 190)
        sex = str(rng.choice(["Male", "Female"]))
        size = 0.8 + (height - 150) / 400 + 0.08 * (sex == "Male")
        rows.append({"HEIGHT": f"{height:.0f}", "SEX": sex, "DOG": str(rng.choice(["Yes", "No"]))})
        masks.append(chest(size * np.exp(rng.normal(0, 0.01)), rng.normal()))
    return rows, masks


@pytest.fixture(scope="module")
def fitted() -> tuple[ShapeModel, list[dict[str, str]], list[Volume]]:
    rows, masks = patients(40)
    names = [f"p{k}" for k in range(len(rows))]
    template = load_template("auto", list(rows[0]))
    return ShapeModel.from_masks(names, masks, rows, names, LABELS, template), rows, masks


def lung_ml(masks: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.isin(mask, (1, 2)).sum() * 0.512 for mask in masks]))


def test_the_volume_of_the_row_comes_back(
    fitted: tuple[ShapeModel, list[dict[str, str]], list[Volume]],
) -> None:
    model, _, masks = fitted
    for sex in ("Male", "Female"):
        for height in (155, 170, 185):
            row = {"HEIGHT": str(height), "SEX": sex, "DOG": ""}
            drawn = [model.draw_plausibly(row, masks[k], [height, k]).labels for k in range(5)]
            size = 0.8 + (height - 150) / 400 + 0.08 * (sex == "Male")
            true = lung_ml([chest(size).array])
            assert lung_ml(drawn) == pytest.approx(true, rel=0.1), (sex, height)


def test_a_drawn_mask_is_a_chest_and_nobodys(
    fitted: tuple[ShapeModel, list[dict[str, str]], list[Volume]],
) -> None:
    model, rows, masks = fitted
    drawn = model.draw_plausibly(rows[0], masks[1], [1])
    again = model.draw_plausibly(rows[0], masks[1], [1])
    assert np.array_equal(drawn.labels, again.labels) and drawn.problems == []
    assert drawn.labels.shape == SHAPE and set(np.unique(drawn.labels)) == {0, 1, 2, 3}
    assert np.array_equal(keep_largest_pieces(drawn.labels), drawn.labels)
    assert drawn.nearest.distance > model.threshold > 0
    left, right = (np.argwhere(drawn.labels == label)[:, 0].mean() for label in (1, 2))
    assert left < right
    assert not any(np.array_equal(drawn.labels, mask.array) for mask in masks)


def test_a_copy_of_a_patients_mask_is_found(
    fitted: tuple[ShapeModel, list[dict[str, str]], list[Volume]],
) -> None:
    model, _, _ = fitted
    inside = model.lungs[3].reshape(model.frame.shape).astype(np.uint8)
    nearest = model._nearest(inside)
    assert nearest.case == "p3" and nearest.distance < 1e-6 and nearest.copied


def test_implausible_anatomy_is_named() -> None:
    usual = chest(1.0).array
    facts = anatomy_facts(usual, 8.0, LABELS)
    ranges = {name: (value, value) for name, value in facts.items()}
    assert anatomy_problems(facts, ranges) == []

    def problems(change: np.ndarray) -> str:
        return "; ".join(anatomy_problems(anatomy_facts(change, 8.0, LABELS), ranges))

    touching = np.where((usual == 0) & (np.arange(SHAPE[0])[:, None, None] < 16), 1, usual)
    assert "contact of the lungs" in problems(np.where(touching == 3, 1, touching))
    broken = usual.copy()
    broken[:, :, 11:13][broken[:, :, 11:13] == 1] = 0
    assert "largest piece of label 1" in problems(broken)
    outside = np.where(usual == 3, 0, usual)
    outside[14:18, 10:14, 22:] = 3
    assert "airway within the box of the lungs" in problems(outside)
    assert "volume of label 2" in problems(np.where(usual == 2, 0, usual))


def test_rows_as_numbers() -> None:
    rows = [
        {"AGE": str(a), "SEX": s, "ID": "x"} for a, s in zip(range(40, 46), "MMMFFF", strict=True)
    ]
    features = RowFeatures.from_rows(rows, load_template("auto", ["AGE", "SEX", "ID"]))
    assert features.columns == ["AGE", "SEX"]
    encoded = features.encode([*rows, {"AGE": "", "SEX": "", "ID": ""}, {"AGE": "90", "SEX": "F"}])
    assert np.allclose(encoded[:6].mean(0), 0) and np.allclose(encoded[6], 0)
    assert encoded[7, 0] == encoded[5, 0]  # never beyond the range of training
    assert features.out_of_range([{"AGE": "90"}]) == {"AGE": "40 to 45"}


def test_too_few_masks_and_too_many_labels() -> None:
    rows, masks = patients(4)
    template = load_template("auto", list(rows[0]))
    names = [str(k) for k in range(4)]
    with pytest.raises(UserError, match=r"there are 4; it needs at least 10.*--masks deform"):
        ShapeModel.from_masks(names, masks, rows, names, LABELS, template)
    many = replace(LABELS, all=tuple(range(1, 40)))
    with pytest.raises(UserError, match="39 labels"):
        ShapeModel.from_masks(names * 3, masks * 3, rows * 3, names * 3, many, template)


# --- the command


def options(run: TrainedRun, out: Path, *words: str) -> ExpandCommand:
    return parse(
        ExpandCommand, "", ["--dataroot", str(run.cohort), *run.flags(), "--out", str(out), *words]
    )


def test_a_cohort_with_drawn_masks(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--masks", "shape", "--balance", "SEX", "--n", "2", "--no-check_copies")
    with pytest.raises(UserError, match="there are 9; it needs at least 10"):
        synthesis.synthesise_cohort(options(trained_run, tmp_path / "few", *words))
    monkeypatch.setattr("pipelines.synthesis.shape_model.MIN_MASKS", 9)
    out = synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", *words))
    copies = pd.read_csv(out / "copies.csv")
    assert (copies["mask_distance"] >= copies["mask_threshold"]).all()
    table = pd.read_csv(out / "clinical.csv", dtype=str)
    assert set(table["SYNTHETIC HOW"]) == {"generate, masks shape"}
    training = [load_volume(path).array for path in (trained_run.cohort / "gtlung").iterdir()]
    for case in table["File Name"]:
        mask = load_volume(out / "gtlung" / f"{case}.nii.gz").array
        assert {1, 2} <= set(np.unique(mask))
        assert not any(np.array_equal(mask, other) for other in training)
    page = (out / "index.html").read_text()
    assert "Mask drawn from the shape model" in page and "which are no patient" in page
    assert "statistical shape model" in (out / "README.md").read_text()


def test_a_case_without_a_plausible_mask_is_left_out(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def implausible(*_: object) -> mask_makers.NewMask:
        return mask_makers.NewMask(np.zeros(1, np.uint8), None, problems=["label 1 in pieces"])

    monkeypatch.setattr(synthesis, "_mask_maker", lambda *_: implausible)
    words = ("--masks", "shape", "--balance", "SEX", "--n", "2", "--no-check_copies")
    out = synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", *words))
    record = json.loads(next((out / "records").iterdir()).read_text())
    assert record["left_out"] and "label 1 in pieces" in record["reason"]
    assert "no plausible mask" in page_warnings(out / "index.html")
    assert "2 cases left out, because no plausible mask" in (out / "index.html").read_text()


def test_given_masks_stay_as_they_are(trained_run: TrainedRun, tmp_path: Path) -> None:
    words = ("--masks", "given", "--balance", "SEX", "--n", "1", "--no-check_copies")
    out = synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", *words))
    row = pd.read_csv(out / "clinical.csv", dtype=str).iloc[0]
    mask = load_volume(out / "gtlung" / f"{row['File Name']}.nii.gz").array
    real = load_cohort(DataOptions(dataroot=str(trained_run.cohort)))
    assert np.array_equal(mask, load_mask(real[row["SYNTHETIC SOURCE"]]).array)
    assert "as they stand" in (out / "README.md").read_text()


def test_edits_keep_their_masks(trained_run: TrainedRun, tmp_path: Path) -> None:
    words = ("--masks", "shape", "--how", "residual", "--balance", "SEX", "--n", "1")
    with pytest.raises(UserError, match="--masks shape: --how residual changes real scans"):
        synthesis.synthesise_cohort(options(trained_run, tmp_path / "out", *words))
    done = command(
        "scripts/expand.py",
        "--dataroot",
        trained_run.cohort,
        *trained_run.flags(),
        "--out",
        tmp_path / "out",
        "--masks",
        "wrong",
    )
    assert done.code == 2 and "--masks" in done.text

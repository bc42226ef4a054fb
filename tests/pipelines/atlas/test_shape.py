"""Shape of lungs and airways in the masks, which the generator holds fixed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.atlas.report import write_pages
from pipelines.atlas.statistics.adjustment import TOTAL, Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.outcomes import outcome_frame
from pipelines.atlas.statistics.regression import RealScans
from pipelines.atlas.statistics.shape import measure_shape, shape_frame, shape_sentences
from tests import atlas_folder

SEX = AtlasAttribute("SEX", "demographic", "category", ("Female", "Male"), {})
DIAGNOSIS = AtlasAttribute("DIAGNOSIS", "exposure", "category", ("HP", "IPF"), {})
ROLES = Roles({"SEX": SEX, "DIAGNOSIS": DIAGNOSIS}, frozenset(), "DIAGNOSIS")
CONTRASTS = [*contrasts_of(DIAGNOSIS), *contrasts_of(SEX)]
LABELS = {contrast.id: contrast.label for contrast in CONTRASTS}
TRUTH = {"left_lung": -400.0, "right_lung": -500.0, "lungs": -900.0}  # ml, by IPF


def test_boxes_have_their_volume_and_height() -> None:
    labels = np.zeros((30, 20, 25), np.uint8)
    labels[2:8, 3:13, 4:20] = 1
    labels[20:27, 3:13, 2:22] = 2
    labels[14:16, 8:10, 10:25] = 3
    values = measure_shape(labels, (2.0, 2.0, 5.0), (1, 2), 3)
    assert values == {
        ("volume", "lungs"): pytest.approx(0.02 * (6 * 10 * 16 + 7 * 10 * 20)),
        ("height", "lungs"): 100,
        ("volume", "left_lung"): pytest.approx(0.02 * 6 * 10 * 16),
        ("height", "left_lung"): 80,
        ("volume", "right_lung"): pytest.approx(0.02 * 7 * 10 * 20),
        ("height", "right_lung"): 100,
        ("volume", "airway"): pytest.approx(0.02 * 2 * 2 * 15),
    }
    one = measure_shape((labels == 1).astype(np.uint8), (2.0, 2.0, 5.0), (1,), 3)
    assert set(one) == {("volume", "lungs"), ("height", "lungs")}  # no sides, no airway


def masks(cases: int = 120) -> RealScans:
    """IPF shrinks the lungs; men have larger lungs and airways, and more often IPF."""
    rng = np.random.default_rng(1)
    male = rng.random(cases) < 0.5
    ipf = rng.random(cases) < np.where(male, 0.7, 0.3)
    rows = {}
    for k in range(cases):
        left, right = rng.normal((2200, 2600), 200)
        left += 500 * male[k] + TRUTH["left_lung"] * ipf[k]
        right += 600 * male[k] + TRUTH["right_lung"] * ipf[k]
        rows[f"c{k}"] = {
            ("volume", "lungs"): left + right,
            ("volume", "left_lung"): left,
            ("volume", "right_lung"): right,
            ("height", "lungs"): rng.normal(240, 12),
            ("volume", "airway"): rng.normal(70, 8) + 15 * male[k],
        }
    outcomes = outcome_frame(rows)
    index = outcomes.index
    table = pd.DataFrame(
        {"SEX": np.where(male, "Male", "Female"), "DIAGNOSIS": np.where(ipf, "IPF", "HP")},
        index=index,
        dtype=object,
    )
    return RealScans(outcomes, table, outcomes["volume", "lungs"], pd.Series(index, index))


def test_the_masks_show_the_true_change_of_size() -> None:
    shape = shape_frame(masks(), CONTRASTS, ROLES)
    total = shape[(shape["adjustment"] == TOTAL) & (shape["column"] == "DIAGNOSIS")]
    rows = total.set_index(["measure", "region"])
    for region, truth in TRUTH.items():
        row = rows.loc[("volume", region)]
        assert row["low"] < truth < row["high"] < 0 and row["differs"] == "yes", region
        assert row["unit"] == "ml" and row["adjusted_for"] == "SEX"
    for place in (("height", "lungs"), ("volume", "airway")):  # which men alone have larger
        assert rows.loc[place, "low"] < 0 < rows.loc[place, "high"]
        assert rows.loc[place, "differs"] == "no"
    assert rows.loc[("height", "lungs"), "unit"] == "mm"
    assert not shape["adjusted_for"].fillna("").str.contains("volume").any()
    assert (shape["q"] >= shape["p"]).all()


def test_sentences_name_what_differs() -> None:
    shape = shape_frame(masks(), CONTRASTS, ROLES)
    diagnosis, sex = shape_sentences(shape, LABELS)
    assert re.match(
        r"DIAGNOSIS IPF against HP: volume of both lungs -\d+ ml \[-\d+, -\d+\] \(-1\d%\); ",
        diagnosis,
    )
    assert "airways" not in diagnosis and "volume of the airways +1" in sex


def test_the_page_has_a_section_of_its_own(tmp_path: Path) -> None:
    study = atlas_folder.make_atlas(tmp_path / "a")
    path = tmp_path / "a" / "atlas.json"
    record = json.loads(path.read_text())
    assert record["shape"] == []
    shape = shape_frame(masks(), contrasts_of(DIAGNOSIS), ROLES)
    shape = shape.assign(contrast=atlas_folder.CONTRASTS[0].id)
    rows = json.loads(shape.to_json(orient="records"))
    path.write_text(json.dumps(record | {"shape": rows}))
    text = write_pages(tmp_path / "a", study).read_text()  # type: ignore[arg-type]
    card = text.partition("Shape: lungs and airways in the masks")[2].partition("</section>")[0]
    assert "The mask is held fixed" in card and "volume of both lungs −" in card
    assert "<table" in card and "airways" in card

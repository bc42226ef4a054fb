"""The benchmark of texture: a small version end to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import texture
from data.cohort import IMAGES, MASKS
from options.benchmarks.effects import TextureBenchmarkOptions
from options.parser import parse
from util.cli import UserError
from util.files import read_json, write_json


@pytest.fixture
def eight_chests(tmp_path: Path, chest_folder: Path) -> Path:
    """Each of the two chests four times, under other names."""
    for part in (IMAGES, MASKS):
        (tmp_path / "chests" / part).mkdir(parents=True)
        for file in (chest_folder / part).iterdir():
            for copy in range(4):
                shutil.copy(file, tmp_path / "chests" / part / f"{copy}_{file.name}")
    return tmp_path / "chests"


def test_small_version_end_to_end(tmp_path: Path, eight_chests: Path) -> None:
    flags = "--patch_size 16,16,16 --ngf 4 --ndf 4 --batch_size 1 --n_layers_D 1 --num_D 1"
    words = [str(tmp_path), "--chests", str(eight_chests), "--spacing", "12", "--max_steps", "1"]
    texture.main([*words, "--train_flags", flags])
    figures = read_json(tmp_path / "figures_seed0.json")
    assert set(figures) == {"version 0.1", "default", "diffusion"}
    ratio = figures["default"]["detail_sd_hu ratio"]
    assert ratio == pytest.approx(
        figures["default"]["detail_sd_hu"] / figures["default"]["detail_sd_hu real"]
    )
    trained_on = figures["default"]["detail_sd_hu ratio of scans trained on"]
    assert trained_on == pytest.approx(1, abs=0.5) != ratio
    assert figures["default"]["2.5D FID, random network"] > 0
    assert figures["default"]["Lung histogram, Wasserstein-1 (HU)"] > 0
    assert len(pd.read_csv(tmp_path / "cohort_seed0" / "clinical.csv")) == 8
    assert "noise_correlation" in (tmp_path / "tables.md").read_text()


def test_means_over_seeds_are_ratios_of_means(tmp_path: Path) -> None:
    for seed, real in ((0, 10.0), (1, 30.0)):
        figures = {"x real": real, "x ratio": 0.5 + seed, "noise_correlation": seed}
        write_json(tmp_path / f"figures_seed{seed}.json", {"default": figures})
    words = [str(tmp_path), "--models", "default", "--seeds", "0,1"]
    table = texture.write_table(parse(TextureBenchmarkOptions, "", words))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["metric", "default, seed 0", "default, seed 1", "default, mean"]
    values = {row[0]: [float(cell) for cell in row[1:]] for row in rows[2:]}
    assert values["x ratio"] == [0.5, 1.5, 1.25]
    assert values["noise_correlation"] == [0, 1, 0.5]


def test_too_few_chests(tmp_path: Path, chest_folder: Path) -> None:
    with pytest.raises(UserError, match="2 chests; 8 are needed"):
        texture.main([str(tmp_path), "--chests", str(chest_folder)])


def test_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--models is 'x'"):
        texture.main([str(tmp_path), "--models", "x"])

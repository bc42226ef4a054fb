"""The standard benchmark: a tiny version with a command of a few lines, its scores, generators."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from benchmarks.standard import run as benchmark
from benchmarks.standard.generators import (
    mask2ct_run,
    monai_diffusion,
    nearest_neighbour,
    voxelwise_regression,
)
from benchmarks.standard.scores import is_reached, tables
from benchmarks.standard.standard_set import DRAWS, StandardSet, read_generated
from data.volumes import load_volume, write_like
from options.benchmarks.effects import StandardBenchmarkOptions
from util.cli import UserError
from util.files import read_json

# Writes the mask as HU; row and noise change nothing.
COMMAND = """
import csv, pathlib, sys
import nibabel as nib, numpy as np
if sys.argv[1] == "train":
    assert len(list(pathlib.Path(sys.argv[2], "img").iterdir())) == 8
    pathlib.Path(sys.argv[3], "weights").write_text("learned")
else:
    test, work, out = map(pathlib.Path, sys.argv[2:])
    assert (work / "weights").read_text() == "learned" and not (test / "img").exists()
    for row in csv.DictReader((test / "requests.csv").open()):
        mask = nib.load(test / "gtlung" / (row["File Name"] + ".nii.gz"))
        labels = np.asarray(mask.dataobj)
        hu = np.where((labels == 1) | (labels == 2), -860, 40).astype(np.int16)
        nib.save(nib.Nifti1Image(hu, mask.affine), out / row["file"])
"""


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> StandardSet:
    return StandardSet.make(tmp_path_factory.mktemp("standard") / "sets", "sparse", (), True)


@pytest.fixture()
def expected(tmp_path: Path) -> Path:
    file = tmp_path / "expected.json"
    file.write_text(json.dumps({"version": 1, "generators": {}}))
    return file


def options(command: str, out: Path, **flags: Any) -> StandardBenchmarkOptions:
    values: dict[str, Any] = {"groups": ("sparse",), "tiny": True, **flags}
    return StandardBenchmarkOptions(RUN_COMMAND=command, OUT=str(out), **values)


def test_any_command_that_writes_nifti_is_scored(tmp_path: Path, expected: Path) -> None:
    script = tmp_path / "generator.py"
    script.write_text(COMMAND)
    asked = options(f"{sys.executable} {script}", tmp_path / "out", name="flat")
    scores = benchmark.run_benchmark(asked, expected)["sparse_phantom"]
    effects = pd.DataFrame(scores["effects"])
    assert (effects["generated"] == 0).all()
    null = effects[effects["effect"] == "ALLERGY"]
    assert null["reached"].all() and not effects["reached"].all()
    assert scores["texture"]["seed correlation"] == 1
    assert scores["texture"]["detail ratio"] < 0.05
    assert scores["mask"]["dice"] > 0.8 and scores["mask"]["dice of scans"] > 0.6
    assert scores["cost"]["memory_gib"] > 0.01 and scores["cost"]["train_seconds"] > 0
    folder = tmp_path / "out" / "generators" / "flat"
    assert "## sparse_phantom" in (folder / "scores.md").read_text()
    scores_without = deepcopy(scores)
    scores_without["texture"]["vessel ratio"] = None
    text = tables("flat", {"sparse_phantom": scores_without}, read_json(expected))
    assert "–: vessel ratio has no value, because no scan" in text
    assert "detail ratio has no value" not in text
    script.write_text("raise SystemExit(1)")  # what is finished is not run again
    assert benchmark.run_benchmark(asked, expected)["sparse_phantom"] == scores


def test_commands_that_fail_are_named(tmp_path: Path, expected: Path) -> None:
    script = tmp_path / "generator.py"
    script.write_text("import sys; print('no data'); sys.exit(3 if sys.argv[1] == 'train' else 0)")
    failing = options(f"{sys.executable} {script}", tmp_path / "out")
    with pytest.raises(UserError, match=r"(?s)ended with code 3.*no data"):
        benchmark.run_benchmark(failing, expected)
    script.write_text("")
    with pytest.raises(UserError, match=r"did not write .* of the .* files"):
        benchmark.run_benchmark(failing, expected)
    for command, message in (
        ("", "RUN_COMMAND is empty"),
        ("no-such-program", "not a program here"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark.run_benchmark(options(command, tmp_path / "x"), expected)
    with pytest.raises(UserError, match="--groups is 'all'"):
        benchmark.main(["ls", str(tmp_path / "x"), "--groups", "all"])


def test_a_generator_sees_no_truth(standard: StandardSet) -> None:
    names = {path.name for path in standard.test.iterdir()}
    assert names == {"gtlung", "clinical.csv", "requests.csv", "set.json", "splits.json"}
    train = {path.name.split(".")[0] for path in (standard.train / "img").iterdir()}
    assert train == set(standard.cohort.splits["train"])
    assert train.isdisjoint(pd.read_csv(standard.test / "clinical.csv")["File Name"])
    requests = standard.requests
    assert requests["file"].is_unique and set(requests["draw"]) == {"0", "1"}
    cells = requests.drop(columns=["file", "draw"]).drop_duplicates()
    assert len(cells) * DRAWS == len(requests)


def test_volumes_that_are_no_answer_are_refused(standard: StandardSet, tmp_path: Path) -> None:
    mask = next((standard.test / "gtlung").iterdir())
    labels = load_volume(mask).array
    good = tmp_path / "good.nii.gz"
    write_like(good, labels.astype(np.float32) * 100, mask)
    assert read_generated(good, mask).max() == 100 * labels.max()
    wild = tmp_path / "wild.nii.gz"
    write_like(wild, labels.astype(np.float32) * 1e6, mask, np.float32)
    with pytest.raises(UserError, match="not finite or not HU"):
        read_generated(wild, mask)
    with pytest.raises(UserError, match="is not on the grid"):
        read_generated(next((standard.train / "img").iterdir()), _other_grid(mask, tmp_path))
    with pytest.raises(UserError, match="is not there"):
        read_generated(tmp_path / "none.nii.gz", mask)


def _other_grid(mask: Path, folder: Path) -> Path:
    image = nib.load(mask)
    path = folder / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-2], image.affine), path)
    return path


def test_what_counts_as_reached() -> None:
    assert is_reached("mean_hu", -850, 30, 25) and not is_reached("mean_hu", -850, 30, 20)
    assert is_reached("mean_hu", -850, 0.5, -1.9) and not is_reached("mean_hu", -850, 0.5, 2.1)
    assert not is_reached("mean_hu", -850, -30, 30)
    assert is_reached("detail_sd_hu", 40, 0.0, 1.9) and not is_reached("detail_sd_hu", 40, 0, 2.1)
    assert is_reached("share_below_-950_hu", 0.01, 0.05, 0.04)


def test_baselines_learn_the_training_cases(standard: StandardSet, tmp_path: Path) -> None:
    volumes = {}
    for generator in (voxelwise_regression, nearest_neighbour):
        name = generator.__name__.rpartition(".")[2]
        work, out = tmp_path / name / "work", tmp_path / name / "out"
        work.mkdir(parents=True)
        out.mkdir()
        generator.main(["train", str(standard.train), str(work)])
        generator.main(["generate", str(standard.test), str(work), str(out)])
        assert not standard.missing(out)
        read = standard.reader(out)
        case = standard.cohort.splits["test"][0]
        volumes[name] = [read(case, standard.cohort.rows[case], draw) for draw in range(DRAWS)]
        lungs = standard.cohort.chest(case).lungs
        true = standard.cohort.render(case).hu
        assert abs(volumes[name][0][lungs].mean() - true[lungs].mean()) < 60
    one, two = volumes["voxelwise_regression"]
    assert np.array_equal(one, two)
    one, two = volumes["nearest_neighbour"]
    assert not np.array_equal(one, two)


def test_networks_train_and_generate(standard: StandardSet, tmp_path: Path) -> None:
    few = standard.requests.iloc[:2]
    test = tmp_path / "test"
    test.mkdir()
    for path in standard.test.iterdir():
        (test / path.name).symlink_to(path)
    (test / "requests.csv").unlink()
    few.to_csv(test / "requests.csv", index=False)
    sizes = "--patch_size 16,16,8 --ngf 4 --ndf 4 --n_blocks_global 1 --max_steps 2 --batch_size 2"
    tiny = ["--text_encoder", "table", *sizes.split()]
    for name, main, words in (
        (
            "unet",
            monai_diffusion.main,
            ["--minutes", "0", "--size", "tiny", "--sampling_steps", "2"],
        ),
        ("gan", mask2ct_run.main, tiny),
    ):
        work, out = tmp_path / name, tmp_path / f"{name}_out"
        work.mkdir()
        out.mkdir()
        main([*words, "train", str(standard.train), str(work)])
        main([*words, "generate", str(test), str(work), str(out)])
        for file, case in zip(few["file"], few["File Name"], strict=True):
            read_generated(out / file, standard.test / "gtlung" / f"{case}.nii.gz")

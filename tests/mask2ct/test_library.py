"""The library: a run as an object, every kind of mask, two prompts compared, and the notebook."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure
from nbclient import NotebookClient

import mask2ct
from tests.commands import TrainedRun, command
from util.cli import UserError

ROOT = Path(__file__).resolve().parents[2]
NEVER = "Patient age: 60. SMOKING HISTORY is Never smoker."
CURRENT = "Patient age: 60. SMOKING HISTORY is Current smoker."


@pytest.fixture(scope="module")
def run(trained_run: TrainedRun) -> mask2ct.Run:
    return mask2ct.load(trained_run.folder, gpu_ids="-1")


@pytest.fixture(scope="module")
def mask(trained_run: TrainedRun) -> Path:
    return sorted((trained_run.cohort / "gtlung").glob("*.nii.gz"))[0]


def test_a_run_says_what_it_is(run: mask2ct.Run) -> None:
    assert "pix2pixhd" in repr(run) and run.labels == (0, 1, 2, 3)
    assert "SMOKING HISTORY" in run.columns


def test_a_volume_is_that_of_the_command_line(
    run: mask2ct.Run, trained_run: TrainedRun, mask: Path, tmp_path: Path
) -> None:
    out = tmp_path / "command.nii.gz"
    words = ("--mask", str(mask), "--prompt", NEVER, "--out", str(out), "--seed", "3")
    done = command("test.py", *trained_run.flags(), "--gpu_ids=-1", *words)
    assert done.code == 0, done.text
    volume = run.generate(mask, NEVER, seed=3)
    saved, written = nib.load(volume.save(tmp_path / "library.nii.gz")), nib.load(out)
    assert saved.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(written.dataobj))
    np.testing.assert_array_equal(saved.affine, written.affine)
    np.testing.assert_allclose(np.asarray(saved.dataobj), volume.hu, atol=0.5)


def test_masks_may_be_images_or_arrays(run: mask2ct.Run, mask: Path) -> None:
    image = nib.load(mask)
    array = np.asarray(image.dataobj)
    flipped = np.diag([-1.0, 1, 1, 1]) @ image.affine
    volumes = [
        run.generate(given, NEVER)
        for given in (image, sitk.ReadImage(str(mask)), (array, image.affine))
    ]
    for volume in volumes:
        np.testing.assert_array_equal(volume.hu, volumes[0].hu)
        np.testing.assert_allclose(volume.affine, image.affine, atol=1e-5)
    mirrored = run.generate((array, flipped), NEVER)
    assert mirrored.hu.shape == array.shape
    np.testing.assert_allclose(mirrored.affine, flipped)


def test_what_is_no_mask_is_refused(run: mask2ct.Run, mask: Path, tmp_path: Path) -> None:
    for wrong, part in (
        (tmp_path / "absent.nii.gz", "absent.nii.gz"),
        (np.zeros((4, 4, 4)), "type ndarray"),
        ((np.zeros((4, 4)), np.eye(4)), "shape (4, 4)"),
        ((np.full((8, 8, 8), 77, np.uint8), np.eye(4)), "77"),
    ):
        with pytest.raises(UserError) as error:
            run.generate(wrong, NEVER)
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"ending in \.nii\.gz"):
        run.generate(mask, NEVER).save(tmp_path / "volume.png")
    with pytest.raises(UserError, match="no run"):
        mask2ct.load(tmp_path / "checkpoints" / "absent")


def test_two_prompts_are_compared_as_test_py_does(
    run: mask2ct.Run, trained_run: TrainedRun, mask: Path, tmp_path: Path
) -> None:
    pair = run.compare(mask, NEVER, CURRENT)
    np.testing.assert_array_equal(pair.difference.hu, pair.b.hu - pair.a.hu)
    assert nib.load(pair.difference.save(tmp_path / "d.nii.gz")).get_data_dtype() == np.float32
    words = ("--mask", str(mask), "--prompt", NEVER, "--gpu_ids=-1", "--no-page")
    vary = ("--vary", "SMOKING HISTORY=Never smoker,Current smoker", "--results_dir", str(tmp_path))
    done = command("test.py", *trained_run.flags(), *words, *vary)
    assert done.code == 0, done.text
    (table,) = tmp_path.glob("*/*/effects.csv")
    expected = pd.read_csv(table).set_index("region")["mean_diff_hu"]
    found = pair.effects.set_index("region")["mean_diff_hu"]
    pd.testing.assert_series_equal(found, expected, atol=1e-3)


def test_volumes_can_be_shown(run: mask2ct.Run, mask: Path) -> None:
    pair = run.compare(mask, NEVER, CURRENT)
    for volume in (pair.a, pair.difference):
        figure = volume.show("matplotlib")
        assert isinstance(figure, Figure) and len(figure.axes) == 4  # three planes, a colour bar
    widget = pytest.importorskip("ipyniivue")
    assert isinstance(pair.a.show(), widget.NiiVue)


@pytest.mark.slow
def test_import_works_from_any_folder(tmp_path: Path) -> None:
    code = "import mask2ct; print(mask2ct.__version__, mask2ct.load.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.split()[1] == "load", done.stderr


@pytest.mark.slow
def test_the_notebook_runs(trained_run: TrainedRun, tmp_path: Path) -> None:
    shutil.copytree(trained_run.checkpoints, tmp_path / "demo" / "checkpoints")
    shutil.copytree(trained_run.cohort, tmp_path / "demo" / "cohort")
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # stored without outputs
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    variables = {
        "MASK2CT_DEMO": str(tmp_path / "demo"),
        "MASK2CT_RUN": trained_run.name,
        "PYTHONPATH": str(ROOT),
    }
    client.execute(env={**os.environ, **variables})
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in shown)

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
import torch
from matplotlib.figure import Figure
from nbclient import NotebookClient
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import mask2ct
from models.text.clip import make_tokenizer
from pipelines.refits.plan import OriginRun
from tests.commands import TrainedRun, command, train
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
    assert "pix2pixhd" in repr(run) and run.labels == (0, 1, 2, 3, 4)
    assert "SMOKING HISTORY" in run.columns


def test_a_volume_is_that_of_the_command_line(
    run: mask2ct.Run, trained_run: TrainedRun, mask: Path, tmp_path: Path
) -> None:
    out = tmp_path / "command.nii.gz"
    words = ("--mask", str(mask), "--prompt", NEVER, "--out", str(out), "--seed", "3")
    done = command("test.py", *trained_run.flags(), "--gpu_ids=-1", *words)
    assert done.code == 0, done.text
    volume = run.generate(mask, NEVER, seed=3)
    assert repr(volume).startswith(
        f"<Volume generated: {'x'.join(map(str, volume.ras.shape))} voxels"
    )
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
    words = ("--mask", str(mask), "--prompt", NEVER, "--gpu_ids=-1", "--no-page", "--draws", "1")
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


@pytest.mark.parametrize("hiding", ["util.py", "options/__init__.py"])
def test_a_file_that_hides_a_package_is_named(tmp_path: Path, hiding: str) -> None:
    file = tmp_path / hiding
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('imported')\n")
    (tmp_path / "data").mkdir()  # a folder without __init__.py hides nothing
    done = subprocess.run(
        [sys.executable, "-c", "import mask2ct"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith(f"ImportError: {file} hides the package")
    assert "Rename that file" in last


def save_encoder(folder: Path) -> None:
    """Write a small language model with its tokenizer."""
    tokenizer = make_tokenizer([NEVER, CURRENT], limit=77)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=24,
        max_position_embeddings=77,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_relative_text_encoder_is_found_from_another_folder(
    cohort_dir: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    save_encoder(home / "checkpoints" / "text")
    save_encoder(home / "checkpoints" / "run1.clip")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name, encoder in (("run1", "checkpoints/run1.clip"), ("run2", "checkpoints/text")):
        monkeypatch.chdir(home)
        done = train(cohort_dir, Path("checkpoints"), "--text_encoder", encoder, name=name)
        assert done.code == 0, done.text
        expected = mask2ct.load(f"checkpoints/{name}", gpu_ids="-1").generate(mask, NEVER)
        monkeypatch.chdir(elsewhere)
        run = mask2ct.load(home / "checkpoints" / name, gpu_ids="-1")
        np.testing.assert_array_equal(run.generate(mask, NEVER).hu, expected.hu)
    where = ("--name", "run2", "--checkpoints_dir", home / "checkpoints")
    done = command("train.py", *where, "--continue_train", "--max_steps", "5")
    assert done.code == 0, done.text
    origin = OriginRun.load(home / "checkpoints" / "run2")
    assert Path(origin.options.text.text_encoder).samefile(home / "checkpoints" / "text")
    shutil.move(home / "checkpoints", elsewhere / "moved")  # run1.clip still lies beside run1
    assert mask2ct.load("moved/run1", gpu_ids="-1").name == "run1"
    shutil.rmtree("moved/run1.clip")
    with pytest.raises(UserError, match=r"run1\.clip is not a folder in"):
        mask2ct.load("moved/run1", gpu_ids="-1")


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

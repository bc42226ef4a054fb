"""Runs that are handed on: they generate the same volumes, and hold nothing of a patient."""

from __future__ import annotations

import json
import shlex
import shutil
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import mask2ct
from data.text.prompts import load_template
from models.text.table_encoder import TableEncoder
from options.export_options import ExportOptions
from pipelines.sharing.export import next_step
from pipelines.sharing.redact import WITHHELD, find_ids, redact_state, training_values
from tests.commands import TrainedRun, command, refused
from util.cli import UserError
from util.training.shared_runs import check_folder, open_shared

PROMPT = "Patient age: 60. SMOKING HISTORY is Ex smoker."


@pytest.fixture(scope="module")
def exported(trained_run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "my run.zip"
    done = command("scripts/export.py", *words(trained_run, out), "--licence", "cc-by-4.0")
    assert done.code == 0, done.text
    return out


def words(run: TrainedRun, out: Path, *more: str) -> tuple[str, ...]:
    return (run.name, str(out), "--checkpoints_dir", str(run.checkpoints), *more)


def mask_of(run: TrainedRun) -> Path:
    return sorted((run.cohort / "gtlung").iterdir())[0]


def test_nothing_of_a_patient_is_in_the_file(trained_run: TrainedRun, exported: Path) -> None:
    """All ids, the folder of the cohort, and every row."""
    splits = json.loads((trained_run.folder / "splits.json").read_text())
    ids = [case for cases in splits.values() for case in cases]
    table = (trained_run.cohort / "clinical.csv").read_text().splitlines()[1:]
    with zipfile.ZipFile(exported) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert len(ids) > 5 and set(contents) == {
        *("LICENSE", "README.md", "body.safetensors", "mask2ct.json", "options.json"),
        *("latest/state.json", "latest/G.safetensors", "latest/text.safetensors"),
    }
    for name, content in contents.items():
        for text in (*ids, str(trained_run.cohort), str(trained_run.checkpoints), *table):
            assert text.encode() not in content, (name, text)
    state = json.loads(contents["latest/state.json"])
    assert state["parts"] == ["G", "text"] and "weights" not in state
    assert set(state["data"]) == {"values"} and state["evidence"]["effects"] == {}
    card = contents["README.md"].decode()
    assert "license: cc-by-4.0" in card and "| SMOKING HISTORY | exposure |" in card


def test_it_generates_the_volume_of_the_run(
    trained_run: TrainedRun, exported: Path, tmp_path: Path
) -> None:
    volumes = []
    for number, name in enumerate((trained_run.name, str(exported))):
        out = tmp_path / f"{number}.nii.gz"
        run = (
            "--name",
            name,
            "--checkpoints_dir",
            str(trained_run.checkpoints if not number else tmp_path),
        )
        made = ("--mask", str(mask_of(trained_run)), "--prompt", PROMPT, "--out", str(out))
        done = command("test.py", *run, *made)
        assert done.code == 0, done.text
        volumes.append(np.asarray(nib.load(out).dataobj))
    assert np.array_equal(volumes[0], volumes[1])
    again = mask2ct.load(exported).generate(mask_of(trained_run), PROMPT)
    assert np.array_equal(np.rint(again.hu), volumes[0])


def test_a_cohort_is_tested_with_a_file(
    trained_run: TrainedRun, exported: Path, tmp_path: Path
) -> None:
    run = ("--name", str(exported), "--results_dir", str(tmp_path), "--page")
    flags = ("--dataroot", str(trained_run.cohort), "--how_many", "1", "--vary", "AGE=45,80")
    done = command("test.py", *run, *flags, "--draws", "1")
    assert done.code == 0, done.text
    assert (tmp_path / "my_run" / "test_latest" / "index.html").is_file()
    assert not list(exported.parent.glob("my*run*/"))


def test_a_hub_folder_and_a_bundle(trained_run: TrainedRun, tmp_path: Path) -> None:
    from monai.bundle import run as run_bundle

    for kind in ("hub", "bundle"):
        done = command("scripts/export.py", *words(trained_run, tmp_path / kind, "--to", kind))
        assert done.code == 0, done.text
    assert (
        "hf upload ORG/"
        in command(
            "scripts/export.py", *words(trained_run, tmp_path / "hub", "--to", "hub", "--overwrite")
        ).text
    )
    mask, out = str(mask_of(trained_run)), tmp_path / "out.nii.gz"
    config = str(tmp_path / "bundle" / "configs" / "inference.json")
    root = str(tmp_path / "bundle")
    run_bundle(config_file=config, bundle_root=root, mask=mask, prompt=PROMPT, output=str(out))
    expected = mask2ct.load(tmp_path / "hub").generate(mask, PROMPT)
    assert np.array_equal(np.asarray(nib.load(out).dataobj), np.rint(expected.hu))
    assert not list((tmp_path / "hub").glob("phrases*"))  # no texts of its users
    damaged = Path(shutil.copytree(tmp_path / "hub", tmp_path / "damaged"))
    (damaged / "README.md").write_text("A card that its owner wrote.")
    assert open_shared(str(damaged)) == damaged
    (damaged / "options.json").write_text("{}")
    check_folder.cache_clear()
    with pytest.raises(UserError, match=r"options\.json is damaged: its content is not that"):
        open_shared(str(damaged))
    (damaged / "options.json").unlink()
    with pytest.raises(UserError, match=r"lacks options\.json"):
        open_shared(str(damaged))


def test_the_network_as_onnx(trained_run: TrainedRun, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "network.onnx"
    size = ("--to", "onnx", "--onnx_size")
    refused(command("scripts/export.py", *words(trained_run, out, *size, "9,9,9")), "--onnx_size")
    done = command("scripts/export.py", *words(trained_run, out, *size, "16,16,8"))
    assert done.code == 0 and "differs from PyTorch by at most 0.0" in done.text, done.text


def test_bad_exports_write_nothing(trained_run: TrainedRun, exported: Path, tmp_path: Path) -> None:
    refused(command("scripts/export.py", *words(trained_run, tmp_path / "a.tar")), "end in .zip")
    refused(command("scripts/export.py", "none", str(tmp_path / "a.zip")), "there is no run")
    refused(command("scripts/export.py", *words(trained_run, exported)), "exists already")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    hub = words(trained_run, tmp_path / "mine", "--to", "hub", "--overwrite")
    refused(command("scripts/export.py", *hub), "not empty")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(exported.read_bytes()[:-50])
    flags = ("--mask", str(mask_of(trained_run)), "--out", str(tmp_path / "o.nii.gz"))
    refused(command("test.py", "--name", str(broken), *flags), "cannot be read as a zip file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.zip", "mine"]


def test_words_of_single_patients_stay_in_the_house() -> None:
    template = load_template("aiib23")
    encoder = TableEncoder()
    prompts = [
        ["Gender: Female.", "TYPE CTD OTHER is a rare thing of Mrs Doe", "Patient age: 60."],
        ["Gender: Male.", "Seen by Dr Smith", "Patient age: 61."],
        ["Gender: Male.", "TYPE CTD OTHER is another", "Patient age: 62."],
    ]
    encoder.fit(prompts)
    counts = {"SEX": {"Female": 1, "Male": 6}, "TYPE CTD OTHER": {"a rare thing of Mrs Doe": 1}}
    values = {
        "SEX": ["Female", "Male"],
        "TYPE CTD OTHER": ["a rare thing of Mrs Doe", "another", "third"],
        "AGE": [str(age) for age in range(50, 70)],
    }
    state = {
        "step": 1,
        "labels": [0, 1],
        "columns": ["SEX", "TYPE CTD OTHER", "AGE"],
        "encoder": encoder.identity,
        "encoder_values": encoder.state()[1],
        "weights": {"case_0001": 1.0},
        "data": {"values": values, "files": {"case_0001": {}}},
        "evidence": {"patients": 7, "values": counts},
    }
    redacted = redact_state(state, template, encoder)
    text = json.dumps(redacted)
    assert not any(word in text for word in ("Doe", "Smith", "case_0001", "another"))
    assert redacted["evidence"]["values"] == {"SEX": {"Male": 6}}
    assert redacted["data"]["values"]["AGE"] == ["51", "54.8", "59.5", "64.2", "68"]
    before, after = encoder.phrases, redacted["encoder_values"]["phrases"]
    same = [a == b for a, b in zip(before, after, strict=True)]
    assert same.count(False) == 3 == sum(WITHHELD in phrase for phrase in after)
    restored = TableEncoder()
    restored.load_state({}, redacted["encoder_values"])
    known = ["Gender: Male.", "Patient age: 66."]
    assert restored.encode([known]).tokens.equal(encoder.encode([known]).tokens)


def test_dates_stay_in_the_house_and_quantiles_are_plain_numbers() -> None:
    dates = [f"20{year}-05-01" for year in range(10, 20)]
    days = [str(-day) for day in range(1000, 9000, 1000)]
    values = {"CTD DIAG DATE": dates, "SMOKING HISTORY STOP DATE": days}
    template = load_template("aiib23", list(values))
    assert training_values({"data": {"values": values}}, template) == {
        "SMOKING HISTORY STOP DATE": ["-7650", "-6250", "-4500", "-2750", "-1350"]
    }


def test_ids_are_words() -> None:
    assert find_ids(b'{"a": "case_0001"}', ["case_0001", "case_00", "0001"]) == ["case_0001"]
    assert find_ids(b"case_00012", ["case_0001"]) == []


def test_the_next_command_can_be_pasted_whatever_the_path() -> None:
    out = Path("my runs") / "läuft.zip"
    text = next_step(ExportOptions(RUN="run1", OUT=str(out)), out)
    parts = shlex.split(text.partition("Next: ")[2])
    assert parts[:4] == ["python", "test.py", "--name", str(out)]

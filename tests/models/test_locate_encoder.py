"""Where the files of a run's text encoder are found after the run was moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.inference import locate_text_encoder
from options.base_options import TextOptions


@pytest.mark.parametrize(
    ("stored", "folder", "file"),
    [
        ("checkpoints/clip", "checkpoints/run", "checkpoints/clip"),
        ("/gone/run.clip", "checkpoints/run", "checkpoints/run.clip"),
        ("/gone/run.clip", "checkpoints/run/refits/resampled_001", "checkpoints/run.clip"),
        ("medclip:models/medclip.bin", "checkpoints/run", "models/medclip.bin"),
    ],
)
def test_moved_files_are_found(stored: str, folder: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.touch()
    kind = "medclip:" if stored.startswith("medclip:") else ""
    located = locate_text_encoder(TextOptions(text_encoder=stored), tmp_path / folder)
    assert located.text_encoder == f"{kind}{path}"


def test_the_bert_of_medclip_is_found(tmp_path: Path) -> None:
    (tmp_path / "models" / "bert").mkdir(parents=True)
    options = TextOptions(text_encoder="medclip:models/gone.bin", medclip_bert="models/bert")
    located = locate_text_encoder(options, tmp_path / "checkpoints" / "run")
    assert located.medclip_bert == str(tmp_path / "models" / "bert")
    assert located.text_encoder == options.text_encoder  # named as it was in the message


@pytest.mark.parametrize("name", ["table", "cohort", "hub:org/model"])
def test_names_that_are_no_files_stay(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("table", "cohort", "org/model"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    options = TextOptions(text_encoder=name)
    assert locate_text_encoder(options, tmp_path / "checkpoints" / "run") == options

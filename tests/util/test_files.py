"""Files and folders that appear whole or not at all, and what must not be replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from util.cli import UserError
from util.files import (
    atomic_folder,
    atomic_path,
    claim_file,
    claim_folder,
    file_fingerprint,
    read_json,
    write_csv,
    write_json,
)
from util.records import open_record


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "table.nii.gz"
    with atomic_path(path) as temporary:
        assert temporary.name.endswith(".nii.gz") and not path.exists()
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_disk_that_refuses_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.json cannot be written .* Free space"):
        write_json(tmp_path / "file" / "a.json", 1)


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "atlas"
    for text in ("one", "two"):
        with atomic_folder(folder) as part:
            (part / "file").write_text(text)
            assert not (folder / "file").exists() or (folder / "file").read_text() != text
        assert (folder / "file").read_text() == text
    with pytest.raises(ValueError, match="damaged"), atomic_folder(folder) as part:
        raise ValueError("damaged")
    assert (folder / "file").read_text() == "two" and list(tmp_path.iterdir()) == [folder]


def test_json_and_csv(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ä": [1, None]}
    (tmp_path / "a.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")
    write_csv(tmp_path / "a.csv", ("x", "y"), [{"x": 1}, {"x": "a,b", "y": 2}])
    assert (tmp_path / "a.csv").read_text().splitlines() == ["x,y", "1,", '"a,b",2']


def test_a_changed_file_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    path.write_text("1")
    before = file_fingerprint(path)
    assert before == file_fingerprint(path) and before[:2] == [str(path), 1]
    path.write_text("12")
    assert file_fingerprint(path) != before


def test_only_folders_of_the_command_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert not claim_folder(folder, ["a.json"], overwrite=False)
    folder.mkdir()
    assert not claim_folder(folder, ["a.json"], overwrite=False)
    (folder / "thesis.txt").write_text("")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"--out: .*out is not empty and holds no a\.json"):
            claim_folder(folder, ["a.json"], overwrite)
    with pytest.raises(UserError, match="is not empty, so it is not replaced"):
        claim_folder(folder, [], overwrite=True)
    (folder / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"--name: .*exists already. Use --overwrite .* or resume"):
        claim_folder(folder, ["a.json"], False, "--name", "resume")
    assert claim_folder(folder, ["a.json"], overwrite=True)
    with pytest.raises(UserError, match=r"thesis\.txt exists already. Use --overwrite"):
        claim_file(folder / "thesis.txt", overwrite=False)
    claim_file(folder / "thesis.txt", overwrite=True)


def test_a_record_names_the_settings_that_differ(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    settings = {"seed": 1, "size": (1, 2), "name": "a"}
    assert not open_record(folder, "record.json", settings, overwrite=False)
    assert open_record(folder, "record.json", settings, overwrite=False)
    changed = settings | {"seed": 2, "size": (1, 3)}
    for overwrite, fix in ((False, "Use --overwrite"), (None, "Choose another folder")):
        with pytest.raises(UserError, match=rf"\(seed 1 there, 2 now, size\)\. {fix}"):
            open_record(folder, "record.json", changed, overwrite)
    assert not open_record(folder, "record.json", changed, overwrite=True)

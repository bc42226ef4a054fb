"""Zips from somebody else: what is unsafe, foreign or damaged is never unpacked."""

from __future__ import annotations

import json
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from util.cli import UserError
from util.training.shared_runs import (
    FORMAT,
    MANIFEST,
    is_shared,
    open_shared,
    pack,
    shared_title,
    unpack,
    write_manifest,
)


@pytest.fixture
def run_zip(tmp_path: Path) -> Path:
    """A zip of two files as scripts/export.py packs them."""
    folder = tmp_path / "run"
    (folder / "latest").mkdir(parents=True)
    (folder / "options.json").write_text('{"run": {}}' * 50)
    (folder / "latest" / "G.safetensors").write_bytes(bytes(range(256)) * 20)
    write_manifest(folder, "run", 4)
    pack(folder, tmp_path / "run.zip")
    return tmp_path / "run.zip"


def rewrite(
    path: Path, change: Callable[[dict[str, bytes]], None], links: tuple[str, ...] = ()
) -> None:
    """Write the zip again with other files."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            if name in links:
                entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(entry, content)


def test_a_zip_is_unpacked_and_packed_to_the_same_bytes(run_zip: Path, tmp_path: Path) -> None:
    folder = open_shared(str(run_zip))
    assert folder.name == "run" and (folder / "latest" / "G.safetensors").stat().st_size == 5120
    pack(folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == run_zip.read_bytes()
    assert open_shared(str(run_zip)) == folder  # once per program
    assert is_shared(str(run_zip)) and is_shared(str(folder)) and not is_shared("run")
    assert shared_title("a/b/My run.zip") == "My_run" and open_shared(str(folder)) == folder


def manifest(format_: int) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        content = json.loads(files[MANIFEST]) | {"format": format_, "version": "9.9.9"}
        files[MANIFEST] = json.dumps(content).encode()

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update({"../evil.txt": b"x"}), r"'\.\./evil\.txt'.*out of its folder"),
        (lambda f: f.update({"/etc/evil": b"x"}), "out of its folder"),
        (lambda f: f.update({"a/../../b": b"x"}), "out of its folder"),
        (lambda f: f.update({"C:\\evil": b"x"}), "out of its folder"),
        (lambda f: f.update({"extra.py": b"x"}), r"does not list: extra\.py"),
        (lambda f: f.update({"options.json": b"{}"}), r"options\.json is damaged.*checksum"),
        (lambda f: f.pop("options.json"), r"incomplete: it lacks options\.json"),
        (lambda f: f.pop(MANIFEST), r"not a run that scripts/export\.py wrote"),
        (lambda f: f.update({MANIFEST: b"{"}), "damaged"),
        (lambda f: f.update({MANIFEST: b'{"format": 1}'}), "damaged"),
        (manifest(FORMAT + 1), rf"version 9\.9\.9 in format {FORMAT + 1}"),
    ],
)
def test_a_zip_that_is_not_as_exported_is_refused(
    run_zip: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    rewrite(run_zip, change)
    with pytest.raises(UserError, match=message):
        unpack(run_zip, tmp_path / "deep" / "out")
    assert not (tmp_path / "deep" / "out").exists() and not (tmp_path / "evil.txt").exists()


def test_links_bombs_and_damage_are_refused(run_zip: Path, tmp_path: Path) -> None:
    whole = run_zip.read_bytes()
    rewrite(run_zip, lambda f: f.update({"link": b"/etc/passwd"}), links=("link",))
    with pytest.raises(UserError, match="a link or no plain file"):
        unpack(run_zip, tmp_path / "out")
    with zipfile.ZipFile(run_zip, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"\0" * 10**7)
    with pytest.raises(UserError, match="would unpack to 10000000 bytes"):
        unpack(run_zip, tmp_path / "out")
    for damaged in (whole[:-60], b"not a zip", whole[:200] + b"\xff" * 99 + whole[299:]):
        run_zip.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read as a zip|is damaged"):
            unpack(run_zip, tmp_path / "out")
    with pytest.raises(UserError, match="not there"):
        open_shared(str(tmp_path / "none.zip"))
    assert not (tmp_path / "out").exists()

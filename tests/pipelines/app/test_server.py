"""The command of the live page: what it refuses before anything is loaded."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from pipelines.app import server
from tests.commands import TrainedRun, command, refused


def app(run: TrainedRun, *words: str) -> tuple[str, ...]:
    return "scripts/app.py", *run.flags(), "--no-open_browser", "--gpu_ids=-1", *words


def test_a_port_in_use_is_named(trained_run: TrainedRun) -> None:
    with socket.socket() as other:
        other.bind((server.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        done = command(*app(trained_run, "--port", str(port)))
    refused(done, f"--port {port} cannot be used", "another program has it", "--port ")


def free_port() -> str:
    with socket.socket() as free:
        free.bind((server.HOST, 0))
        return str(free.getsockname()[1])


def test_a_folder_that_cannot_be_written_is_named(trained_run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    words = ("--port", free_port(), "--work_dir", str(tmp_path / "file" / "folder"))
    refused(command(*app(trained_run, *words)), "file", "folder", "hoose another folder")


def test_a_folder_of_something_else_is_not_used(trained_run: TrainedRun, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    words = ("--port", free_port(), "--work_dir", str(tmp_path))
    refused(command(*app(trained_run, *words)), "--work_dir", "is not empty")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_missing_packages_are_named(
    trained_run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "gradio" else True)
    done = command(*app(trained_run, "--port", free_port()))
    refused(done, "gradio", "pip install -r requirements-app.txt")


def test_a_damaged_run_is_named(run_copy: TrainedRun) -> None:
    state = run_copy.folder / "latest" / "state.json"
    state.write_text(state.read_text()[:40])
    refused(command(*app(run_copy, "--port", free_port())), "state.json", "damaged")


def test_a_run_without_its_weights_is_named(run_copy: TrainedRun) -> None:
    state = json.loads((run_copy.folder / "latest" / "state.json").read_text())
    (
        run_copy.folder
        / "latest"
        / f"{'average' if 'average' in state['parts'] else 'G'}.safetensors"
    ).unlink()
    refused(command(*app(run_copy, "--port", free_port())), "safetensors")


def test_no_such_run(trained_run: TrainedRun, tmp_path: Path) -> None:
    words = ("--name", "nobody", "--checkpoints_dir", str(tmp_path))
    refused(command("scripts/app.py", *words), "nobody")

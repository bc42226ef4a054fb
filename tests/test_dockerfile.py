"""The Dockerfile by its contents: what it copies exists, and it can run the smoke demo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
INSTRUCTIONS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()
ALLOWED = [line[1:] for line in IGNORED if line.startswith("!")]


def arguments(name: str) -> list[str]:
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def environment() -> dict[str, str]:
    pairs: dict[str, str] = {}
    for line in arguments("ENV"):
        pairs |= dict(word.split("=", 1) for word in line.split())
    return pairs


def test_it_is_built_from_a_supported_python() -> None:
    (base,) = arguments("FROM")
    version = re.fullmatch(r"python:3\.(\d+)-slim", base)
    project = (ROOT / "pyproject.toml").read_text()
    assert version and 'requires-python = ">=3.10,<3.13"' in project
    assert 10 <= int(version[1]) < 13


def test_what_it_copies_exists_and_is_sent_to_docker() -> None:
    for copied in arguments("COPY"):
        for source in copied.split()[:-1]:
            assert (ROOT / source).exists(), source
            top = source.split("/")[0]
            assert top == "." or any(Path(top).match(pattern) for pattern in ALLOWED), source
    for pattern in ALLOWED:
        assert list(ROOT.glob(pattern)), pattern


def test_the_code_and_nothing_else_is_sent_to_docker() -> None:
    include = re.search(
        r"^include = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert include
    packages = set(re.findall(r'"(\w+)\*"', include[1]))
    assert len(packages) == 6
    assert packages | {"scripts", "train.py", "test.py", "constraints.txt"} <= set(ALLOWED)
    assert IGNORED[1] == "*"  # all that is not named stays outside
    assert not {"checkpoints", "results", "demo", ".venv", ".git", "tests"} & set(ALLOWED)
    assert {f"**/*{suffix}" for suffix in (".nii.gz", ".dcm", ".mha", ".nrrd")} <= set(IGNORED)


def test_the_demo_finds_its_environment_and_its_folders() -> None:
    """demo.sh takes VENV, finds it installed, and writes below the project as another user."""
    values = environment()
    demo = (ROOT / "scripts" / "demo.sh").read_text()
    setup = (ROOT / "scripts" / "setup_env.sh").read_text()
    assert "${VENV:-.venv}" in demo and "${VENV:-.venv}" in setup
    assert values["PATH"].startswith(f"{values['VENV']}/bin:")
    assert values["PIP_EXTRA_INDEX_URL"].endswith("/whl/cpu")
    assert any("setup_env.sh requirements.txt" in line for line in arguments("RUN"))
    written = next(line for line in arguments("RUN") if "chown" in line)
    assert all(folder in written.split() for folder in ("checkpoints", "results", "demo"))
    assert arguments("WORKDIR") == ["/opt/mask2ct"] and arguments("USER") == ["mask2ct"]
    assert values["HF_HUB_OFFLINE"] == values["HF_HUB_DISABLE_TELEMETRY"] == "1"


@pytest.mark.parametrize("script", ["scripts/demo.sh", "test.py"])
def test_the_commands_that_it_names_exist(script: str) -> None:
    assert any(script in line for line in LINES if line.startswith("#"))
    assert (ROOT / script).is_file()

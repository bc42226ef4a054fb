"""Answers of a command line at once: help, misspelt and removed flags, missing inputs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

import train
from options.atlas_options import AtlasCommand
from options.base_options import DataOptions
from options.parser import build_parser, check_inputs, parse, parse_command
from options.train_options import PRESETS, TrainOptions
from options.usage import check_input
from tests.commands import ROOT, program
from tests.test_readme import commands
from util.cli import UserError, suggestion, unknown_column

BENCHMARKS = [p for p in ROOT.glob("benchmarks/*.py") if "answer_early(" in p.read_text()]
COMMANDS = [
    "train.py",
    "test.py",
    *sorted(f"scripts/{path.name}" for path in ROOT.glob("scripts/*.py")),
    *sorted(f"benchmarks/{path.name}" for path in BENCHMARKS),
]
SLOW = ("torch", "monai", "transformers", "pandas", "scipy", "SimpleITK", "nibabel", "matplotlib")
# Runs every command with the words, and writes how it ended and what it imported.
PROBE = """
import json, runpy, sys
results = {}
for name in json.loads(sys.argv[1]):
    sys.argv = [name, *WORDS]
    try:
        runpy.run_path(name, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    results[name] = [code, [package for package in SLOW if package in sys.modules]]
    for package in SLOW:
        sys.modules.pop(package, None)
print("PROBE", json.dumps(results))
"""


@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], 0), (["--outt", "x"], 2), (["--dataroot", "/nowhere"], 2)]
)
def test_commands_answer_before_slow_imports(words: list[str], code: int) -> None:
    probe = PROBE.replace("WORDS", repr(words)).replace("SLOW", repr(SLOW))
    done = program("-c", probe, json.dumps(COMMANDS))
    results = json.loads(done.text.partition("PROBE ")[2].splitlines()[0])
    assert results == {name: [code, []] for name in COMMANDS}, done.text


def test_a_run_that_is_missing_is_found_before_slow_imports(tmp_path: Path) -> None:
    words = ["--name", "nobody", "--dataroot", str(tmp_path), "--checkpoints_dir", str(tmp_path)]
    probe = PROBE.replace("WORDS", repr(words)).replace("SLOW", repr(SLOW))
    done = program("-c", probe, json.dumps(["test.py", "scripts/refit.py"]))
    assert done.text.count("there is no run") == 2, done.text
    assert '"test.py": [2, []]' in done.text and '"scripts/refit.py": [2, []]' in done.text


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--presett", "cpu"], ["--presett is not a flag", "Did you mean --preset?"]),
        (["--no-skipp"], ["Did you mean --no-skip"]),
        (["--Lambda_Gan=3"], ["Did you mean --lambda_gan?"]),
        (["--qqqq", "3", "--nameX=4"], ["--qqqq is not a flag of", "Did you mean --name"]),
        (["word"], ["does not take 'word'", "--help"]),
        (["--norm", "batchnorm"], ["one of: layer", "Did you mean batch?"]),
    ],
)
def test_misspelt_words(words: list[str], parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse(TrainOptions, "", words, PRESETS)
    assert all(part in str(error.value) for part in parts), error.value


def test_nothing_is_suggested_where_nothing_is_near() -> None:
    assert suggestion("qqqq", ["name", "preset"]) == ""


def test_removed_flags_name_what_replaces_them() -> None:
    with pytest.raises(UserError, match=r"--vessel_hu was removed\. The atlas measures all voxels"):
        parse(AtlasCommand, "", ["--vessel_hu", "150"])


def test_help_names_required_flags_presets_and_an_example() -> None:
    text = build_parser(TrainOptions, "Train.", PRESETS).format_help()
    flags = " ".join(text.split())
    for name in TrainOptions.REQUIRED:
        assert f"--{name} TEXT" in flags
    assert flags.count("[required]") == len(TrainOptions.REQUIRED)
    for name, values in PRESETS.items():
        assert f"--preset {name}: " in flags
        assert all(f"--{flag} " in flags.partition(f"--preset {name}: ")[2] for flag in values)
    assert f"Example: {TrainOptions.EXAMPLE}" in flags


@pytest.mark.parametrize(
    ("words", "steps"),
    [("", 1200), ("--model diffusion", 3000), ("--model diffusion --max_steps 7", 7)],
)
def test_a_preset_may_depend_on_the_model(words: str, steps: int) -> None:
    options = train.read_options(["--dataroot", ".", "--preset", "cpu", *words.split()])
    assert options.optim.max_steps == steps
    assert options.generator.ngf == PRESETS["cpu"]["ngf"]


def test_examples_and_required_flags_are_of_their_commands() -> None:
    """An example that could not be typed would be worse than none."""
    checked = 0
    for cls in commands():
        if example := getattr(cls, "EXAMPLE", ""):
            typed = example.partition(" < ")[0]  # a shell reads what follows
            options: Any = parse(cls, "", shlex.split(typed)[2:], PRESETS)
            for name in getattr(cls, "REQUIRED", ()):
                groups = [options, *vars(options).values()]
                assert any(getattr(group, name, None) for group in groups), (cls, name)
            checked += 1
    assert checked >= 16


def test_required_flags_and_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--name is not given\. It is needed: Name of the run"):
        check_inputs(TrainOptions())
    table = tmp_path / "words.yaml"
    words = ["--name", "r", "--dataroot", str(tmp_path), "--template", str(table)]
    with pytest.raises(UserError, match=r"--template .*words.yaml is not a folder or a file"):
        parse_command(TrainOptions, "", words)
    table.touch()
    assert parse_command(TrainOptions, "", words).data == DataOptions(
        dataroot=str(tmp_path), template=str(table)
    )


@pytest.mark.parametrize("value", ["", "cohort", "hub:org/model", "auto"])
def test_names_that_are_no_paths_pass(value: str) -> None:
    check_input("--text_encoder", "name or path", value, "")


@pytest.mark.parametrize("value", ["no/folder", "medclip:no/file.bin", "osic.yml"])
def test_paths_in_place_of_names_must_exist(value: str) -> None:
    with pytest.raises(UserError, match="is not a folder or a file"):
        check_input("--text_encoder", "name or path", value, "")


def test_an_unknown_column_is_answered_with_the_near_one() -> None:
    message = unknown_column("--vary: the table", "SMOKNG HISTORY", ["AGE", "SMOKING HISTORY"])
    assert message == (
        "--vary: the table has no column 'SMOKNG HISTORY'; it has: AGE, SMOKING HISTORY. "
        "Did you mean SMOKING HISTORY? Correct the name."
    )
    asked = unknown_column("--vary: the table", "Smoker", ["Smoker?"])
    assert "Did you mean 'Smoker?'? Correct" in asked
    assert unknown_column("a.csv", "X", [], "Add it.").endswith("it has: none. Add it.")

"""The flags, files and commands that README, docs and scripts name exist."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from data.text.prompts import load_template
from options.parser import is_group, parse
from options.train_options import PRESETS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
# Flags of hf, sbatch, torchrun, pip, docker, monai.bundle and generators of benchmarks/standard.
FOREIGN_FLAGS = {
    "rm",
    "config_file",
    "bundle_root",
    "output",
    "local-dir",
    "nodes",
    "gpus-per-node",
    "nproc_per_node",
    "no-build-isolation",
    "minutes",
}


def commands() -> list[type]:
    """Return the option classes of all commands, of which some are groups of others."""
    classes: list[type] = []
    for path in sorted((ROOT / "options").rglob("*.py")):
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for cls in vars(module).values():
            if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
                continue
            if all({"help", "title"} & {*field.metadata} for field in dataclasses.fields(cls)):
                classes.append(cls)
    return classes


def flags() -> set[str]:
    names = {"preset", "help"}
    for cls in filter(is_group, commands()):
        for field in dataclasses.fields(cls):
            names |= {field.name, f"no-{field.name}"}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_that_pages_name(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", page.read_text(encoding="utf-8")))
    assert named
    assert sorted(named - flags() - FOREIGN_FLAGS) == []


def typed(text: str, programs: set[str]) -> list[tuple[str, list[str]]]:
    """Return program and words of every command of the project in the blocks of a page."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            found += [(word, words[i + 1 :]) for i, word in enumerate(words) if word in programs]
    return found


def test_commands_of_pages_can_be_typed() -> None:
    """Each flag is one of the command that a page gives it to, with a value that it takes."""
    options = {
        example.split()[1]: cls for cls in commands() if (example := getattr(cls, "EXAMPLE", ""))
    }
    checked = set()
    for page in PAGES:
        for name, words in typed(page.read_text(encoding="utf-8"), {*options}):
            parse(options[name], "", words, PRESETS if name == "train.py" else None)
            checked.add(name)
    assert {"train.py", "test.py"} < checked and len(checked) >= 18


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", LINKING, ids=lambda p: p.name)
def test_links_lead_to_headings(page: Path) -> None:
    for file, anchor in re.findall(
        r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text(encoding="utf-8")
    ):
        assert anchor in anchors(page.parent / file if file else page), f"{file}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_pages_name(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    code = re.findall(
        r"\b(?:data|models|options|pipelines|benchmarks|util|scripts|docs)/[\w/]+"
        r"\.(?:py|sh|yaml|md)\b",
        text,
    )
    assert all((page.parent / link).is_file() for link in links)
    assert all((ROOT / path).is_file() for path in code)


def test_presets_are_named() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in PRESETS)


def test_the_example_prompt() -> None:
    row = {
        "Patient": "P01",
        "DIAGNOSIS": "IPF",
        "AGE": "76",
        "SEX": "F",
        "SMOKING HISTORY": "Never smoker",
    }
    sentence = load_template("aiib23", list(row)).phrases(row).sentence
    assert f"> {sentence}\n" in PAGES[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_and_name_flags_that_exist(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text(encoding="utf-8")
    ours = "\n".join(
        re.findall(r"(?:train|test|make_phantoms|pretrain_clip)\.py.*(?:\\\n.*)*", text)
    )
    assert not set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", ours)) - flags() - FOREIGN_FLAGS


def test_launch_scripts_refuse_what_is_wrong() -> None:
    for words, part in (
        (["train_multi_gpu.sh", "many"], "number of GPUs"),
        (["train_slurm.sh"], "sbatch"),
    ):
        done = subprocess.run(
            ["bash", f"scripts/{words[0]}", *words[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2 and part in done.stderr
    done = subprocess.run(
        ["bash", "scripts/setup_env.sh"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"VENV": "no/such/folder", "PYTHON": "no-such-python", "PATH": "/usr/bin:/bin"},
    )
    assert (
        done.returncode == 2 and "3.10, 3.11 or 3.12" in done.stderr and not (ROOT / "no").exists()
    )

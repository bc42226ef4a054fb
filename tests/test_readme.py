"""What the README and the scripts tell a user to type exists."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from pathlib import Path

import pytest

from data.text.prompts import load_template
from options.anomaly_options import AnomalyCommand as UnusualOptions
from options.atlas_options import AtlasCommand, RefitCommand
from options.autoencoder_options import AutoencoderCommand as AutoencoderOptions
from options.benchmark_options import AtlasBenchmarkCommand as AtlasBenchmarkOptions
from options.benchmark_options import EffectsBenchmarkCommand as BenchmarkOptions
from options.benchmark_options import ExpandBenchmarkCommand as ExpandBenchmarkOptions
from options.benchmark_options import PrepareBenchmarkCommand as PrepareBenchmarkOptions
from options.clip_options import ClipCommand as ClipOptions
from options.compare_options import CompareCommand as CompareOptions
from options.control_options import ControlCommand as ControlOptions
from options.evaluate_options import EvaluateOptions
from options.expand_options import ExpandCommand as ExpandOptions
from options.parser import groups_of
from options.phantom_options import PhantomCommand as PhantomOptions
from options.plant_options import PlantCommand as PlantOptions
from options.prepare_options import PrepareCommand as PrepareOptions
from options.prompt_options import PromptCommand as PromptOptions
from options.test_options import TestOptions as OptionsOfTest
from options.train_options import PRESETS, TrainOptions
from options.utility_options import UtilityCommand as UtilityOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]
COMMANDS = (
    TrainOptions,
    OptionsOfTest,
    BenchmarkOptions,
    PhantomOptions,
    PromptOptions,
    ClipOptions,
    AtlasCommand,
    RefitCommand,
    PlantOptions,
    PrepareOptions,
    PrepareBenchmarkOptions,
    ExpandOptions,
    UnusualOptions,
    UtilityOptions,
    EvaluateOptions,
    ControlOptions,
    CompareOptions,
    AutoencoderOptions,
    AtlasBenchmarkOptions,
    ExpandBenchmarkOptions,
)
OTHERS = {
    "local-dir",
    "nodes",
    "gpus-per-node",
    "nproc_per_node",
}  # flags of hf, sbatch and torchrun


def flags() -> set[str]:
    fields = [
        f
        for command in COMMANDS
        for _, group in groups_of(command)
        for f in dataclasses.fields(group)
    ]
    return {f.name for f in fields} | {f"no-{f.name}" for f in fields} | {"preset", "help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_that_pages_name(page: Path) -> None:
    named = set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", page.read_text(encoding="utf-8")))
    assert named
    assert sorted(named - flags() - OTHERS) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_pages_name(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [
        link
        for link in re.findall(r"\]\(([^)#]+)\)", text)
        if "://" not in link and not link.endswith(".png")
    ]
    code = re.findall(
        r"\b(?:data|models|options|util|scripts|docs)/[\w/]+\.(?:py|sh|yaml|md)\b", text
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
    made = load_template("aiib23", list(row)).phrases(row).sentence
    assert f"> {made}\n" in PAGES[0].read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_valid_and_name_flags_that_exist(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text(encoding="utf-8")
    ours = "\n".join(
        re.findall(r"(?:train|test|make_phantoms|pretrain_clip)\.py.*(?:\\\n.*)*", text)
    )
    assert not set(re.findall(r"(?<![\w-])--([A-Za-z][\w-]*)", ours)) - flags() - OTHERS


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

"""The order of the layers, and habits that a linter does not check."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# What each layer may import, from the ground up.
LAYERS = {
    "util": {"util"},
    "options": {"options", "util"},
    "data": {"data", "options", "util"},
    "models": {"models", "options", "util"},
    "pipelines": {"pipelines", "models", "data", "options", "util"},
}
TOP = ("scripts", "benchmarks", "mask2ct")
PROJECT = {*LAYERS, *TOP, "tests", "train", "test"}
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in [
        *ROOT.glob("*.py"),
        *(p for folder in (*LAYERS, *TOP) for p in (ROOT / folder).rglob("*.py")),
    ]
)
LAYERED = [path for path in SOURCES if path.parts[0] in LAYERS]


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in SOURCES}


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, anywhere in it; a package's member counts as itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the layer"
            for name in node.names:
                member = f"{node.module}.{name.name}"
                yield member if member in MODULES else str(node.module)


def packages(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imported(tree)}


def test_the_walk_finds_the_project() -> None:
    assert {path.parts[0] for path in LAYERED} == set(LAYERS)
    tree = ast.parse("def f():\n    import models.base_model\n    from data import cohort")
    assert set(imported(tree)) == {"models.base_model", "data.cohort"}


@pytest.mark.parametrize("path", LAYERED, ids=str)
def test_no_import_runs_up(path: Path) -> None:
    wrong = (packages(parsed(path)) & PROJECT) - LAYERS[path.parts[0]]
    assert not wrong, f"{path} imports {wrong}"


def test_no_two_files_import_each_other() -> None:
    graph = {module_name(p): set(imported(parsed(p))) & MODULES for p in SOURCES}
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in finished:
            for other in sorted(graph[module]):
                visit(other, [*path, module])
            finished.add(module)

    for module in graph:
        visit(module, [])


@pytest.mark.parametrize("path", LAYERED, ids=str)
def test_packages_log_and_never_print(path: Path) -> None:
    calls = {
        node.func.id
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "print" not in calls


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_flags_are_declared_in_options_alone(path: Path) -> None:
    if path.parts[0] == "options":
        return
    calls = {
        node.func.id
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    names = {
        name.name
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.module == "options.parser"
        for name in node.names
    }
    assert not calls & names & {"flag", "path_flag", "argument", "group"}

"""The order of the layers, and habits that a linter does not know."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {
    "util": {"util"},
    "options": {"options", "util"},
    "data": {"data", "options", "util"},
    "models": {"models", "options", "util"},
}
OURS = {*LAYERS, "scripts", "tests", "train", "test"}
LONGEST = 320
SOURCES = sorted(
    path.relative_to(ROOT)
    for path in [
        *ROOT.glob("*.py"),
        *(p for d in (*LAYERS, "scripts", "tests") for p in (ROOT / d).rglob("*.py")),
    ]
)
LAYERED = [path for path in SOURCES if path.parts[0] in LAYERS]


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the layer"
            yield (node.module or "").split(".")[0]


def parsed(path: Path) -> ast.AST:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def test_the_walk_finds_the_project() -> None:
    assert {path.parts[0] for path in LAYERED} == set(LAYERS)
    assert set(imported(ast.parse("def f():\n    import models.base\n    from data import x"))) == {
        "models",
        "data",
    }


@pytest.mark.parametrize("path", LAYERED, ids=str)
def test_layers(path: Path) -> None:
    wrong = (set(imported(parsed(path))) & OURS) - LAYERS[path.parts[0]]
    assert not wrong, f"{path} imports {wrong}"


@pytest.mark.parametrize("path", LAYERED, ids=str)
def test_packages_log_and_never_print(path: Path) -> None:
    calls = [
        node.func.id
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "print" not in calls


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_stay_short(path: Path) -> None:
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= LONGEST

"""The benchmark of intervals: parts, resuming, its table, and a small version without training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import coverage as benchmark
from benchmarks.coverage import Piece, pieces, summary
from options.benchmarks.statistics import CoverageBenchmarkOptions
from util.cli import UserError

SMALL = ("--cases", "26", "--test_cases", "2", "--size", "24,24,16", "--seeds", "1")


def test_parts_divide_the_pieces() -> None:
    o = CoverageBenchmarkOptions(OUT="x")
    every = pieces(o)
    assert len(every) == 12 and len(set(every)) == 12  # 2 groups, 3 seeds, 2 sides
    parts = [pieces(CoverageBenchmarkOptions(OUT="x", part=f"{k}/5")) for k in range(1, 6)]
    assert sorted(p.name for part in parts for p in part) == sorted(p.name for p in every)
    (only,) = pieces(
        CoverageBenchmarkOptions(OUT="x", groups=("sparse",), seeds=(4,), side="scans")
    )
    assert only == Piece("sparse", 4, "scans")


def test_the_table_counts_by_side_and_kind_and_names_what_is_missed() -> None:
    common = {"group": "texture", "seed": 1, "column": "X", "outcome": "mean", "region": "lungs"}
    numbers = {"truth": 1.0, "estimate": 5.0, "low": 4.0, "high": 6.0}
    rows = [
        {**common, **numbers, "side": "scans", "kind": kind, "holds": holds}
        for kind, holds in (("texture", True), ("texture", False), ("dense", True))
    ]
    text = summary(rows)
    assert (
        "| scans | texture | 1 | 2 | 0.50 |" in text and "| scans | dense | 1 | 1 | 1.00 |" in text
    )
    assert "| scans | all | 2 | 3 | 0.67 |" in text
    means = "| scans | X | mean | lungs | 3 | 1.00 | 5.00 | 4.00 | 6.00 | 1.00 | 2 |"
    assert means in text
    assert text.count("| X |") == 2 and "No piece" in summary([])


def test_scans_of_a_small_cohort_and_a_second_start(tmp_path: Path) -> None:
    words = [str(tmp_path), *SMALL, "--groups", "texture", "--side", "scans"]
    benchmark.main(words)
    path = tmp_path / "pieces" / "texture_seed1_scans.json"
    rows = json.loads(path.read_text())["rows"]
    assert {row["column"] for row in rows} == {"RETICULATION", "EMPHYSEMA", "SMOKER"}
    smoker = next(row for row in rows if (row["column"], row["region"]) == ("SMOKER", "upper"))
    assert smoker["kind"] == "dense" and smoker["truth"] > 20 and smoker["holds"]
    texture = [row for row in rows if row["outcome"] == "detail_sd"]
    assert len(texture) == 2 and all(row["truth"] > 1 for row in texture)
    assert all(row["low"] < row["estimate"] < row["high"] for row in rows)
    before = path.stat().st_mtime_ns
    (tmp_path / "tables.md").unlink()
    benchmark.main(words)
    assert path.stat().st_mtime_ns == before  # finished pieces are kept, and the table renewed
    assert "| scans | all |" in (tmp_path / "tables.md").read_text()


def test_bad_input(tmp_path: Path) -> None:
    for words, message in (
        (["--groups", "nothing"], "--groups is 'nothing'.*texture"),
        (["--part", "3/2"], "--part is '3/2'"),
    ):
        with pytest.raises(UserError, match=message):
            benchmark.main([str(tmp_path), *words])

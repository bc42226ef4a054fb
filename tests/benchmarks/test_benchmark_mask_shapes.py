"""The benchmark of drawn masks: a tiny run of it."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import mask_shapes


def test_drawn_and_retrieved_masks_stand_beside_any_mask(tmp_path: Path) -> None:
    words = ["--cases", "16", "--size", "28,24,20", "--patient_sd", "0", "--seeds", "4"]
    mask_shapes.main([str(tmp_path), *words, "--draws", "0", "--retrieved", "6"])
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(f["sex"], f["height_cm"]) for f in figures] == [
        (sex, height) for sex, heights in mask_shapes.HEIGHTS.items() for height in heights
    ]
    mean = {
        name: sum(abs(f[name]) for f in figures)
        for name in ("error_by_row", "error_by_text", "error_without_row")
    }
    assert max(mean["error_by_row"], mean["error_by_text"]) < 0.8 * mean["error_without_row"]
    text = (tmp_path / "table.md").read_text()
    assert "retrieved by text" in text and "drawn, ml" not in text
    for f in figures:
        f |= dict.fromkeys(("drawn_ml", "spread", "nearest_mask", "copy_below"), 1.0)
        f |= {"error": 0.07, "plausible_at_once": 1, "rejected": 0, "patients_apart": 0.1}
    assert "drawn 7.0%, retrieved" in mask_shapes.figures_table(figures)

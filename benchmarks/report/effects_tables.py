"""Tables of the proof on planted truth, from its finished cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

REGIONS = ("lungs", "upper", "middle", "lower", "rim", "core")
KIND = ["cell", "cases", "patient SD"]  # what sets a cell apart from others, its seed left out
SMALL = "error where truth < 5 HU"
ALLOWED = (0.1, 3.0)  # share of the truth and HU by which a network may miss what the oracle finds

Cell = Mapping[str, Any]


def kind(cell: Cell) -> dict[str, str]:
    """The columns of `KIND`; a tag and confounding go with the name."""
    more = [cell.get("tag", "").strip("_")] + (
        [f"confounding {cell['confounding']:g}"] if cell.get("confounding") else []
    )
    named = ", ".join([cell["cell"], *filter(None, more)])
    return dict(zip(KIND, (named, str(cell["cases"]), f"{cell['patient_sd']:g}"), strict=True))


def slope_frame(cells: Sequence[Cell], real: Sequence[str]) -> pd.DataFrame:
    """A row for each cell and attribute with an effect: slopes by region, signs, errors where the
    truth is small.
    """
    rows = []
    for c in cells:
        for attribute in real:
            of = c["effects"][attribute]
            small = [f["small_error"] for r, f in of.items() if r in REGIONS and "small_error" in f]
            rows.append(
                {
                    **kind(c),
                    "attribute": attribute,
                    "seed": str(c["seed"]),
                    **{r: of.get(r, {}).get("slope") for r in REGIONS},
                    "signs right": of["lungs"].get("signs_right"),
                    SMALL: max(small, default=None),
                }
            )
    return pd.DataFrame(rows).astype(dict.fromkeys([*REGIONS, "signs right", SMALL], float))


def known_frame(cells: Sequence[Cell], real: Sequence[str]) -> pd.DataFrame:
    """What a regression finds in the rows as training sees them, as `slope_frame`: a row for each
    cohort and attribute.
    """
    rows = {}
    for c in cells:
        for attribute in real:
            cohort = {
                "cases": str(c["cases"]),
                "patient SD": f"{c['patient_sd']:g}",
                "confounding": f"{c.get('confounding', 0):g}",
                "attribute": attribute,
                "seed": str(c["seed"]),
            }
            of = c.get("incomplete", {}).get(attribute, {})
            rows[tuple(cohort.values())] = {
                **cohort,
                **{r: of.get(r) for r in REGIONS},
                SMALL: c.get("incomplete_small", {}).get(attribute),
            }
    return pd.DataFrame(list(rows.values())).astype(dict.fromkeys([*REGIONS, SMALL], float))


def contrast_frame(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row for each cell and pair of values, HU in the lungs: generated, truth, oracle, and what
    the training rows tell.
    """
    rows = []
    for c in cells:
        for attribute, by_region in c["effects"].items():
            for pair, (made, true) in by_region["lungs"]["pairs"].items():
                name = f"{attribute}: {pair}"
                oracle = c["oracle"][name]
                rows.append(
                    {
                        **kind(c),
                        "contrast": name,
                        "seed": str(c["seed"]),
                        "generated": made,
                        "truth": true,
                        "oracle": oracle,
                        "incomplete rows": c.get("known", {}).get(name),
                        "off the oracle": abs(made - oracle),
                        "allowed": ALLOWED[0] * abs(true) + ALLOWED[1],
                    }
                )
    return pd.DataFrame(rows).astype({"incomplete rows": float})


def control_frame(cells: Sequence[Cell], null: str) -> pd.DataFrame:
    """A row a cell: what must not change, ages never seen, texture, and minutes."""
    rows = []
    for c in cells:
        text = c.get("text", {})
        rows.append(
            {
                **kind(c),
                "seed": str(c["seed"]),
                "no effect, HU": c["effects"][null]["lungs"]["mean_abs"],
                "outside, HU": max(of["outside"]["mean_abs"] for of in c["effects"].values()),
                "re-worded, HU": text.get("re-worded", {}).get("mean_abs"),
                "re-ordered, HU": text.get("re-ordered", {}).get("mean_abs"),
                "unseen ages, slope": text.get("unseen_ages", {}).get("slope"),
                "voxel error": c["mae_ratio"],
                "SD": c["sd_ratio"],
                "W1": c["w1_hu"] / c["w1_floor_hu"],
                "minutes": (c["train_seconds"] + c["encoder_seconds"]) / 60,
            }
        )
    frame = pd.DataFrame(rows)
    numbers = [c for c in frame.columns if c not in (*KIND, "seed")]
    return frame.astype(dict.fromkeys(numbers, float))


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds; `seed` becomes the number of `seeds`."""
    keys = [c for c in frame.select_dtypes(exclude="number").columns if c != "seed"]
    groups = frame.groupby(keys, sort=False)
    means = groups.mean(numeric_only=True).reset_index()
    means.insert(len(keys), "seeds", groups["seed"].nunique().to_numpy())
    return means


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table; numbers with two decimals, absent ones as a dash."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return "–" if pd.isna(value) else f"{value:.2f}"
        return str(value)

    lines = [
        list(frame.columns),
        ["---"] * len(frame.columns),
        *([text(v) for v in row] for row in frame.to_numpy(object)),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""Tables of the effects benchmark on planted truth, from its finished configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

REGIONS = ("lungs", "upper", "middle", "lower", "rim", "core")
# What sets a configuration apart from others, its seed left out.
CONFIGURATION_COLUMNS = ["configuration", "cases", "patient SD"]
SMALL_ERROR = "error where truth < 5 HU"
ORACLE_TOLERANCE = (0.1, 3.0)  # share of the truth, and HU, that a network may be off the oracle

Configuration = Mapping[str, Any]


def configuration_columns(configuration: Configuration) -> dict[str, str]:
    """Return the values of `CONFIGURATION_COLUMNS`; the name holds tag and confounding."""
    names = [configuration["cell"], configuration.get("tag", "").strip("_")]
    if configuration.get("confounding"):
        names.append(f"confounding {configuration['confounding']:g}")
    return {
        "configuration": ", ".join(filter(None, names)),
        "cases": str(configuration["cases"]),
        "patient SD": f"{configuration['patient_sd']:g}",
    }


def _frame(rows: Sequence[Mapping[str, Any]], numbers: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def slope_frame(configurations: Sequence[Configuration], real: Sequence[str]) -> pd.DataFrame:
    """Return slopes by region, signs, and errors where the truth is small.

    Returns:
        A row per configuration and attribute.
    """
    rows = []
    for configuration in configurations:
        for attribute in real:
            effects = configuration["effects"][attribute]
            errors = [effects[r].get("small_error") for r in REGIONS if r in effects]
            row: dict[str, Any] = configuration_columns(configuration)
            row |= {"attribute": attribute, "seed": str(configuration["seed"])}
            row |= {region: effects.get(region, {}).get("slope") for region in REGIONS}
            row["signs right"] = effects["lungs"].get("signs_right")
            row[SMALL_ERROR] = max((e for e in errors if e is not None), default=None)
            rows.append(row)
    return _frame(rows, [*REGIONS, "signs right", SMALL_ERROR])


def incomplete_frame(configurations: Sequence[Configuration], real: Sequence[str]) -> pd.DataFrame:
    """Return what a regression finds in the rows as training sees them, as `slope_frame`.

    Returns:
        A row per cohort and attribute.
    """
    rows = {}
    for configuration in configurations:
        for attribute in real:
            cohort = {
                "cases": str(configuration["cases"]),
                "patient SD": f"{configuration['patient_sd']:g}",
                "confounding": f"{configuration.get('confounding', 0):g}",
                "attribute": attribute,
                "seed": str(configuration["seed"]),
            }
            row: dict[str, Any] = dict(cohort)
            slopes = configuration.get("incomplete", {}).get(attribute, {})
            row |= {region: slopes.get(region) for region in REGIONS}
            row[SMALL_ERROR] = configuration.get("incomplete_small", {}).get(attribute)
            rows[tuple(cohort.values())] = row
    return _frame(list(rows.values()), [*REGIONS, SMALL_ERROR])


def pair_frame(configurations: Sequence[Configuration]) -> pd.DataFrame:
    """Return effects in the lungs in HU: generated, true, and by regressions.

    Returns:
        A row per configuration and pair of values.
    """
    share, least = ORACLE_TOLERANCE
    rows = []
    for configuration in configurations:
        for attribute, by_region in configuration["effects"].items():
            for pair, (generated, true) in by_region["lungs"]["pairs"].items():
                name = f"{attribute}: {pair}"
                oracle = configuration["oracle"][name]
                rows.append(
                    {
                        **configuration_columns(configuration),
                        "contrast": name,
                        "seed": str(configuration["seed"]),
                        "generated": generated,
                        "truth": true,
                        "oracle": oracle,
                        "incomplete rows": configuration.get("known", {}).get(name),
                        "off the oracle": abs(generated - oracle),
                        "allowed": share * abs(true) + least,
                    }
                )
    return _frame(rows, ["incomplete rows"])


def control_frame(configurations: Sequence[Configuration], null: str) -> pd.DataFrame:
    """Return what must not change, ages never seen, fidelity, and minutes.

    Args:
        configurations: Metrics of finished configurations.
        null: The column without effect.

    Returns:
        A row per configuration.
    """
    rows = []
    for configuration in configurations:
        effects = configuration["effects"]
        text = configuration.get("text", {})
        seconds = configuration["train_seconds"] + configuration["encoder_seconds"]
        numbers = {
            "no effect, HU": effects[null]["lungs"]["mean_abs"],
            "outside, HU": max(by_region["outside"]["mean_abs"] for by_region in effects.values()),
            "re-worded, HU": text.get("re-worded", {}).get("mean_abs"),
            "re-ordered, HU": text.get("re-ordered", {}).get("mean_abs"),
            "unseen ages, slope": text.get("unseen_ages", {}).get("slope"),
            "voxel error": configuration["mae_ratio"],
            "SD": configuration["sd_ratio"],
            "W1": configuration["w1_hu"] / configuration["w1_floor_hu"],
            "minutes": seconds / 60,
        }
        columns = configuration_columns(configuration)
        rows.append({**columns, "seed": str(configuration["seed"]), **numbers})
    return _frame(rows, list(numbers) if rows else [])


def mean_over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds; `seed` becomes the number of `seeds`."""
    keys = [name for name in frame.select_dtypes(exclude="number").columns if name != "seed"]
    groups = frame.groupby(keys, sort=False)
    means = groups.mean(numeric_only=True).reset_index()
    means.insert(len(keys), "seeds", groups["seed"].nunique().to_numpy())
    return means

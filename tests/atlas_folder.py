"""A small atlas written by hand: one patient, three diagnoses and two ages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from options.base_options import DataOptions
from pipelines.atlas import files
from pipelines.atlas.statistics.additivity import ADDITIVITY_COLUMNS
from pipelines.atlas.statistics.adjustment import Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.findings import FINDING_COLUMNS, TEST_COLUMNS
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.population import FRAME, PopulationMap
from pipelines.atlas.statistics.tables import contrast_frame

CASE, SHAPE, SPACING = "patient <1>", (24, 20, 18), (8.0, 8.0, 12.0)
DIAGNOSIS = AtlasAttribute("DIAGNOSIS", "exposure", "category", ("HP", "IPF", "CTD-ILD"), {}, "")
AGE = AtlasAttribute("AGE", "demographic", "number", ("45", "80"), {}, "years")
CONTRASTS = [c for a in (DIAGNOSIS, AGE) for c in contrasts_of(a)]
OTHERS = (
    AtlasAttribute("SEX", "demographic", "category", ("Female", "Male"), {}),
    AtlasAttribute("KERNEL", "acquisition", "category", ("soft", "sharp"), {}),
    AtlasAttribute("FVC", "mediator", "number", ("60", "90"), {}),
    AtlasAttribute("DEAD", "outcome", "category", ("No", "Yes"), {}),
)
ROLES = Roles({a.column: a for a in (DIAGNOSIS, AGE, *OTHERS)}, frozenset(), "DIAGNOSIS")
LOWER_HU, AGE_HU = 50.0, -20.0  # IPF in the lower thirds; all of both lungs from 45 to 80 years
SENTENCE = (
    "IPF against HP: -4.0 HU in both lungs; the real scans are inconclusive. Not judged: too few."
)


def lungs() -> NDArray[np.uint8]:
    """Two ellipsoids; the left one (label 1) at low x."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    mask = np.zeros(SHAPE, np.uint8)
    for label, centre in ((1, -0.5), (2, 0.5)):
        mask[((x - centre) / 0.42) ** 2 + (y / 0.8) ** 2 + (z / 0.9) ** 2 < 1] = label
    return mask


def volumes() -> dict[str, NDArray[np.int16]]:
    """The factual volume (HP, 60 years), and every variant."""
    mask = lungs()
    factual = np.where(mask > 0, -850, 40).astype(np.int16)
    heights = np.flatnonzero((mask > 0).any((0, 1)))
    lower = (mask > 0) & (np.arange(SHAPE[2]) < heights[0] + len(heights) / 3)[None, None]
    ipf = factual + np.where(lower, LOWER_HU, 0).astype(np.int16)
    age = np.where(mask > 0, AGE_HU / 2, 0).astype(np.int16)
    return {
        "own": factual,
        "HP": factual,
        "IPF": ipf,
        "CTD-ILD": factual,
        "45": factual - age,
        "80": factual + age,
        "other noise": factual + np.where(mask == 1, 2, 0).astype(np.int16),
    }


def tests_table(refits: bool) -> pd.DataFrame:
    """Return tests.csv for the lungs and their lower thirds.

    With refits the change of age is a finding.
    """
    rows = []
    for contrast in CONTRASTS:
        is_finding = refits and contrast.column == "AGE" and contrast.kind != "slope"
        places = [(MEAN, region) for region in ("lungs", "lower", "outside")]
        for outcome, region in [*places, ("share_below_950", "lungs")]:
            in_lungs = region == "lungs"
            rows.append(
                {
                    "contrast": contrast.id,
                    "column": contrast.column,
                    "kind": contrast.kind,
                    "from": contrast.start,
                    "to": contrast.end,
                    "outcome": outcome,
                    "region": region,
                    "tested": "yes",
                    "generated": -4.0 if in_lungs else 45.0,
                    "permuted": 8 * refits,
                    "permuted_max": 2.0 if refits else None,
                    "refit_low": -6.0 if refits else None,
                    "refit_high": -2.0 if refits else None,
                    "real_cases": 30,
                    "real": -5.0,
                    "real_low": -9.0,
                    "real_high": -1.0,
                    "agreement": "agrees",
                    "verdict": "finding" if is_finding and in_lungs else "not judged",
                    "why": "",
                }
            )
    return pd.DataFrame(rows).reindex(columns=list(TEST_COLUMNS))


def missing_rows() -> list[dict[str, Any]]:
    """missing.csv of one contrast."""
    common = {"contrast": CONTRASTS[0].id, "effect": "direct", "outcome": "mean", "cases": 30}
    rows = []
    for assumption, hu in (("missing at random", -5.0), ("unknown AGE higher by 0.5 SD", -7.0)):
        bounds = {"real": hu, "low": hu - 4, "high": hu + 4}
        rows.append({**common, "assumption": assumption, **bounds})
    return rows


def additivity_rows() -> list[dict[str, Any]]:
    """additivity.csv: a curve that cannot be told, and an effect that differs by sex."""
    common = {**dict.fromkeys(ADDITIVITY_COLUMNS, None), "cases": 30}
    curve = {"column": "AGE", "test": "curve", "other": "", "reason": "too few cases"}
    differs = {
        "column": "DIAGNOSIS",
        "test": "interaction",
        "other": "SEX",
        "p": 0.001,
        "q": 0.002,
        "contrast": CONTRASTS[0].id,
        "at_first": "Female",
        "effect_first": 10.0,
        "at_second": "Male",
        "effect_second": 60.0,
    }
    return [{**common, **curve}, {**common, **differs}]


def record(folder: Path, refits: bool) -> dict[str, Any]:
    """atlas.json, and maps.npz beside it."""
    maps = []
    for number, contrast in enumerate(CONTRASTS):
        array = np.full(FRAME, 10.0 * (number + 1), np.float32)
        array[:, :8] = np.nan
        maps.append(PopulationMap("effect", contrast.id, 1, array))
    maps += [
        PopulationMap("other noise", "", 1, np.where(np.isnan(array), array, 1)),
        PopulationMap("generated", "", 1, array - 860),
        PopulationMap("effect_sd", CONTRASTS[0].id, 1, np.abs(array)),
        PopulationMap("share_below_950", CONTRASTS[2].id, 1, np.where(np.isnan(array), array, 2)),
    ]
    tests = tests_table(refits)
    spread = {"patients": 1, "patients_low": -4.0, "patients_high": -4.0}
    sentence = {
        **dict.fromkeys(FINDING_COLUMNS, ""),
        "contrast": CONTRASTS[0].id,
        "outcome": MEAN,
        "sentence": SENTENCE,
    }
    return {
        "run": "run1",
        "summary": "Nothing is called a finding.",
        "conclusive": False,
        "methods": "Volumes were generated.",
        "null_column": "",
        "settings": {"cases": {"diagnosis_column": "DIAGNOSIS"}},
        "findings": [],
        "not_found": [sentence],
        "attributes": [
            {
                "column": a.column,
                "role": a.role,
                "kind": a.kind,
                "unit": a.unit,
                "status": "studied",
            }
            for a in (DIAGNOSIS, AGE)
        ],
        "contrasts": contrast_frame(CONTRASTS),
        "tests": tests,
        "effects": tests[["contrast", "kind", "outcome", "region", "generated"]].assign(**spread),
        "real": pd.DataFrame(),
        "missing": missing_rows(),
        "additivity": additivity_rows(),
        "curves": [
            {"column": "AGE", "value": "80", "cases": 30, "real": -18.0, "low": -25.0, "high": -9.0}
        ],
        "adjustment": ROLES.rows("DIAGNOSIS", {}) + ROLES.rows("AGE", {}),
        "ties": [],
        "refits": [],
        "maps": files.write_maps(folder, maps),
        "doses": [
            {
                "column": "AGE",
                "value": v,
                "region": "lungs",
                "mean_change": c,
                "sd_over_cases": None,
                "outcome": outcome,
            }
            for v, c in (("45", 0.0), ("80", AGE_HU))
            for outcome in (MEAN, "share_below_950")
        ],
        "controls": [
            {
                "control": "other noise",
                "region": "lungs",
                "mean_abs_hu": 1.0,
                "max_abs_hu": 1.0,
                "voxel_abs_hu": 1.0,
            }
        ],
        "negative_controls": [],
        "shape": [],
        "cautions": [{"kind": "no refits", "forbids": "no", "text": "There are 0 refits."}],
    }


def make_atlas(folder: Path, refits: bool = False) -> SimpleNamespace:
    """Write everything that precedes the pages; return the parts of the study that pages need."""
    (folder / "volumes").mkdir(parents=True)
    affine, arrays = np.diag([*SPACING, 1.0]), volumes()
    for name, array in {**arrays, "mask": lungs(), "scan": arrays["own"]}.items():
        nib.save(
            nib.Nifti1Image(array, affine), folder / "volumes" / f"{name.replace(' ', '_')}.nii.gz"
        )
    file = {name: f"volumes/{name.replace(' ', '_')}.nii.gz" for name in arrays}
    rows = [
        {"kind": "own", "file": file["own"], "prompt": "HP, 60."},
        {
            "kind": "control",
            "file": file["other noise"],
            "value": "other noise",
            "prompt": "HP, 60.",
        },
    ]
    arms = [
        {
            "column": a.column,
            "value": v,
            "prompt": "HP, 60." if v == "HP" else f"{v}.",
            "dropped": "TYPE CTD | DATE" if v == "IPF" else "",
            "file": file[v],
        }
        for a in (DIAGNOSIS, AGE)
        for v in a.values
    ]
    files.write_table(folder, "volumes", pd.DataFrame(rows, dtype=object).assign(case=CASE))
    files.write_table(folder, "arms", pd.DataFrame(arms).assign(case=CASE))
    files.write_table(
        folder, "cases", pd.DataFrame([{"case": CASE, "prompt": "HP, 60.", "seen": "no"}])
    )
    files.write_record(folder, record(folder, refits))
    case = SimpleNamespace(
        id=CASE,
        image=folder / "volumes/scan.nii.gz",
        mask=folder / "volumes/mask.nii.gz",
        body=None,
        scale=None,
    )
    data = DataOptions()
    return SimpleNamespace(
        cohort=SimpleNamespace(cases=[case]),
        formatted_row=lambda case: {"DIAGNOSIS": "HP", "AGE": "60"},
        plan=SimpleNamespace(attributes=[DIAGNOSIS, AGE], data=data),
    )

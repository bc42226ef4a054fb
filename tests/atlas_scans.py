"""Real scans whose smoking effects are known, for tests of the atlas's statistics."""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipelines.atlas.statistics.adjustment import Roles
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.regression import RealScans

LEVELS = ("Never", "Ex", "Current")
SMOKING = AtlasAttribute("SMOKING", "exposure", "category", LEVELS, dict.fromkeys(LEVELS, 50))
AGE = AtlasAttribute(
    "AGE", "demographic", "number", ("40", "50", "60", "70", "80"), {"60": 150}, "years"
)
DIAGNOSIS = AtlasAttribute(
    "DIAGNOSIS", "exposure", "category", ("HP", "IPF"), {"HP": 75, "IPF": 75}
)
OUTCOME = AtlasAttribute("DEAD", "outcome", "category", ("No", "Yes"), {"No": 75, "Yes": 75})
KERNEL = AtlasAttribute(
    "KERNEL", "acquisition", "category", ("soft", "sharp"), {"soft": 75, "sharp": 75}
)
EVERY = {a.column: a for a in (SMOKING, AGE, DIAGNOSIS, OUTCOME, KERNEL)}
CONTRASTS = [c for a in (SMOKING, AGE) for c in contrasts_of(a)]
NEVER_CURRENT, SLOPE = "SMOKING=Never_to_Current", "AGE=per_unit"


def scans(n: int = 150, sd: float = 5.0, association: float = 0.0, seed: int = 0) -> RealScans:
    """Real scans with current smokers +40 HU, ex +20, age -1 HU per year and IPF +25.

    A tenth of the ages is missing.
    """
    rng = np.random.default_rng(seed)
    smoking = rng.choice(LEVELS, n)
    diagnosis = np.where(
        rng.random(n) < association,
        np.where(smoking == "Current", "IPF", "HP"),
        rng.choice(["HP", "IPF"], n),
    )
    age = rng.integers(40, 90, n)
    hu = (
        -850
        + 20.0 * np.array([LEVELS.index(s) for s in smoking])
        - 1.0 * age
        + 25 * (diagnosis == "IPF")
        + sd * rng.normal(size=n)
    )
    table = pd.DataFrame(
        {
            "SMOKING": smoking,
            "AGE": age.astype(str),
            "DIAGNOSIS": diagnosis,
            "DEAD": rng.choice(["No", "Yes"], n),
            "KERNEL": rng.choice(["soft", "sharp"], n),
        },
        dtype=object,
    )
    table.loc[rng.random(n) < 0.1, "AGE"] = ""
    index = pd.Index([f"c{i}" for i in range(n)], dtype=object)
    means = pd.DataFrame({(MEAN, "lungs"): hu, (MEAN, "upper"): hu + 1}, index=index)
    return RealScans(
        means,
        table.set_index(index),
        pd.Series(rng.uniform(3000, 6000, n), index),
        pd.Series(index, index),
    )


ROLES = Roles(EVERY, frozenset(), "DIAGNOSIS")


def primary(real: pd.DataFrame, contrast: str) -> pd.Series:
    return real[
        (real["contrast"] == contrast) & (real["region"] == "lungs") & (real["primary"] == "yes")
    ].iloc[0]

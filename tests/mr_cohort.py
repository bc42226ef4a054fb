"""A small cohort of MR volumes: heads with a lesion, each with a gain of its own."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (20, 20, 10)
SPACING = (2.0, 2.0, 4.0)
LESION, BRAIN = 1, 5


def write_mr_cohort(root: Path, cases: int = 10, masks: str = "gtlung") -> Path:
    """Write img/, masks and clinical.csv; the lesions of M are brighter than those of F."""
    rng = np.random.default_rng(0)
    x, y, _ = np.indices(SHAPE)
    radius = np.hypot((x - 9.5) / 9, (y - 9.5) / 9)
    rows = ["File Name,SEX,AGE"]
    for folder in ("img", masks):
        (root / folder).mkdir(parents=True)
    for case in range(cases):
        labels = np.where(radius < 0.9, BRAIN, 0).astype(np.uint8)
        labels[6 : 10 + case % 3, 6:10, 3:7] = LESION
        sex = "FM"[case % 2]
        brightness = np.select(
            [labels == LESION, labels == BRAIN], [800 if sex == "M" else 600, 400]
        )
        noise = rng.normal(0, 20, SHAPE) * (labels > 0)
        scan = (brightness + noise) * rng.uniform(0.5, 3)
        affine = np.diag([*SPACING, 1.0])
        for folder, array in (("img", scan.astype(np.int16)), (masks, labels)):
            nib.save(nib.Nifti1Image(array, affine), root / folder / f"head{case}.nii.gz")
        rows.append(f"head{case},{sex},{40 + 2 * case}")
    (root / "clinical.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root

"""Inputs that several benchmarks' tests share."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from accelerate.state import AcceleratorState

from data.phantom.kinds.cohort import phantom_chests


@pytest.fixture(scope="session")
def chest_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantoms as scans of 8 mm."""
    root = tmp_path_factory.mktemp("chests")
    for chest in phantom_chests(("first", "second"), 3, (48, 40, 36)):
        for name, volume in (("img", chest.hu), ("gtlung", chest.mask)):
            (root / name).mkdir(exist_ok=True)
            array = np.rint(volume.array).astype(np.int16)
            nib.save(nib.Nifti1Image(array, volume.affine), root / name / f"{chest.case}.nii.gz")
    return root


@pytest.fixture(autouse=True)
def own_precision() -> None:
    """Let a benchmark choose its precision, which Accelerate keeps for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)

"""What the report shows of a case: a montage, and every slice of its scan and mask."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.geometry import Volume
from data.preparation.lungs import LEFT, RIGHT
from util.cli import UserError
from util.files import atomic_path
from util.web.figures import LUNG, Window
from util.web.outlines import outlined_montage
from util.web.web_data import PageGrid, VolumeEntry, write_volume

CT_STEP_HU = 4.0  # finer than a grey level of the lung window, and half the size of whole HU
SCAN = "scan"  # keys of the volumes
MASK = "mask"


@dataclass(frozen=True)
class CaseView:
    """The slices of a case as the report's viewer shows them.

    Attributes:
        volumes: Scan and mask by key, relative to the report's folder of voxels.
    """

    grid: PageGrid
    volumes: Mapping[str, VolumeEntry]

    @classmethod
    def from_record(cls, record: Mapping[str, Any], path: Path) -> CaseView | None:
        """Return the view that `as_record` stored; None for a record without one.

        Raises:
            UserError: It is damaged.
        """
        stored = record.get("view")
        if stored is None:
            return None
        try:
            view = cls(PageGrid(**stored["grid"]), dict(stored["volumes"]))
            if not len(view.grid.shape) == len(view.grid.brick) == len(view.grid.spacing) == 3:
                raise ValueError("three axes")
        except (TypeError, ValueError, KeyError):
            raise UserError(
                f"{path} holds a view that cannot be read. Remove it, and run the command again: "
                "the case is then prepared anew."
            ) from None
        return view

    def as_record(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {"grid": asdict(self.grid), "volumes": dict(self.volumes)}


def draw_montage(path: Path, scan: Volume, mask: NDArray[Any], window: Window = LUNG) -> None:
    """Write the montage of a case as PNG (see `util.web.outlines.outlined_montage`)."""
    with atomic_path(path) as temporary:
        content = _lungs(mask)
        temporary.write_bytes(outlined_montage(scan.array, mask, content, scan.spacing, window))


def write_slices(folder: Path, case: str, scan: Volume, mask: NDArray[Any]) -> CaseView:
    """Write scan and mask of a case as bricks into `folder`/CASE, and return its view.

    Args:
        folder: The report's folder of voxels.
        case: Id of the case.
        scan: HU.
        mask: Labels on the same grid.
    """
    remove_slices(folder, case)
    volumes = {
        f"{case}/{SCAN}": write_volume(folder, f"{case}/{SCAN}", scan.array, "ct", CT_STEP_HU),
        f"{case}/{MASK}": write_volume(folder, f"{case}/{MASK}", mask, "mask"),
    }
    return CaseView(PageGrid.around(_lungs(mask), scan.spacing), volumes)


def remove_slices(folder: Path, case: str) -> None:
    """Remove the bricks of a case."""
    shutil.rmtree(folder / case, ignore_errors=True)


def _lungs(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where the lungs are; everything of the mask where none of its labels is a lung."""
    lungs = (mask == LEFT) | (mask == RIGHT)
    return lungs if lungs.any() else mask > 0

"""A case's volumes as linked pictures: their voxels as files, and the row on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from dominate import tags

from util.modality import LABEL_NAMES
from util.web import viewer_parts
from util.web.figures import Panel, inner_labels
from util.web.viewer_parts import SlicePanel
from util.web.web_data import PageGrid, VolumeEntry, check_panels, write_volume


@dataclass(frozen=True)
class PictureRow:
    """The volumes of a case as a page shows them: everything but the voxels.

    Attributes:
        key: Name of the case in the page.
        pictures: A picture for each volume.
        volumes: Kind and step of each volume by key.
        mask: Key of the mask; "" for none.
        labels: Labels of the mask.
    """

    key: str
    pictures: Sequence[SlicePanel]
    volumes: Mapping[str, VolumeEntry]
    grid: PageGrid
    mask: str
    labels: tuple[int, ...]

    def attributes(self) -> dict[str, str]:
        """Return the attributes of the element whose pictures move together."""
        return viewer_parts.viewer_attributes(self.grid, self.volumes, mask=self.mask)

    def add(self, limit: float, names: Mapping[int, str] = LABEL_NAMES) -> None:
        """Add the pictures side by side; differences run from -limit to +limit HU."""
        with tags.div(cls="panels together", style=f"--columns:{len(self.pictures)}"):
            for picture in self.pictures:
                with replace(picture, limit=limit).add():
                    if picture.kind == "mask":
                        viewer_parts.label_legend(self.labels, names)


def write_panels(
    folder: Path, key: str, case: str, panels: Sequence[Panel], at: Sequence[int] | None = None
) -> PictureRow:
    """Write the voxels of a case into `folder`/KEY, and return its row.

    Args:
        folder: The page's folder of voxels.
        key: Name of the case in the page, which is a file name.
        case: Name of the case, for messages.
        panels: Its volumes, on one grid.
        at: The slices shown first go through this voxel; by default they hold most of the mask.

    Raises:
        UserError: The volumes do not share a grid, or hold values that cannot be shown.
    """
    check_panels(case, panels)
    content = np.zeros(panels[0].array.shape, bool)
    pictures: list[SlicePanel] = []
    mask = ""
    labels: tuple[int, ...] = ()
    volumes: dict[str, VolumeEntry] = {}
    names = {id(panel): f"{key}/{number}" for number, panel in enumerate(panels)}
    for panel in panels:
        name = names[id(panel)]
        volumes[name] = write_volume(folder, name, panel.array, panel.kind)
        outline = ""
        if panel.outline is not None:
            outline = f"{name}-outline"
            volumes[outline] = write_volume(folder, outline, panel.outline, "mask")
        pictures.append(
            SlicePanel(
                panel.title,
                [name],
                panel.kind,
                panel.caption,
                panel.file,
                outline=outline,
                under=names.get(id(panel.before), ""),
            )
        )
        if panel.kind == "mask":
            content = inner_labels(panel.array)
            mask = name
            labels = tuple(int(v) for v in np.unique(panel.array) if v)
    grid = PageGrid.around(content, panels[0].spacing, at)
    return PictureRow(key, pictures, volumes, grid, mask, labels)

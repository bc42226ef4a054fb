"""A generated volume: its HU, its geometry, saving and showing."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data.dicom_export import DicomStudy
from data.geometry import from_ras
from data.volumes import read_header, write_like
from util.cli import UserError
from util.web.figures import DIVERGING, LUNG, PLANES, nice_limit, radiological_slice

Viewer = Literal["auto", "niivue", "matplotlib"]
Kind = Literal["generated", "difference"]


class SliceFigure(Figure):
    """A matplotlib figure that notebooks show without a plotting backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


@dataclass(frozen=True, eq=False)
class Volume:
    """A generated volume, or the difference of two.

    Attributes:
        ras: `(X, Y, Z)` in `unit`, canonicalised to RAS.
        mask: File whose grid the volume has.
        kind: "generated", or "difference" of two volumes.
        window: Values shown as black and white.
        unit: HU, or a.u. of other modalities.
    """

    ras: NDArray[np.floating]
    mask: Path
    kind: Kind = "generated"
    window: tuple[float, float] = LUNG
    unit: str = "HU"

    def __repr__(self) -> str:
        size = "x".join(map(str, self.ras.shape))
        return f"<Volume {self.kind}: {size} voxels, mean {self.ras.mean():.1f} {self.unit}>"

    @property
    def hu(self) -> NDArray[np.floating]:
        """HU in the voxel order of the mask; a.u. of other modalities than CT."""
        return from_ras(self.ras, self.affine)

    @property
    def affine(self) -> NDArray[np.floating]:
        """The mask's matrix from voxels to millimetres in RAS, `(4, 4)`."""
        return read_header(self.mask).source_affine

    def save(self, path: str | Path) -> Path:
        """Write a NIfTI on the grid of the mask: int16, or float32 for a difference.

        Raises:
            UserError: The path does not end in .nii or .nii.gz, or the disk refuses the file.
        """
        path = Path(path)
        if not path.name.endswith((".nii", ".nii.gz")):
            raise UserError(f"{path} cannot be written as NIfTI. Choose a name ending in .nii.gz.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.kind == "difference":
            write_like(path, self.ras, self.mask, np.float32)
        else:
            write_like(path, self.ras, self.mask, np.int16, self.window)
        return path

    def save_dicom(self, folder: str | Path, description: str = "generated") -> Path:
        """Write a CT as a DICOM series of axial slices; see `data.dicom_export`.

        Args:
            folder: Folder of the slices; an existing one is replaced.
            description: What the volume shows, for the series description.

        Raises:
            UserError: The volume is a difference or no CT, its grid is sheared, or the disk refuses
                a file.
        """
        if self.unit != "HU":
            raise UserError(
                f"save_dicom: the volume is in {self.unit}, and a CT series holds HU. Save it as "
                "NIfTI."
            )
        if self.kind == "difference":
            raise UserError(
                "save_dicom: the volume is a difference of two, and a CT series holds HU. Save it "
                "as NIfTI."
            )
        return DicomStudy.from_mask(self.mask).write_series(Path(folder), self.ras, description)

    def show(self, viewer: Viewer = "auto") -> Any:
        """Show the volume in a notebook.

        Args:
            viewer: "niivue" for an interactive viewer (needs the package ipyniivue), "matplotlib"
                for three slices, "auto" for the first of them that is installed.

        Returns:
            A widget of ipyniivue, or a matplotlib figure.

        Raises:
            UserError: ipyniivue is asked for and is not installed.
        """
        if viewer != "matplotlib":
            try:
                return self._niivue()
            except ImportError:
                if viewer == "niivue":
                    raise UserError(
                        "show: ipyniivue is not installed. Install it (pip install ipyniivue), or "
                        "use show('matplotlib')."
                    ) from None
        return self._figure()

    def _niivue(self) -> Any:
        from ipyniivue import NiiVue  # optional

        # The widget reads the file once, before the folder is removed.
        with tempfile.TemporaryDirectory(prefix="mask2ct-") as folder:
            file = self.save(Path(folder) / "volume.nii.gz")
            content = file.read_bytes()
        low, high = self.window
        colours = "gray"
        if self.kind == "difference":
            high = self._difference_limit()
            low, colours = -high, "blue2red"
        widget = NiiVue()
        widget.load_volumes(
            [
                {
                    "name": "volume.nii.gz",
                    "data": content,
                    "colormap": colours,
                    "cal_min": low,
                    "cal_max": high,
                }
            ]
        )
        return widget

    def _difference_limit(self) -> float:
        return nice_limit(float(np.quantile(np.abs(self.ras), 0.995)))

    def _figure(self) -> Figure:
        """Draw the middle axial, coronal and sagittal slice, as radiologists see them."""
        spacing = read_header(self.mask).spacing
        low, high = self.window
        settings: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high}
        if self.kind == "difference":
            limit = self._difference_limit()
            settings = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}
        figure = SliceFigure(figsize=(12, 4.4), layout="constrained")
        for axes, (plane, (across, down, through, sides)) in zip(
            figure.subplots(1, len(PLANES)), PLANES.items(), strict=True
        ):
            shown = radiological_slice(self.ras, plane, self.ras.shape[through] // 2)
            axes.imshow(shown, aspect=spacing[down] / spacing[across], **settings)
            axes.set_title(f"{plane} (left of the picture: {sides[0]})")
            axes.set_axis_off()
        figure.colorbar(figure.axes[0].images[0], ax=figure.axes, shrink=0.8, label=self.unit)
        return figure

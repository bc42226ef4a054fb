"""A trained run as an object."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import SimpleITK as sitk
from numpy.typing import NDArray

from data.body import BodyLabel
from data.cohort import Case
from data.regions import regions_of
from data.text.prompts import Prompt
from data.volume_dataset import VolumeSample
from mask2ct.volume import Kind, Volume
from models.inference import LoadedRun, load_run
from options.test_options import ModelOptions
from pipelines.generation.case_writer import display_window
from pipelines.generation.plan import run_samples
from util.cli import UserError, counted
from util.metrics.effects import CHANGE_COLUMNS, Contrast, effect_rows, region_effects
from util.metrics.texture import statistics_by_region
from util.training.shared_runs import is_shared

Mask = Any  # a path, a nibabel or SimpleITK image, or (array, affine)

EFFECT_VALUES = ["region", "voxels", "mean_diff_hu", "sd_over_voxels_hu", *CHANGE_COLUMNS]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two volumes of one mask and one noise field, which differ in the text alone.

    Attributes:
        a: The volume of the first prompt.
        b: The volume of the second prompt.
        difference: `b` minus `a`, in HU.
        effects: Mean and SD of the difference per region, in HU, and the change of each statistic
            of `util.metrics.texture`. Columns of other modalities than CT name no HU.
    """

    a: Volume
    b: Volume
    difference: Volume
    effects: pd.DataFrame


class Run:
    """A trained run that is ready to generate.

    Args:
        loaded: The run as read from its checkpoint.

    Attributes:
        name: The run's name.
        labels: The mask labels that it knows, background first.
        columns: The columns of the table that it was trained with.
    """

    def __init__(self, loaded: LoadedRun) -> None:
        self._loaded = loaded
        self._scratch = tempfile.TemporaryDirectory(prefix="mask2ct-")
        self.name = loaded.folder.name
        self.labels = loaded.labels
        self.columns = tuple(loaded.state["columns"])

    def __repr__(self) -> str:
        step = self._loaded.state["step"]
        model = self._loaded.options.generator.model
        return f"<Run {self.name}: {model}, {counted(step, 'step')}, labels {list(self.labels)}>"

    def generate(self, mask: Mask, prompt: str = "", seed: int = 0) -> Volume:
        """Generate a volume.

        Args:
            mask: Path of a volume file, nibabel image, SimpleITK image, or pair (array, affine),
                with the labels of the run.
            prompt: Phrases as in training, such as "Patient age: 60. SMOKING HISTORY is Ex
                smoker."; empty for a patient of whom nothing is known.
            seed: Seed of the noise; a mask file, a prompt and a seed give the volume of
                `test.py --mask`.

        Raises:
            UserError: The mask cannot be read or has other labels, or the prompt is too long.
        """
        sample = self._sample(mask)
        hu = self._hu(sample, prompt, seed)
        return self._volume(sample, hu)

    def compare(self, mask: Mask, prompt_a: str, prompt_b: str, seed: int = 0) -> Comparison:
        """Generate the volumes of two prompts from the same noise, and their difference.

        Args:
            mask: As for `generate`.
            prompt_a: The first prompt.
            prompt_b: The second prompt.
            seed: Seed of the noise.

        Raises:
            UserError: As for `generate`.
        """
        sample = self._sample(mask)
        first, second = (self._hu(sample, prompt, seed) for prompt in (prompt_a, prompt_b))
        difference = second - first
        data = self._loaded.options.data
        spacing = sample.spacing
        masks = regions_of(sample.labels, spacing, data)
        before, after = (statistics_by_region(hu, masks, spacing) for hu in (first, second))
        draws = [region_effects(difference, before, after, masks)]
        rows = effect_rows(Contrast(sample.name, "prompt", "a", "b"), draws, masks)
        effects = pd.DataFrame(rows)[EFFECT_VALUES].to_dict("records")
        return Comparison(
            self._volume(sample, first),
            self._volume(sample, second),
            self._volume(sample, difference, "difference"),
            pd.DataFrame(data.terms.rows(effects)),
        )

    def _volume(
        self, sample: VolumeSample, values: NDArray[np.floating], kind: Kind = "generated"
    ) -> Volume:
        """Return values on the model's grid as a volume on that of the mask."""
        data = self._loaded.options.data
        on_file, window = sample.to_source_grid(values), display_window(data)
        return Volume(on_file, sample.case.mask, kind, window, data.terms.unit)

    def _hu(self, sample: VolumeSample, prompt: str, seed: int) -> NDArray[np.floating]:
        """Generate HU on the model's grid."""
        texts = Prompt.from_free_text(prompt).texts
        self._loaded.generator.encoder.validate([texts])
        return sample.to_hu(replace(self._loaded.generator, seed=seed)(sample, texts))

    def _sample(self, mask: Mask) -> VolumeSample:
        path = self._mask_file(mask)
        data = self._loaded.options.data
        case = Case(path.name, None, path, {}, BodyLabel.from_options(data, self._loaded.folder))
        return run_samples(self._loaded, [case], data)[0]

    def _mask_file(self, mask: Mask) -> Path:
        """Return the mask as a file; images and arrays are written to the run's scratch folder."""
        if isinstance(mask, str | Path):
            return Path(mask)
        folder = Path(tempfile.mkdtemp(dir=self._scratch.name, prefix="mask2ct-"))
        path = folder / "mask.nii.gz"
        if isinstance(mask, sitk.Image):
            sitk.WriteImage(mask, str(path))
        elif isinstance(mask, nib.spatialimages.SpatialImage):
            nib.save(mask, path)
        elif isinstance(mask, Sequence) and len(mask) == 2:
            array, affine = np.asarray(mask[0]), np.asarray(mask[1], float)
            if array.ndim != 3 or affine.shape != (4, 4):
                raise UserError(
                    f"mask has an array of shape {array.shape} and an affine of shape "
                    f"{affine.shape}; they must be (X, Y, Z) and (4, 4)."
                )
            kind = np.uint8 if array.dtype == bool else array.dtype
            if np.dtype(kind).itemsize > 4 and np.issubdtype(kind, np.integer):
                kind = np.int32  # NIfTI readers do not agree on 64-bit integers
            nib.save(nib.Nifti1Image(array.astype(kind), affine), path)
        else:
            raise UserError(
                f"mask is of type {type(mask).__name__}; it must be a path, a nibabel image, a "
                "SimpleITK image, or a pair (array, affine)."
            )
        return path


def load(
    folder: str | Path,
    which_epoch: str = "latest",
    *,
    gpu_ids: str = "",
    text_encoder: str = "",
    tile: tuple[int, int, int] | None = None,
) -> Run:
    """Load a trained run.

    Args:
        folder: The run's folder, such as "checkpoints/run1", or a zip or folder that
            `scripts/export.py` wrote.
        which_epoch: "latest", or the number of an epoch that was saved.
        gpu_ids: GPU to use, such as "0"; "-1" for the CPU; "" for a GPU if available.
        text_encoder: Folder of the run's text encoder, where it has moved since training.
        tile: Voxels of a tile; None as `test.py` chooses them, (0, 0, 0) for whole volumes.

    Raises:
        UserError: No such run or checkpoint, damaged files, or another text encoder.
    """
    folder = Path(folder)
    options = ModelOptions(
        name=str(folder) if is_shared(str(folder)) else folder.name,
        checkpoints_dir=str(folder.parent),
        which_epoch=which_epoch,
        gpu_ids=gpu_ids,
        text_encoder=text_encoder,
        tile=tile,
    )
    return Run(load_run(options))

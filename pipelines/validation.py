"""Validation of a run in training: metrics and pictures of a few cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from tqdm import tqdm

from data.text.prompts import Prompt
from data.volume_dataset import VolumeSample
from models.inference import VolumeGenerator
from options.base_options import DataOptions
from util.cli import unique_names
from util.metrics.fidelity import fidelity_by_region
from util.metrics.texture import detail_correlation, detail_ratio
from util.training.monitor import ValidationResult
from util.web.figures import slice_row
from util.web.training_page import TrainingImage


@dataclass(frozen=True)
class ValidationCase:
    """A case that is generated again and again.

    Attributes:
        sample: The case with its scan.
        prompt: Its factual prompt.
        pair: The prompts of the two values of the tracked intervention; empty without one.
    """

    sample: VolumeSample
    prompt: Prompt
    pair: Sequence[Prompt] = ()


class Validation:
    """Mean metrics over the cases, and a picture of each.

    Args:
        cases: The cases.
        generator: Generates with the network in training.
        data: HU window and lung labels.
        folder: Folder of the pictures.
    """

    def __init__(
        self,
        cases: Sequence[ValidationCase],
        generator: VolumeGenerator,
        data: DataOptions,
        folder: Path,
    ) -> None:
        self.cases = cases
        self.generator = generator
        self.data = data
        self.folder = folder
        self.names = unique_names(case.sample.name for case in cases)

    def __call__(self, step: int) -> ValidationResult:
        """Return metrics in the lungs, each a mean over the cases, and a picture per case.

        The metrics are MAE (HU), SSIM, mean HU minus that of the scan, the SD of detail over that
        of the scan, and the tracked effect (HU). The first case is generated with other noise too,
        for the correlation of detail between two noises.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        values: dict[str, list[float]] = {}
        images = []
        count = sum(1 + len(case.pair) for case in self.cases) + 1
        # Without a terminal there is no bar.
        with tqdm(None, "validating", count, unit="volume", leave=False, disable=None) as bar:
            for case in self.cases:
                volumes = []
                for prompt in (case.prompt, *case.pair):
                    volumes.append(self._generate(case, prompt))
                    bar.update()
                for name, value in self._metrics(case, *volumes).items():
                    values.setdefault(f"lung_{name}", []).append(value)
                if case is self.cases[0]:
                    correlation = self._noise_correlation(case, volumes[0])
                    bar.update()
                    if math.isfinite(correlation):
                        values["lung_noise_correlation"] = [correlation]
                images.append(self._picture(case, volumes[0], step))
        return ValidationResult({k: float(np.mean(v)) for k, v in values.items()}, images)

    def _generate(self, case: ValidationCase, prompt: Prompt, noise_key: str = "") -> np.ndarray:
        return case.sample.to_hu(self.generator(case.sample, prompt.texts, noise_key))

    def _noise_correlation(self, case: ValidationCase, volume: np.ndarray) -> float:
        other = self._generate(case, case.prompt, f"{case.sample.name}, other noise")
        spacing = voxel_sizes(case.sample.affine)
        return detail_correlation(volume, other, self._lungs(case), spacing)

    def _lungs(self, case: ValidationCase) -> NDArray[np.bool_]:
        return np.isin(case.sample.labels, self.data.lung_labels)

    def _metrics(
        self, case: ValidationCase, volume: np.ndarray, *pair: np.ndarray
    ) -> dict[str, float]:
        assert case.sample.image is not None
        real = case.sample.to_hu(case.sample.image[0])
        lungs = self._lungs(case)
        metrics = fidelity_by_region(volume, real, {"lungs": lungs}, self.data.hu_window)["lungs"]
        metrics["mean_error_hu"] = float((volume - real)[lungs].mean())
        ratio = detail_ratio(volume, real, lungs, voxel_sizes(case.sample.affine))
        if ratio is not None:
            metrics["detail_ratio"] = ratio
        if pair:
            first, second = pair
            metrics["effect_hu"] = float((second - first)[lungs].mean())
        return metrics

    def _picture(self, case: ValidationCase, volume: np.ndarray, step: int) -> TrainingImage:
        sample = case.sample
        assert sample.image is not None
        real = sample.to_hu(sample.image[0])
        file = f"{step:08d}_{self.names[sample.name]}.png"
        picture = slice_row(sample.labels, volume, real, voxel_sizes(sample.affine))
        (self.folder / file).write_bytes(picture)
        return TrainingImage(step, sample.name, case.prompt.sentence, file)

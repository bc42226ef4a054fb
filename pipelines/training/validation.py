"""Validation of a run in training: metrics and pictures of a few cases."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data.text.counterfactuals import Intervention, case_text, counterfactual_variants
from data.text.prompts import Prompt
from data.volume_dataset import VolumeDataset, VolumeSample
from models.base_model import GenerativeModel
from models.inference import VolumeGenerator
from models.sliding_window import SlidingWindow, round_up
from options.base_options import DataOptions
from options.train_options import TrainOptions
from pipelines.evidence import contrast_key
from pipelines.training.study import Study, tracked_interventions
from util.cli import unique_names
from util.metrics.fidelity import fidelity_by_region
from util.metrics.texture import detail_correlation, detail_ratio
from util.training import runs
from util.training.monitor import WEB, ValidationResult
from util.training.trainer import Trainer
from util.web.figures import LUNG, Panel, fullest_slices, nice_limit, save_slices_png
from util.web.training_page import TrackedEffect, TrainingImage

log = logging.getLogger(__name__)

PICTURE_DPI = 130
MIN_LIMIT = 20.0  # smallest range of the colours of an effect, HU


@dataclass(frozen=True)
class ValidationCase:
    """A case that is generated again and again.

    Attributes:
        sample: The case with its scan.
        prompt: Its factual prompt.
        pairs: The prompts of the two values of each tracked intervention.
    """

    sample: VolumeSample
    prompt: Prompt
    pairs: Sequence[tuple[Prompt, Prompt]] = ()

    @classmethod
    def from_sample(
        cls, sample: VolumeSample, study: Study, interventions: Sequence[Intervention]
    ) -> ValidationCase:
        """Return a case with its prompts; raise `UserError` where one cannot be encoded."""
        factual = study.prompts[sample.name]
        prompts = [factual]
        for intervention in interventions:
            text = case_text(sample.case, factual, study.reader)
            variants = counterfactual_variants(text, intervention)
            prompts += [variant.prompt for variant in variants[:2]]
        study.encoder.validate([prompt.texts for prompt in prompts])
        return cls(sample, factual, list(zip(prompts[1::2], prompts[2::2], strict=True)))

    @property
    def prompts(self) -> list[Prompt]:
        """The factual prompt, then those of the pairs."""
        return [self.prompt, *itertools.chain.from_iterable(self.pairs)]


class Validation:
    """Mean metrics over the cases, and a picture of each.

    Args:
        generator: Generates with the network in training.
        data: HU window and lung labels.
        folder: Folder of the pictures.
        tracked: What the pairs of prompts of each case compare.
    """

    def __init__(
        self,
        cases: Sequence[ValidationCase],
        generator: VolumeGenerator,
        data: DataOptions,
        folder: Path,
        tracked: Sequence[TrackedEffect] = (),
    ) -> None:
        self.tracked = tracked
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
        count = self._count()
        # Without a terminal there is no bar.
        with tqdm(None, "validating", count, unit="volume", leave=False, disable=None) as bar:
            for case in self.cases:
                prompts = case.prompts
                volume, *others = self._generate(case, prompts)
                bar.update(len(prompts))
                pairs = zip(others[::2], others[1::2], strict=True)
                effects = [(second - first).astype(np.float32) for first, second in pairs]
                for name, value in self._metrics(case, volume, effects).items():
                    values.setdefault(name, []).append(value)
                if case is self.cases[0]:
                    correlation = self._noise_correlation(case, volume)
                    bar.update()
                    if math.isfinite(correlation):
                        values["lung_noise_correlation"] = [correlation]
                images.append(self._picture(case, volume, effects, step))
        terms = self.data.terms
        means = {terms.name(name): float(np.mean(v)) for name, v in values.items()}
        return ValidationResult(means, images)

    def _count(self) -> int:
        """Return the number of volumes that a validation generates."""
        return sum(len(case.prompts) for case in self.cases) + 1

    def estimate_seconds(self) -> float:
        """Return about how long a validation takes, from the time of one tile of a case."""
        sample, prompts = self.cases[0].sample, self.cases[0].prompts
        window = self.generator.window
        size = [round_up(side, window.multiple) for side in window.tile]
        tile = replace(sample, channels=sample.channels[: size[0], : size[1], : size[2]])
        start = time.perf_counter()
        self.generator.variants(tile, [prompt.texts for prompt in prompts])
        seconds = (time.perf_counter() - start) / len(prompts)
        tiles = 1.0
        for side, length in zip(size, sample.channels.shape, strict=True):
            if self.generator.model.exact_tiles:  # they hardly overlap
                tiles *= max(1, length / side)
            else:
                tiles *= 1 + max(0, math.ceil((length - side) / (side * (1 - window.overlap))))
        return seconds * tiles * self._count()

    def _generate(
        self, case: ValidationCase, prompts: Sequence[Prompt], noise_key: str = ""
    ) -> list[np.ndarray]:
        texts = [prompt.texts for prompt in prompts]
        volumes = self.generator.variants(case.sample, texts, noise_key)
        return [case.sample.to_hu(volume) for volume in volumes]

    def _noise_correlation(self, case: ValidationCase, volume: np.ndarray) -> float:
        other = self._generate(case, [case.prompt], f"{case.sample.name}, other noise")[0]
        return detail_correlation(volume, other, self._lungs(case), case.sample.spacing)

    def _lungs(self, case: ValidationCase) -> NDArray[np.bool_]:
        return np.isin(case.sample.labels, self.data.whole_lung_labels)

    def _metrics(
        self, case: ValidationCase, volume: np.ndarray, effects: Sequence[np.ndarray]
    ) -> dict[str, float]:
        assert case.sample.image is not None
        real = case.sample.to_hu(case.sample.image[0])
        lungs = self._lungs(case)
        metrics = fidelity_by_region(volume, real, {"lungs": lungs}, self.data.hu_window)["lungs"]
        metrics["mean_error_hu"] = float((volume - real)[lungs].mean())
        ratio = detail_ratio(volume, real, lungs, case.sample.spacing)
        if ratio is not None:
            metrics["detail_ratio"] = ratio
        named = {f"lung_{name}": value for name, value in metrics.items()}
        # A written text that does not state the attribute has no effect to track.
        for tracked, effect in zip(self.tracked, effects, strict=False):
            named[tracked.metric.removeprefix("val_")] = float(effect[lungs].mean())
        return named

    def _picture(
        self, case: ValidationCase, volume: np.ndarray, effects: Sequence[np.ndarray], step: int
    ) -> TrainingImage:
        sample = case.sample
        assert sample.image is not None
        real = sample.to_hu(sample.image[0])
        spacing = sample.spacing
        panels = [
            Panel("real scan", "ct", real, spacing),
            Panel("generated", "ct", volume, spacing),
        ]
        limit = MIN_LIMIT
        for tracked, effect in zip(self.tracked, effects, strict=False):
            panels.append(Panel(tracked.title.replace(": ", ":\n"), "difference", effect, spacing))
            limit = max(limit, nice_limit(float(np.quantile(np.abs(effect), 0.995))))
        file = f"{step:08d}_{self.names[sample.name]}.png"
        at = fullest_slices(sample.labels)
        terms = self.data.terms
        window = LUNG if terms.is_ct else self.data.hu_window
        path = self.folder / file
        save_slices_png(path, panels, at, window, limit, PICTURE_DPI, terms.unit)
        return TrainingImage(step, sample.name, case.prompt.sentence, file)


def make_validation(
    options: TrainOptions, study: Study, model: GenerativeModel, trainer: Trainer
) -> Validation:
    """Return the validation of `--val_cases` cases.

    They are the first of the validation split, or of the training split where there is none.

    Raises:
        UserError: A prompt cannot be encoded, or a file cannot be read.
    """
    split = "val" if study.cohort.splits.get("val") else "train"
    if split == "train" and options.run.val_cases:
        log.warning("The cohort has no validation cases; training cases are validated instead.")
    model.inference_network = trainer.generating_network()
    size, multiple = options.patch.patch_size, model.size_multiple
    samples = VolumeDataset(
        study.cohort.split(split)[: options.run.val_cases],
        study.cohort.labels,
        options.data,
        size,
        [multiple] * 3,
    )
    interventions = tracked_interventions(options)
    cases = [ValidationCase.from_sample(sample, study, interventions) for sample in samples]
    generator = VolumeGenerator(
        model,
        study.encoder,
        validation_window(size, multiple, [case.sample.channels.shape for case in cases]),
        trainer.accelerator.device,
        options.run.seed,
    )
    folder = runs.run_folder(options.run.checkpoints_dir, options.run.name)
    tracked = tracked_effects(options)
    return Validation(cases, generator, options.data, folder / WEB, tracked)


def validation_window(
    patch: Sequence[int], multiple: int, shapes: Sequence[Sequence[int]]
) -> SlidingWindow:
    """Return tiles of twice the patch size along each axis, but not larger than the volumes.

    Overlapping tiles of the patch size generate a voxel up to eight times; larger ones fewer times.
    One tile at a time takes less memory than a training step. A model with exact tiles chooses
    them by the free memory.
    """
    longest = [max((shape[axis] for shape in shapes), default=0) for axis in range(3)]
    tile = []
    for side, length in zip(patch, longest, strict=True):
        largest = round_up(max(side, min(2 * side, length)), 2 * multiple)
        tile.append(largest)
    return SlidingWindow(tuple(tile), multiple, batch=1, by_memory=True)


def tracked_effects(
    options: TrainOptions, real: Mapping[str, Sequence[float]] | None = None
) -> list[TrackedEffect]:
    """Return the effects of `--val_effect`, with the regression of the real scans (see evidence).

    Args:
        options: The run's options.
        real: Difference and interval by intervention, as `training_evidence` returns them.
    """
    tracked = []
    for number, intervention in enumerate(tracked_interventions(options), start=1):
        start, end = intervention.values[:2]
        metric = "val_lung_effect_hu" + (f"_{number}" if number > 1 else "")
        title = f"{intervention.column}: {end} minus {start}"
        found = (real or {}).get(contrast_key(intervention))
        tracked.append(TrackedEffect(metric, title, *(found or ())))
    return tracked

"""What happens between training steps: log, checkpoints, validation, the run's page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from torch import Tensor

from util.files import write_json
from util.records import read_record
from util.schema import misfit
from util.training.runs import RunLog, read_log
from util.training.stopping import StopNow
from util.training.trainer import Trainer
from util.web.training_page import TrainingImage, write_training_page

log = logging.getLogger(__name__)

WEB = "web"
IMAGES_FILE = "images.json"
IMAGE_TYPES = get_type_hints(TrainingImage)


@dataclass(frozen=True)
class ValidationResult:
    """Metrics by name, and one picture per case."""

    metrics: dict[str, float]
    images: list[TrainingImage]


@dataclass(frozen=True)
class Intervals:
    """Steps between lines of the log, saves of latest/, validations, and numbered checkpoints.

    `checkpoint` 0 writes no numbered checkpoints.
    """

    log: int
    save: int
    validate: int
    checkpoint: int


@dataclass(frozen=True)
class CheckpointExtra:
    """Plain values and tensors that every checkpoint holds beside the trainer's own."""

    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]]


class Monitor:
    """Called after every step with its losses.

    Args:
        folder: The run's folder.
        trainer: Saves, and knows the main process.
        options: The run's options by group, for its page.
        extra: Stored in every checkpoint.
        validate: Returns metrics and pictures at a step; None where nothing can be validated.
        intervals: How often each thing happens.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        options: Mapping[str, Any],
        extra: CheckpointExtra,
        validate: Callable[[int], ValidationResult] | None,
        intervals: Intervals,
    ) -> None:
        self.folder = folder
        self.trainer = trainer
        self.options = options
        self.extra = extra
        self.validate = validate
        self.intervals = intervals
        main = trainer.accelerator.is_main_process
        self.log = RunLog(folder, trainer.steps_done) if main else None
        self.images = self._earlier_images(trainer.steps_done)
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def __call__(self, losses: Mapping[str, Tensor]) -> None:
        """Log, validate and save where the trainer's step asks for it."""
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += 1
        step, config = self.trainer.steps_done, self.trainer.config
        last = step == config.steps
        if step % self.intervals.log == 0 or last:
            self._write_log(step)
        if step % self.intervals.validate == 0 or last:
            self._validate(step)
        if step % self.intervals.save == 0 or last:
            self.save("latest")
        if self.intervals.checkpoint and step % self.intervals.checkpoint == 0:
            self.save(str(step // config.steps_per_epoch))

    def _earlier_images(self, step: int) -> list[TrainingImage]:
        """Return the pictures of a resumed run; a list that is damaged is begun again."""
        path = self.folder / WEB / IMAGES_FILE
        if not step or not path.is_file():
            return []
        stored = read_record(path, list[dict[str, Any]], "The pictures so far are left out")
        images = []
        for values in stored or []:
            if set(values) != set(IMAGE_TYPES) or misfit(values, IMAGE_TYPES):
                log.warning("%s: a picture that is damaged is left out: %.60s", path, values)
            elif values["step"] <= step:
                images.append(TrainingImage(**values))
        return images

    def save(self, name: str) -> None:
        """Write the checkpoint `name`."""
        self.trainer.save(self.folder / name, self.extra.state, self.extra.tensors)

    def _write_log(self, step: int) -> None:
        if self.log is not None and self._count:
            means = {f"loss_{k}": v.item() / self._count for k, v in self._sums.items()}
            self.log.write(step, means)
        self._sums = {}
        self._count = 0

    def _validate(self, step: int) -> None:
        """Validate and write the page; a signal abandons both."""
        if self.log is not None:
            try:
                with self.trainer.interruptible():
                    result = self.validate(step) if self.validate is not None else None
            except StopNow:
                log.warning("The validation after step %d is abandoned.", step)
            else:
                self._write_page(step, result)
        self.trainer.accelerator.wait_for_everyone()

    def _write_page(self, step: int, result: ValidationResult | None) -> None:
        if result is not None and self.log is not None:
            self.log.write(step, {f"val_{k}": v for k, v in result.metrics.items()})
            texts = [f"{name} {value:.4g}" for name, value in result.metrics.items()]
            log.info("Step %d: %s", step, ", ".join(texts))
            self.images += result.images
            stored = [asdict(image) for image in self.images]
            write_json(self.folder / WEB / IMAGES_FILE, stored)
        write_training_page(
            self.folder / WEB,
            self.folder.name,
            read_log(self.folder),
            self.images,
            self.options,
        )

    def close(self) -> None:
        """Close the log."""
        if self.log is not None:
            self.log.close()

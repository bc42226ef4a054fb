"""What happens beside the steps of training: log, checkpoints, validation, the run's page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from util.training.checkpoint import read_json, write_json
from util.training.runs import RunLog, read_log
from util.training.trainer import Trainer
from util.web.training_page import TrainingImage, write_training_page

log = logging.getLogger(__name__)

WEB = "web"
IMAGES_FILE = "images.json"

Validate = Callable[[int], tuple[dict[str, float], list[TrainingImage]]]


class Monitor:
    """Called after every step.

    Args:
        folder: The run's folder.
        trainer: Saves and knows which process speaks.
        options: The run's options by group, for its page.
        state: Plain values saved with every checkpoint.
        extra: Tensors saved with every checkpoint.
        validate: Measures and pictures at a step; None where nothing can be validated.
        log_freq, save_freq, val_freq: Steps between lines of the log, saves of latest/,
            validations.
        epoch_steps: Steps between saves of a numbered checkpoint; 0 for none.
        steps_per_epoch: For their numbers.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        options: Mapping[str, Any],
        *,
        state: Mapping[str, Any],
        extra: Mapping[str, Mapping[str, Tensor]],
        validate: Validate | None,
        log_freq: int,
        save_freq: int,
        val_freq: int,
        epoch_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self.folder, self.trainer, self.options = folder, trainer, options
        self.state, self.extra, self.validate = state, extra, validate
        self.log_freq, self.save_freq, self.val_freq = log_freq, save_freq, val_freq
        self.epoch_steps, self.steps_per_epoch = epoch_steps, steps_per_epoch
        self.speaks = trainer.accelerator.is_main_process
        self.log = RunLog(folder, trainer.step) if self.speaks else None
        self.images = self._earlier_images(trainer.step)
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def __call__(self, step: int, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._count += 1
        last = step == self.trainer.steps
        if step % self.log_freq == 0 or last:
            self._write_log(step)
        if step % self.val_freq == 0 or last:
            self._validate(step)
        if step % self.save_freq == 0 or last:
            self.save("latest")
        if self.epoch_steps and step % self.epoch_steps == 0:
            self.save(str(step // self.steps_per_epoch))

    def _earlier_images(self, step: int) -> list[TrainingImage]:
        """The pictures of a run that goes on."""
        path = self.folder / WEB / IMAGES_FILE
        stored = read_json(path) if step and path.is_file() else []
        return [TrainingImage(**image) for image in stored if image["step"] <= step]

    def save(self, name: str) -> None:
        self.trainer.save(self.folder / name, self.state, self.extra)

    def _write_log(self, step: int) -> None:
        if self.log is not None and self._count:
            self.log.write(
                step, {f"loss_{k}": v.item() / self._count for k, v in self._sums.items()}
            )
        self._sums, self._count = {}, 0

    def _validate(self, step: int) -> None:
        if self.log is not None:
            if self.validate is not None:
                figures, images = self.validate(step)
                self.log.write(step, {f"val_{k}": v for k, v in figures.items()})
                log.info("Step %d: %s", step, ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
                self.images += images
                write_json(
                    self.folder / WEB / IMAGES_FILE, [asdict(image) for image in self.images]
                )
            write_training_page(
                self.folder / WEB,
                self.folder.name,
                read_log(self.folder),
                self.images,
                self.options,
            )
        self.trainer.accelerator.wait_for_everyone()

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

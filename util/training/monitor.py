"""What happens between training steps: log, checkpoints, validation, the run's page."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, get_type_hints

from torch import Tensor

from util.files import write_json
from util.modality import CT, Terms
from util.notices import Notice
from util.progress import format_duration
from util.records import read_record
from util.schema import misfit
from util.training.runs import RunLog, read_log
from util.training.stopping import StopNow
from util.training.trainer import Trainer
from util.web.training_page import (
    TrackedEffect,
    TrainingImage,
    TrainingState,
    write_progress,
    write_training_page,
)

log = logging.getLogger(__name__)

WEB = "web"
IMAGES_FILE = "images.json"
IMAGE_TYPES = get_type_hints(TrainingImage)


@dataclass(frozen=True)
class ValidationResult:
    """Metrics by name, and one picture per case."""

    metrics: dict[str, float]
    images: list[TrainingImage]


class Validator(Protocol):
    """Validation of the network in training."""

    def __call__(self, step: int) -> ValidationResult:
        """Return metrics and pictures at a step."""

    def estimate_seconds(self) -> float:
        """Return about how long a call takes."""


@dataclass(frozen=True)
class Intervals:
    """Steps between lines of the log, saves of latest/, validations, and numbered checkpoints.

    `checkpoint` 0 writes no numbered checkpoints. Validations are postponed while they would take
    more than `validation_share` of the time; the one after the last step is not.
    """

    log: int
    save: int
    validate: int
    checkpoint: int
    validation_share: float = 1.0


@dataclass(frozen=True)
class PageContent:
    """What the run's page shows beside the log.

    Attributes:
        options: The run's options by group.
        notices: Warnings of the command; the list may grow.
        tracked: The effects that are followed.
        terms: Unit and words of the modality.
    """

    options: Mapping[str, Any]
    notices: Sequence[Notice] = ()
    tracked: Sequence[TrackedEffect] = ()
    terms: Terms = CT


@dataclass
class Stopwatch:
    """Times of a training, in seconds.

    Attributes:
        first_step: Step at which it began.
        began: When it began.
        validating: Time spent in validations.
        last: Time of the last validation, or its estimate; None before.
    """

    first_step: int
    began: float = field(default_factory=time.perf_counter)
    validating: float = 0.0
    last: float | None = None

    @property
    def elapsed(self) -> float:
        """Time since the training began."""
        return time.perf_counter() - self.began

    def seconds_left(self, step: int, steps: int) -> float | None:
        """Return the time for the remaining steps at the rate so far."""
        done = step - self.first_step
        return self.elapsed / done * (steps - step) if done else None

    def may_validate(self, share: float) -> bool:
        """Return whether a validation as long as the last one keeps its share of the time."""
        expected = self.last or 0.0
        return self.validating + expected <= share * (self.elapsed + expected)

    def postponed(self, step: int, share: float) -> str:
        """Return why the validation after a step has to wait, with the times that decide it."""
        return (
            f"The validation after step {step} is postponed: it takes about "
            f"{format_duration(self.last or 0.0)}, and the training has run for "
            f"{format_duration(self.elapsed)}. Validations take at most {share:.0%} of the time "
            "(--val_share); later ones are postponed without a message."
        )


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
        content: What the run's page shows.
        extra: Stored in every checkpoint.
        validate: The validation; None where nothing can be validated.
        intervals: How often each thing happens.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer,
        content: PageContent,
        extra: CheckpointExtra,
        validate: Validator | None,
        intervals: Intervals,
    ) -> None:
        self.folder = folder
        self.trainer = trainer
        self.content = content
        self.extra = extra
        self.validate = validate
        self.intervals = intervals
        main = trainer.accelerator.is_main_process
        self.log = RunLog(folder, trainer.steps_done) if main else None
        self.images = self._earlier_images(trainer.steps_done)
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._watch = Stopwatch(trainer.steps_done)
        self._is_due = False  # a validation is, and waits for its share of the time
        self._said_postponed = False
        self._page = 0  # number of the page written last
        if self.log is not None:
            self._write_page("running")

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
            self._is_due = True
        if self._is_due and (last or step % self.intervals.log == 0 or self._is_first_try(step)):
            self._validate(step, last)
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
            write_progress(self.folder / WEB, self._state("running"))
        self._sums = {}
        self._count = 0

    def _is_first_try(self, step: int) -> bool:
        return step % self.intervals.validate == 0

    def _validate(self, step: int, last: bool) -> None:
        """Validate and write the page; a signal abandons both."""
        if self.log is not None:
            try:
                with self.trainer.interruptible():
                    if not (last or self._has_time(step)):
                        return
                    start = time.perf_counter()
                    result = self.validate(step) if self.validate is not None else None
                    self._watch.last = time.perf_counter() - start
                    self._watch.validating += self._watch.last
            except StopNow:
                log.warning("The validation after step %d is abandoned.", step)
            else:
                self._add_result(step, result)
                self._write_page("finished" if last else "running")
        self._is_due = False
        self.trainer.accelerator.wait_for_everyone()

    def _has_time(self, step: int) -> bool:
        """Return whether a validation keeps its share of the time; log the first that does not.

        Other processes would wait for a validation at the same step, so that only a single one
        postpones.
        """
        if self.validate is None or self.trainer.accelerator.num_processes > 1:
            return True
        if self._watch.last is None:
            self._watch.last = self.validate.estimate_seconds()
        if self._watch.may_validate(self.intervals.validation_share):
            return True
        if not self._said_postponed:
            self._said_postponed = True
            log.info("%s", self._watch.postponed(step, self.intervals.validation_share))
        return False

    def _add_result(self, step: int, result: ValidationResult | None) -> None:
        if result is not None and self.log is not None:
            self.log.write(step, {f"val_{k}": v for k, v in result.metrics.items()})
            texts = [f"{name} {value:.4g}" for name, value in result.metrics.items()]
            log.info("Step %d: %s", step, ", ".join(texts))
            for image in result.images:
                self.log.add_image(step, image.case, self.folder / WEB / image.file)
            self.images += result.images
            stored = [asdict(image) for image in self.images]
            write_json(self.folder / WEB / IMAGES_FILE, stored)

    def _state(self, state: str) -> TrainingState:
        step, steps = self.trainer.steps_done, self.trainer.config.steps
        watch = self._watch
        share = watch.validating / watch.elapsed if watch.elapsed > 0 else 0.0
        text = (
            f"Validation took {share:.0%} of the time so far; before the last step it is postponed "
            f"where it would take more than {self.intervals.validation_share:.0%} (--val_share)."
        )
        return TrainingState(
            step,
            steps,
            watch.seconds_left(step, steps) if state == "running" else None,
            state,
            self._page,
            [notice.text for notice in self.content.notices],
            self.content.tracked,
            text if self.validate is not None else "",
        )

    def _write_page(self, state: str) -> None:
        self._page = int(time.time())
        write_training_page(
            self.folder / WEB,
            self.folder.name,
            read_log(self.folder),
            self.images,
            self.content.options,
            self._state(state),
            self.content.terms,
        )

    def close(self) -> None:
        """Close the log; the page of a training that did not come to its end says so."""
        if self.log is not None:
            if self.trainer.steps_done < self.trainer.config.steps:
                self._write_page("stopped")
            self.log.close()

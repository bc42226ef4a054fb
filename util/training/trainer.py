"""Training steps: precision, processes, averaging, saving, stopping; for any model and data."""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from util.cli import UserError
from util.training import checkpoint
from util.training.stopping import StepUndo, StopNow, StopSignals, answer_signals

log = logging.getLogger(__name__)

Batch = dict[str, Any]
PROGRESS_STEPS = 20  # between updates of the losses beside the bar, for which a GPU is waited for
FINITE_STEPS = 20  # between checks of a GPU's losses


class RunStopped(UserError):
    """Training cannot go on; what was saved stays."""

    code = 1


class Trainable(Protocol):
    """The part of a model that the trainer uses, see `models.base_model.GenerativeModel`."""

    networks: dict[str, nn.Module]
    raw: dict[str, nn.Module]
    ema_network: str

    def param_groups(self) -> dict[str, list[dict[str, Any]]]:
        """Return the optimiser's groups per network."""
        ...

    def training_step(
        self, batch: Batch, text: Any
    ) -> Iterator[tuple[str, Tensor, Mapping[str, Tensor]]]:
        """Yield (network name, loss, terms) per network."""
        ...


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of a training.

    Attributes:
        steps: Number of steps in all.
        constant_steps: Steps before the learning rate falls linearly to zero.
        steps_per_epoch: Steps of an epoch, for parameter groups that start at a later epoch.
        betas: Adam's decay rates.
        grad_clip: Largest gradient norm; 0 switches clipping off.
        ema: Decay of the moving average of the weights; 0 switches it off.
        gradient_accumulation: Number of parts of a step's batch.
        seed: Seed of all random numbers, together with the step.
        channels_last: Whether networks and batches use the channels-last memory format.
        compiled: Whether to `torch.compile` the networks.
    """

    steps: int
    constant_steps: int
    steps_per_epoch: int
    betas: tuple[float, float] = (0.5, 0.999)
    grad_clip: float = 0.0
    ema: float = 0.999
    gradient_accumulation: int = 1
    seed: int = 0
    channels_last: bool = True
    compiled: bool = False


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average whose memory grows with the steps.

    The decay of step n is min(`decay`, (1 + n) / (10 + n)), so that short runs are not held back.
    """

    def blend(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(list(average), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, multi_avg_fn=blend, use_buffers=False)


class Trainer:
    """Optimisation of a model's networks, each with its own Adam.

    The loop is the caller's, within `until_stopped`::

        with trainer.until_stopped():
            for parts in trainer.iterate(batches):
                losses = trainer.step([(part, embed(part)) for part in parts])

    Args:
        model: Its networks are moved to the device and wrapped.
        accelerator: Devices, precision and processes.
        config: Settings of the training.

    Attributes:
        steps_done: Number of steps taken so far.
        stop_signal: Number of the signal that ended `iterate` early, or None.
    """

    def __init__(self, model: Trainable, accelerator: Accelerator, config: TrainerConfig) -> None:
        self.model = model
        self.accelerator = accelerator
        self.config = config
        self.format = torch.channels_last_3d if config.channels_last else torch.contiguous_format
        self.steps_done = 0
        self.stop_signal: int | None = None
        self._losses: dict[str, Tensor] = {}
        self._loss_sums: dict[str, Tensor] = {}
        self._signals: StopSignals | None = None
        self.optimizers: dict[str, Any] = {}
        groups = model.param_groups()
        for name, network in model.raw.items():
            model.networks[name] = self._prepare(name, network, groups[name])
        averaged = model.raw[model.ema_network]
        self.average = average_of(averaged, config.ema) if config.ema else None

    def _prepare(self, name: str, network: nn.Module, groups: list[dict[str, Any]]) -> nn.Module:
        """Move a network to the device, make its optimiser, and return the network to train."""
        device = self.accelerator.device
        network.to(device)
        network.to(memory_format=self.format)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(
            [{**group, "base_lr": group["lr"]} for group in groups],
            betas=self.config.betas,
            fused=device.type in ("cpu", "cuda"),
        )
        wrapped, self.optimizers[name] = self.accelerator.prepare(network, optimizer)
        # Accelerate turns every output to fp32; the discriminator's features are better left as
        # they are.
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        if self._may_undo and not self.config.compiled:
            answer_signals(network)
        return cast(nn.Module, torch.compile(wrapped) if self.config.compiled else wrapped)

    def iterate(
        self,
        batches: Iterable[Mapping[str, Any]],
        until: int | None = None,
        prepare: Callable[[Batch], Batch] | None = None,
    ) -> Iterator[list[Batch]]:
        """Iterate over the batches of the remaining steps, with a progress bar.

        Ends after the last step, or where a signal arrived (`stop_signal`); several processes end
        after the same step.

        Args:
            batches: This process's batches from the current step on, `gradient_accumulation` of
                them per step.
            until: End before this step, for a measurement; without a progress bar.
            prepare: Makes a batch, moved to the device, into what the model takes.

        Yields:
            The parts of one step's batch, on the device.
        """
        signals = self._signals = StopSignals()
        feed = iter(batches)
        end = min(self.config.steps, until or self.config.steps)
        bar = tqdm(
            total=end,
            initial=self.steps_done,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process or until is not None,
        )
        try:
            while self.steps_done < end:
                parts = itertools.islice(feed, self.config.gradient_accumulation)
                with self.interruptible(self._is_alone):
                    moved = [self.to_device(part, prepare) for part in parts]
                yield moved
                bar.update()
                if self.steps_done % PROGRESS_STEPS == 1 and not bar.disable:
                    values = {name: f"{v.item():.3f}" for name, v in self._losses.items()}
                    bar.set_postfix(values, refresh=False)
                if self._stop_requested(signals):
                    self.stop_signal = signals.received or signal.SIGTERM
                    return
        finally:
            bar.close()
            signals.restore()
            self._signals = None

    @property
    def _is_alone(self) -> bool:
        """Whether no other process waits for this one."""
        return self.accelerator.num_processes == 1

    @property
    def _may_undo(self) -> bool:
        """Whether copies are kept of what a step changes; a GPU's steps are short enough."""
        return self._is_alone and self.accelerator.device.type == "cpu"

    @contextlib.contextmanager
    def until_stopped(self) -> Iterator[None]:
        """End the block without an error where a signal abandons a step (see `stop_signal`)."""
        try:
            yield
        except StopNow:
            log.info("The step that had begun is left out.")

    @contextlib.contextmanager
    def interruptible(self, enabled: bool = True) -> Iterator[None]:
        """Let a signal end the block with `StopNow`, while `iterate` runs."""
        signals = self._signals
        if signals is None or not enabled:
            yield
            return
        try:
            with signals.interruptible():
                yield
        except StopNow:
            self.stop_signal = signals.received
            raise

    def step(self, parts: Sequence[tuple[Batch, Any]]) -> dict[str, Tensor]:
        """Take one optimisation step.

        A signal abandons it: networks and optimisers are then those before the step.

        Args:
            parts: The parts of the step's batch, each with its text embeddings; their gradients
                add up and are applied with the last part.

        Returns:
            Loss terms by name, detached, averaged over the parts.

        Raises:
            RunStopped: A loss is not finite.
            StopNow: A signal arrived.
        """
        undo = StepUndo(self.model.raw) if self._is_alone else None
        try:
            with self.interruptible(self._is_alone):
                losses = self._take_step(parts, undo)
        except StopNow:
            if undo is not None:
                undo.restore()
            raise
        self.steps_done += 1
        self._losses = losses
        return losses

    def _take_step(
        self, parts: Sequence[tuple[Batch, Any]], undo: StepUndo | None
    ) -> dict[str, Tensor]:
        """Return the loss terms of a step; from its last update on, it is completed."""
        losses: dict[str, Tensor] = {}
        updated: list[str] = []
        torch.manual_seed(self.config.seed * 1_000_003 + self.steps_done)
        for number, (batch, text) in enumerate(parts, start=1):
            last = number == len(parts)
            with contextlib.ExitStack() as context:
                if not last:  # processes exchange gradients once, with the last part
                    for network in self.model.networks.values():
                        context.enter_context(self.accelerator.no_sync(network))
                context.enter_context(self.accelerator.autocast())
                for name, loss, terms in self.model.training_step(batch, text):
                    self._check_finite(name, loss, terms)
                    self.accelerator.backward(loss / self.config.gradient_accumulation)
                    if last:
                        self._prepare_update(name, updated, undo)
                        self._update(name)
                        updated.append(name)
                    for term, value in terms.items():
                        losses[term] = losses.get(term, 0) + value.detach() / len(parts)
        if self._signals is not None:
            self._signals.may_interrupt = False
        if self.average is not None:
            self.average.update_parameters(self.model.raw[self.model.ema_network])
        return losses

    def _check_finite(self, name: str, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Stop a training whose loss is not finite.

        A CPU sees it at once. A GPU would have to be waited for in every step: it keeps the sum of
        the losses, which stays not finite, and is asked every `FINITE_STEPS` steps.

        Raises:
            RunStopped: The loss is not finite.
        """
        total = loss.detach()
        step = f"in step {self.steps_done + 1}"
        if loss.device.type != "cpu":
            total = self._loss_sums[name] = self._loss_sums.get(name, 0) + total
            if self.steps_done % FINITE_STEPS and self.steps_done + 1 < self.config.steps:
                return
            step = f"in one of the last {FINITE_STEPS} steps before step {self.steps_done + 2}"
        if not torch.isfinite(total):
            values = ", ".join(f"{term} {v.item():.4g}" for term, v in terms.items())
            raise RunStopped(
                f"The loss of {name} is {total.item()} {step} ({values}). "
                "The last checkpoint is kept; continue from it with --continue_train and a lower "
                "--lr, with --grad_clip 1, or with --precision fp32."
            )
        self._loss_sums.pop(name, None)

    def _prepare_update(self, name: str, updated: Sequence[str], undo: StepUndo | None) -> None:
        """Keep a copy of a network that is updated before others; after the last, none is needed.

        Where no copies are kept, a step is completed from its first update on.
        """
        if self._signals is None:
            return
        is_last = len(updated) + 1 == len(self.optimizers)
        if undo is None or is_last or not self._may_undo:
            self._signals.may_interrupt = False
        else:
            undo.remember(self.model.raw[name], self.optimizers[name].optimizer)

    def _update(self, name: str) -> None:
        """Step a network's optimiser."""
        optimizer = self.optimizers[name]
        if self.config.grad_clip:
            # Accelerate's own clipping would also unscale what the other network has gathered so
            # far (fp16).
            self.accelerator.unscale_gradients(optimizer)
            nn.utils.clip_grad_norm_(self.model.raw[name].parameters(), self.config.grad_clip)
        self._set_learning_rate(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    def _set_learning_rate(self, optimizer: Any) -> None:
        """Set the step's rate: constant, then linear to zero; zero before a group's first epoch."""
        config = self.config
        falling = max(1, config.steps - config.constant_steps)
        left = (config.steps - self.steps_done) / falling
        for group in optimizer.param_groups:
            started = self.steps_done >= group["from_epoch"] * config.steps_per_epoch
            group["lr"] = group["base_lr"] * min(1.0, left) * started

    def to_device(
        self, batch: Mapping[str, Any], prepare: Callable[[Batch], Batch] | None = None
    ) -> Batch:
        """Move a batch's tensors to the device, volumes in the networks' memory format."""
        device = self.accelerator.device
        moved: Batch = dict(batch)
        for name, value in batch.items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
        if prepare is not None:
            moved = prepare(moved)
        for name, value in moved.items():
            if isinstance(value, Tensor) and value.ndim == 5:
                moved[name] = value.to(memory_format=self.format)
        return moved

    def _stop_requested(self, signals: StopSignals) -> bool:
        """Whether any process received a signal; all processes get the same answer."""
        if self._is_alone:
            return signals.received is not None
        asked = torch.tensor(float(signals.received is not None), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())

    def generating_network(self) -> nn.Module:
        """Return the averaged network, or the trained one where nothing is averaged."""
        if self.average is not None:
            return self.average.module
        return self.model.raw[self.model.ema_network]

    def _check_weights(self) -> None:
        for name, network in self.model.raw.items():
            bad = [k for k, p in network.named_parameters() if not torch.isfinite(p).all()]
            if bad:
                raise RunStopped(
                    f"After step {self.steps_done} weights of {name} are not finite ({bad[0]} and "
                    f"{len(bad) - 1} more), so they are not saved. The last checkpoint is kept; "
                    "continue from it with --continue_train and --grad_clip 1, or a lower --lr."
                )

    def save(
        self, folder: Path, state: Mapping[str, Any], extra: Mapping[str, checkpoint.Tensors]
    ) -> None:
        """Write a checkpoint; only the main process writes.

        Args:
            folder: Folder of the checkpoint.
            state: Plain values, to which the step and the gradient scaler are added.
            extra: Tensors to store beside networks, average and optimisers.

        Raises:
            RunStopped: Weights are not finite; what was saved before stays.
            UserError: The disk is full.
        """
        self._check_weights()
        if self.accelerator.is_main_process:
            parts: dict[str, checkpoint.Tensors] = dict(extra)
            for name, network in self.model.raw.items():
                parts[name] = network.state_dict()
            for name, optimizer in self.optimizers.items():
                parts[f"optimizer_{name}"] = checkpoint.optimizer_tensors(optimizer)
            if self.average is not None:
                parts["average"] = self.average.module.state_dict()
            scaler = self.accelerator.scaler
            scaler_state = scaler.state_dict() if scaler is not None else None
            checkpoint.save(
                folder, parts, {**state, "step": self.steps_done, "scaler": scaler_state}
            )
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> None:
        """Return to a checkpoint.

        Raises:
            UserError: The checkpoint is damaged or of another architecture.
        """
        state = checkpoint.load_state(folder)
        for name, network in self.model.raw.items():
            if name not in state["parts"]:
                raise UserError(
                    f"{folder} holds no network {name}: the run was trained without it. Continue "
                    "with the losses that it was trained with, or start a new run from it by "
                    "--init_from."
                )
            checkpoint.load_network(network, folder, name)
            part = f"optimizer_{name}"
            tensors = checkpoint.load_part(folder, part)
            checkpoint.load_optimizer(self.optimizers[name].optimizer, tensors, folder / part)
        if self.average is not None:
            # Where --ema was 0 so far, the average begins with the weights.
            part = "average" if "average" in state["parts"] else self.model.ema_network
            checkpoint.load_network(self.average.module, folder, part)
            self.average.n_averaged.fill_(state["step"])
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.steps_done = state["step"]

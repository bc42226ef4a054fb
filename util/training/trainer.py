"""The training loop: steps, precision, processes, averaging, saving, stopping. It knows no GAN, no
CT and no text.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from util.cli import UserError
from util.training import checkpoint

log = logging.getLogger(__name__)

Batch = dict[str, Any]


class RunStopped(UserError):
    """Training cannot go on; what was saved stays."""

    code = 1


class Trainable(Protocol):
    """What the trainer asks of a model, see models/base_model.py."""

    networks: dict[str, nn.Module]
    raw: dict[str, nn.Module]
    ema_network: str

    def param_groups(self) -> dict[str, list[dict[str, Any]]]: ...

    def training_step(
        self,
        batch: Batch,
        text: Any,
        other: Any,
        update: Callable[[str, Tensor, Mapping[str, Tensor]], None],
    ) -> dict[str, Tensor]: ...


class StopSignal:
    """Notes Ctrl-C and SIGTERM, so that a step is finished and saved before leaving; a second
    Ctrl-C leaves at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def average_of(network: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average whose memory grows with the steps, so that short runs are not
    held back.
    """

    def blend(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = float(count)
        torch._foreach_lerp_(list(average), list(current), 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(network, multi_avg_fn=blend, use_buffers=False)


class Trainer:
    """Trains a model's networks, each with its own Adam.

    Args:
        model: The model.
        accelerator: Devices, precision and processes.
        steps: Steps in all.
        constant_steps: Steps before the learning rate falls linearly to zero.
        steps_per_epoch: For parameter groups that start at a later epoch.
        betas: Adam's decay rates.
        grad_clip: Largest gradient norm; 0 for none.
        ema: Decay of the moving average; 0 for none.
        gradient_accumulation: Parts of a step's batch.
        seed: What random numbers follow from, with the step.
        channels_last: Memory format of networks and batches.
        compiled: Whether to `torch.compile`.
    """

    def __init__(
        self,
        model: Trainable,
        accelerator: Accelerator,
        *,
        steps: int,
        constant_steps: int,
        steps_per_epoch: int,
        betas: tuple[float, float] = (0.5, 0.999),
        grad_clip: float = 0.0,
        ema: float = 0.999,
        gradient_accumulation: int = 1,
        seed: int = 0,
        channels_last: bool = True,
        compiled: bool = False,
    ) -> None:
        self.model, self.accelerator = model, accelerator
        self.steps, self.constant_steps, self.steps_per_epoch = (
            steps,
            constant_steps,
            steps_per_epoch,
        )
        self.grad_clip, self.gradient_accumulation, self.seed = (
            grad_clip,
            gradient_accumulation,
            seed,
        )
        self.format = torch.channels_last_3d if channels_last else torch.contiguous_format
        self.step = 0
        self.optimizers: dict[str, Any] = {}
        groups = model.param_groups()
        for name, network in model.raw.items():
            network.to(accelerator.device)
            network.to(memory_format=self.format)  # type: ignore[call-overload]
            fused = accelerator.device.type in ("cpu", "cuda")
            optimizer = torch.optim.Adam(
                [{**g, "base_lr": g["lr"]} for g in groups[name]], betas=betas, fused=fused
            )
            wrapped, self.optimizers[name] = accelerator.prepare(network, optimizer)
            # Accelerate turns every output to fp32; the discriminator's features are better left as
            # they are.
            accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
            model.networks[name] = cast(nn.Module, torch.compile(wrapped)) if compiled else wrapped
        self.average = average_of(model.raw[model.ema_network], ema) if ema else None

    def _learning_rate(self, optimizer: Any) -> None:
        """Constant, then linear to zero; zero before a group's first epoch. A pure function of the
        step.
        """
        left = (self.steps - self.step) / max(1, self.steps - self.constant_steps)
        for g in optimizer.param_groups:
            g["lr"] = (
                g["base_lr"]
                * min(1.0, left)
                * (self.step >= g["from_epoch"] * self.steps_per_epoch)
            )

    def _train_on(self, parts: list[tuple[Batch, Any, Any]]) -> dict[str, Tensor]:
        """One step over the parts of a batch; gradients add up and are applied with the last
        part.
        """
        terms: dict[str, Tensor] = {}
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        for i, (batch, text, other) in enumerate(parts):
            last = i == len(parts) - 1

            def update(
                name: str, loss: Tensor, of: Mapping[str, Tensor], last: bool = last
            ) -> None:
                self._check_finite(name, loss, of)
                self._update(name, loss, last)

            with contextlib.ExitStack() as context:
                if not last:  # processes exchange gradients once, with the last part
                    for network in self.model.networks.values():
                        context.enter_context(self.accelerator.no_sync(network))
                context.enter_context(self.accelerator.autocast())
                found = self.model.training_step(batch, text, other, update)
            for name, value in found.items():
                terms[name] = terms.get(name, 0) + value / len(parts)
        if self.average is not None:
            self.average.update_parameters(self.model.raw[self.model.ema_network])
        return terms

    def _check_finite(self, name: str, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        if not torch.isfinite(loss):
            found = ", ".join(f"{k} {v.item():.4g}" for k, v in terms.items())
            raise RunStopped(
                f"The loss of {name} is {loss.item()} in step {self.step + 1} ({found}). The last "
                "checkpoint is kept; go on from it with --continue_train and a lower --lr, with "
                "--grad_clip 1, or with --precision fp32."
            )

    def _update(self, name: str, loss: Tensor, last: bool) -> None:
        optimizer = self.optimizers[name]
        self.accelerator.backward(loss / self.gradient_accumulation)
        if not last:
            return
        if self.grad_clip:
            # Accelerate's own clipping would also unscale what the other network has gathered so
            # far (fp16).
            self.accelerator.unscale_gradients(optimizer)
            nn.utils.clip_grad_norm_(self.model.raw[name].parameters(), self.grad_clip)
        self._learning_rate(optimizer)
        optimizer.step()
        optimizer.zero_grad()

    def to_device(self, batch: Mapping[str, Any]) -> Batch:
        """Tensors of a batch on the device, volumes in the networks' memory format."""
        device = self.accelerator.device
        return {
            k: v.to(
                device,
                non_blocking=True,
                memory_format=self.format if v.ndim == 5 else torch.preserve_format,
            )
            if isinstance(v, Tensor)
            else v
            for k, v in batch.items()
        }

    def fit(
        self,
        batches: Iterable[Mapping[str, Any]],
        embed: Callable[[Mapping[str, Any]], tuple[Any, Any]],
        after_step: Callable[[int, dict[str, Tensor]], None],
        until: int | None = None,
    ) -> int | None:
        """Trains to the last step, or until a signal comes.

        Args:
            batches: This process's batches from the current step on, `gradient_accumulation` of them a step.
            embed: Gives the text embeddings of a batch, of its own and of other prompts.
            after_step: Called with the steps done and the loss terms (logging, saving, validation).
            until: Stop before this step already, for a measurement.

        Returns:
            The number of the signal that ended training early, or None.

        Raises:
            RunStopped: A loss is not finite.
        """
        stop, feed = StopSignal(), iter(batches)
        end = min(self.steps, until or self.steps)
        bar = tqdm(
            total=end,
            initial=self.step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not self.accelerator.is_main_process or until is not None,
        )
        try:
            while self.step < end:
                parts = [
                    (self.to_device(b), *embed(b))
                    for b in itertools.islice(feed, self.gradient_accumulation)
                ]
                terms = self._train_on(parts)
                self.step += 1
                bar.update()
                if self.step % 5 == 1:
                    bar.set_postfix({k: f"{v.item():.3f}" for k, v in terms.items()}, refresh=False)
                after_step(self.step, terms)
                if self._someone_asks_to_stop(stop):
                    return stop.received or signal.SIGTERM
        finally:
            bar.close()
            stop.restore()
        return None

    def _someone_asks_to_stop(self, stop: StopSignal) -> bool:
        """All processes leave after the same step."""
        asked = torch.tensor(float(stop.received is not None), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(asked, reduction="sum")
        return bool(asked.item())

    def generating_network(self) -> nn.Module:
        """The averaged network, or the trained one where nothing is averaged."""
        return (
            self.average.module
            if self.average is not None
            else self.model.raw[self.model.ema_network]
        )

    def _check_weights(self) -> None:
        for name, network in self.model.raw.items():
            bad = [k for k, p in network.named_parameters() if not torch.isfinite(p).all()]
            if bad:
                raise RunStopped(
                    f"After step {self.step} weights of {name} are not finite ({bad[0]} and "
                    f"{len(bad) - 1} more), so they are not saved. The last checkpoint is kept; go "
                    "on from it with --continue_train and --grad_clip 1, or with a lower --lr."
                )

    def save(
        self, folder: Path, state: Mapping[str, Any], extra: Mapping[str, checkpoint.Tensors]
    ) -> None:
        """Writes networks, average, optimisers, step and the `extra` parts; only the main process
        writes.

        Raises:
            RunStopped: Weights are not finite; what was saved before stays.
            UserError: The disk is full.
        """
        self._check_weights()
        if self.accelerator.is_main_process:
            parts = {**extra, **{n: net.state_dict() for n, net in self.model.raw.items()}}
            parts.update(
                {
                    f"optimizer_{n}": checkpoint.optimizer_tensors(o)
                    for n, o in self.optimizers.items()
                }
            )
            if self.average is not None:
                parts["average"] = self.average.module.state_dict()
            scaler = self.accelerator.scaler
            checkpoint.save(
                folder,
                parts,
                {
                    **state,
                    "step": self.step,
                    "scaler": scaler.state_dict() if scaler is not None else None,
                },
            )
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> None:
        """Goes back to a checkpoint; raises `UserError` if it is damaged or of another
        architecture.
        """
        state = checkpoint.load_state(folder)
        for name, network in self.model.raw.items():
            checkpoint.load_network(network, folder, name)
            part = f"optimizer_{name}"
            checkpoint.load_optimizer(
                self.optimizers[name].optimizer, checkpoint.load_part(folder, part), folder / part
            )
        if self.average is not None:
            checkpoint.load_network(self.average.module, folder, "average")
            self.average.n_averaged.fill_(state["step"])
        if self.accelerator.scaler is not None and state.get("scaler"):
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]

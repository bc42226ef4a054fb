"""How a training ends: at its last step, by a signal, or without memory."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Iterator

from options.train_options import TrainOptions
from util.cli import UserError, is_out_of_memory
from util.training.devices import shutdown_distributed
from util.training.monitor import Monitor
from util.training.stopping import StopSignals
from util.training.trainer import Trainer

log = logging.getLogger(__name__)


@contextlib.contextmanager
def memory_advice(options: TrainOptions) -> Iterator[None]:
    """Turn memory that runs out, of the CPU or a GPU, into a `UserError` with advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = ",".join(map(str, options.patch.patch_size))
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"--patch_size {size} with --batch_size {options.optim.batch_size} does not fit into "
            f"the memory ({reason}). Use less of either, "
            "--gradient_accumulation, --precision auto, --checkpoint_activations or a smaller "
            "--preset; --dry_run reports the memory of a step."
        ) from None


def finish(trainer: Trainer, monitor: Monitor) -> None:
    """Close a training; one that a signal stopped is saved, and exits with 128 + its number."""
    received = trainer.stop_signal
    if received is not None:
        signals = StopSignals(received)  # only a second Ctrl-C prevents the save
        try:
            monitor.save("latest")
        finally:
            signals.restore()
        log.warning(
            "Stopped by %s after step %d; saved. Continue with --continue_train.",
            signal.Signals(received).name,
            trainer.steps_done,
        )
    monitor.close()
    shutdown_distributed(trainer.accelerator)
    if received is not None:
        sys.exit(128 + received)

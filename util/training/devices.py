"""Which processor computes, with which precision, in how many processes."""

from __future__ import annotations

import ctypes
import logging
import os

import torch
from accelerate import Accelerator

from util.cli import UserError, world_size

log = logging.getLogger(__name__)

# Parameters of glibc's mallopt, see malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def tune_malloc() -> None:
    """Lets the C library keep memory that was freed: a step on the CPU takes a tenth less time.

    By default every large tensor is fetched from the system anew, page by page. Nothing happens
    without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.debug("no mallopt here")
        return
    for parameter, size in (
        (M_MMAP_THRESHOLD, 2**30),
        (M_TRIM_THRESHOLD, 2**31 - 1),
        (M_TOP_PAD, 2**28),
    ):
        mallopt(parameter, size)


def select_gpus(gpu_ids: str) -> bool:
    """Checks `--gpu_ids` and makes its first GPU the current one; returns whether the CPU is to be
    used.

    Raises:
        UserError: An id that is no number, or a GPU that is not there.
    """
    if not gpu_ids:
        return not torch.cuda.is_available()
    try:
        ids = [int(part) for part in gpu_ids.split(",")]
    except ValueError:
        raise UserError(
            f"--gpu_ids is {gpu_ids!r}; it must be numbers such as 0 or 0,1, or -1 for the CPU."
        ) from None
    if ids == [-1]:
        return True
    count = torch.cuda.device_count()
    absent = [i for i in ids if not 0 <= i < count]
    if absent:
        there = f"GPUs 0 to {count - 1}" if count else "no GPU"
        raise UserError(
            f"--gpu_ids names GPU {absent[0]}, but this machine has {there}. Use --gpu_ids -1 for "
            "the CPU."
        )
    if len(ids) > 1 and world_size() == 1:
        raise UserError(
            f"--gpu_ids {gpu_ids} names {len(ids)} GPUs, but one process uses one. Start it with "
            f"bash scripts/train_multi_gpu.sh {len(ids)} ..., or name one GPU."
        )
    torch.cuda.set_device(ids[int(os.environ.get("LOCAL_RANK", "0")) % len(ids)])
    return False


def make_device(gpu_ids: str) -> torch.device:
    """The device for a single process."""
    return torch.device("cpu" if select_gpus(gpu_ids) else f"cuda:{torch.cuda.current_device()}")


def make_accelerator(precision: str, gpu_ids: str) -> Accelerator:
    """Accelerate's handle on devices and processes, for plain `python`, `torchrun` and `accelerate
    launch`.

    Raises:
        UserError: A GPU that is not there, or a precision that the processor has not.
    """
    cpu = select_gpus(gpu_ids)
    if precision == "fp16" and cpu:
        raise UserError("--precision fp16 needs a GPU; on the CPU use --precision bf16 or fp32.")
    if precision == "bf16" and not cpu and not torch.cuda.is_bf16_supported():
        raise UserError(
            "--precision bf16 is not supported by this GPU; use --precision fp16 or fp32."
        )
    if cpu:
        tune_malloc()
    # Accelerate calls full precision "no".
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=cpu)


def shutdown_distributed(accelerator: Accelerator) -> None:
    """Ends the work of several processes together, as the last thing that each does; nothing
    happens in a single one.

    A process that goes while one of gloo's threads still holds a tensor of the last step is aborted
    by Python's own end (https://github.com/pytorch/pytorch/pull/179291), and the launcher then ends
    the others.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()

"""Device, precision and processes of a training."""

from __future__ import annotations

import ctypes
import datetime
import functools
import logging
import os
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from util.cli import UserError, counted, world_size

log = logging.getLogger(__name__)

# What the NVIDIA driver or the system shows of a GPU, whatever torch can use.
NVIDIA_FILES = (
    Path("/dev/nvidia0"),
    Path("/proc/driver/nvidia/gpus"),
    Path("/usr/lib/wsl/lib/nvidia-smi"),
)
# Of processes for the main one, which alone prepares volumes, pre-trains a CLIP and validates; by
# default, GPUs that wait for ten minutes end the training.
MAX_WAIT = datetime.timedelta(days=1)
MAX_REASON = 300  # characters of CUDA's message

# Parameters of glibc's mallopt (malloc.h) and their values here.
MALLOC_SETTINGS = {
    -3: 2**30,  # M_MMAP_THRESHOLD
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD
    -2: 2**28,  # M_TOP_PAD
}


def tune_malloc() -> None:
    """Let the C library keep freed memory, which makes a step on the CPU a tenth faster.

    By default every large tensor is fetched from the system anew, page by page. Without glibc
    nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        log.debug("no mallopt here")
        return
    for parameter, size in MALLOC_SETTINGS.items():
        mallopt(parameter, size)


def unusable_gpu() -> str:
    """Return why a GPU of this machine cannot be used and the remedy, or "" where there is none."""
    present = any(path.exists() for path in NVIDIA_FILES)
    if not present or torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return ""
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a build without CUDA. Install one with it: "
            "https://pytorch.org/get-started/locally"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.cuda.init()
            reason = ""
        except (RuntimeError, AssertionError) as error:
            reason = str(error)
    reason = " ".join((reason or " ".join(str(w.message) for w in caught)).split())[:MAX_REASON]
    return (
        f"torch {torch.__version__} was built for CUDA {torch.version.cuda} ({reason or 'none'}). "
        "Update the NVIDIA driver, or install a torch built for an older CUDA: "
        "https://pytorch.org/get-started/previous-versions"
    )


@functools.cache
def warn_unusable_gpu() -> None:
    """Warn once where a GPU is there and cannot be used."""
    if problem := unusable_gpu():
        log.warning(
            "This machine has an NVIDIA GPU that cannot be used, so the CPU is: %s. Give --gpu_ids "
            "-1 where the CPU is meant.",
            problem,
        )


def select_gpus(gpu_ids: str) -> bool:
    """Check `--gpu_ids` and make the GPU of this process the current one.

    Returns:
        Whether the CPU is to be used.

    Raises:
        UserError: An id is not a number, or a GPU is not there.
    """
    if not gpu_ids:
        if torch.cuda.is_available():
            return False
        warn_unusable_gpu()
        return True
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
        present = f"GPUs 0 to {count - 1}" if count else "no GPU"
        raise UserError(
            f"--gpu_ids names GPU {absent[0]}, but this machine has {present}. Use "
            "--gpu_ids -1 for the CPU."
        )
    if len(ids) > 1 and world_size() == 1:
        raise UserError(
            f"--gpu_ids {gpu_ids} names {len(ids)} GPUs, but one process uses one. Start it with "
            f"bash scripts/train_multi_gpu.sh {len(ids)} ..., or name one GPU."
        )
    processes = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size())
    if processes > 1 and ids != list(range(processes)):  # Accelerate gives process k GPU k
        raise UserError(
            f"--gpu_ids is {gpu_ids}, and of {processes} processes each takes the GPU of its own "
            f"number, 0 to {processes - 1}. Leave --gpu_ids out; to choose other GPUs, start with "
            f"CUDA_VISIBLE_DEVICES={gpu_ids} bash scripts/train_multi_gpu.sh ..."
        )
    torch.cuda.set_device(ids[int(os.environ.get("LOCAL_RANK", "0"))])
    return False


def make_device(gpu_ids: str) -> torch.device:
    """Return the device of a single process."""
    return torch.device("cpu" if select_gpus(gpu_ids) else f"cuda:{torch.cuda.current_device()}")


def device_name(device: torch.device) -> str:
    """Return the name of a device for readers."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    count = torch.get_num_threads()
    return counted(count, "CPU core")


def cpu_computes_bf16() -> bool:
    """Return whether the CPU has instructions for bf16; imitated, it is 15 to 90 times as slow."""
    return any(present for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)


def resolve_precision(precision: str, *, cpu: bool) -> str:
    """Return the precision that `auto` means on this machine; any other one as it is."""
    native = cpu_computes_bf16() if cpu else torch.cuda.is_bf16_supported(False)
    if precision == "auto":
        precision = "bf16" if native else "fp32"
        log.info("Precision: %s%s", precision, "" if native else " (no instructions for bf16 here)")
    elif precision == "bf16" and cpu and not native:
        log.warning(
            "This CPU has no instructions for bf16 and imitates it, at less than a tenth of the "
            "speed of fp32. Use --precision auto or fp32."
        )
    return precision


def make_accelerator(precision: str, gpu_ids: str) -> Accelerator:
    """Return Accelerate's handle on devices and processes, also under `torchrun`.

    Raises:
        UserError: A GPU is not there, or the processor does not support the precision.
    """
    cpu = select_gpus(gpu_ids)
    precision = resolve_precision(precision, cpu=cpu)
    if precision == "fp16" and cpu:
        raise UserError("--precision fp16 needs a GPU; on the CPU use --precision bf16 or fp32.")
    if precision == "bf16" and not cpu and not torch.cuda.is_bf16_supported():
        raise UserError(
            "--precision bf16 is not supported by this GPU; use --precision fp16 or fp32."
        )
    if cpu:
        tune_malloc()
    patience = InitProcessGroupKwargs(timeout=MAX_WAIT)
    # Accelerate calls full precision "no".
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, cpu=cpu, kwargs_handlers=[patience])


def shutdown_distributed(accelerator: Accelerator) -> None:
    """End the work of several processes together; this is the last call of each.

    Python aborts a process that exits while one of gloo's threads still holds a tensor
    (https://github.com/pytorch/pytorch/pull/179291), and the launcher then ends the others.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()

"""Processes that train refits one after the other, each on a GPU or on some cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from util.parallel import available_cores

TRAIN_MANY = Path(__file__).resolve().parents[2] / "scripts" / "train_many.py"
MIN_GB_PER_PROCESS = 3.0  # of memory that a process on the CPU is counted with


@dataclass
class RefitWorker:
    """One process of scripts/train_many.py, started with its first run, and again where it died.

    Attributes:
        gpu: The GPU; "" for that of the run, "-1" for the CPU.
        threads: Threads of the process.
    """

    gpu: str
    threads: str
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def train(self, words: Sequence[str], log: Path) -> int:
        """Run train.py with these words; return its exit code, negative where it was killed.

        Args:
            words: The command line.
            log: File of the messages.
        """
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, str(TRAIN_MANY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": self.threads},
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"words": list(words), "log": str(log)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().strip()
        return int(answer) if answer else self._process.wait()

    def close(self) -> None:
        """Let the process end after its present run."""
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process.wait()


def make_workers(gpus: str, run_gpu: str, tasks: int) -> list[RefitWorker]:
    """Return the processes that refits are trained in.

    Args:
        gpus: GPUs, such as "0,1", one process for each; "" packs them on all GPUs there are, or
            without one on the cores, as far as memory goes.
        run_gpu: The GPU of the run; "-1" for the CPU.
        tasks: Number of refits; more processes are not of use.
    """
    names = [name.strip() for name in gpus.split(",")]
    if not gpus and run_gpu != "-1" and torch.cuda.is_available():
        names = [str(number) for number in range(torch.cuda.device_count())]
    elif not gpus:
        memory = psutil.virtual_memory().available / 2**30
        names = [""] * max(1, min(available_cores(), int(memory / MIN_GB_PER_PROCESS)))
    names = names[: max(1, tasks)]
    cores = max(1, available_cores() // len(names))
    threads = os.environ.get("OMP_NUM_THREADS") or str(cores)
    return [RefitWorker(name, threads) for name in names]

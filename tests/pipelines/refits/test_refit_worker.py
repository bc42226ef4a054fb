"""Processes that train refits one after the other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.refits import worker as refit_worker
from pipelines.refits.worker import RefitWorker, make_workers


@pytest.fixture()
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RefitWorker:
    """A worker whose program answers 0, or what the first word says, and writes its process id."""
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    task = json.loads(line)\n"
        "    open(task['log'], 'w').write(f\"{os.getpid()} {os.environ['OMP_NUM_THREADS']}\")\n"
        "    if task['words'][0] == 'die':\n"
        "        os.kill(os.getpid(), 9)\n"
        "    print(task['words'][0], flush=True)\n"
    )
    monkeypatch.setattr(refit_worker, "TRAIN_MANY", program)
    return RefitWorker("", "3")


def test_one_process_trains_several_and_is_started_again_where_it_died(
    worker: RefitWorker, tmp_path: Path
) -> None:
    logs = [tmp_path / f"{k}.log" for k in range(4)]
    codes = [
        worker.train([word], log) for word, log in zip(["0", "2", "die", "0"], logs, strict=True)
    ]
    assert codes == [0, 2, -signal.SIGKILL, 0]
    first, second, third, fourth = (log.read_text() for log in logs)
    assert first == second == third != fourth and first.endswith(" 3")
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(fourth.split()[0]), 0)


def test_workers_fill_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(refit_worker, "available_cores", lambda: 8)
    memory = psutil.virtual_memory()._replace(available=100 * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def made(gpus: str, run_gpu: str, tasks: int) -> list[tuple[str, str]]:
        return [(worker.gpu, worker.threads) for worker in make_workers(gpus, run_gpu, tasks)]

    assert made("", "", 20) == [("", "1")] * 8
    assert made("", "", 2) == [("", "4")] * 2
    assert made("0, 1", "", 20) == [("0", "4"), ("1", "4")]
    memory = psutil.virtual_memory()._replace(available=7 * 2**30)
    assert made("", "", 20) == [("", "4")] * 2  # as far as memory goes
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [gpu for gpu, _ in made("", "", 20)] == ["0", "1", "2"]
    assert [gpu for gpu, _ in made("", "-1", 20)] == ["", ""]

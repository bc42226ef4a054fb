"""A GPU that is there and cannot be used is named with the remedy."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from packaging.requirements import Requirement

from tests.commands import ROOT
from util.cli import UserError
from util.training import devices


@pytest.fixture()
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that shows a GPU, of which torch can use none."""
    monkeypatch.setattr(devices, "NVIDIA_FILES", (tmp_path,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    devices.warn_unusable_gpu.cache_clear()
    yield
    devices.warn_unusable_gpu.cache_clear()


def test_a_build_for_the_cpu(
    gpu: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with caplog.at_level(logging.WARNING):
        assert devices.select_gpus("") and devices.select_gpus("")  # the CPU
    (message,) = caplog.messages
    assert "cannot be used" in message and "a build without CUDA" in message
    assert "pytorch.org" in message and "--gpu_ids -1" in message


def test_a_driver_that_is_too_old(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    problem = devices.unusable_gpu()
    assert "CUDA 13.0" in problem and "too old (found version 11040)" in problem
    assert "Update the NVIDIA driver" in problem


@pytest.mark.parametrize("hidden", [True, False])
def test_no_warning_where_none_is_meant(
    gpu: None,
    hidden: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    if hidden:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    else:
        monkeypatch.setattr(devices, "NVIDIA_FILES", (tmp_path / "absent",))
    assert devices.select_gpus("") and devices.select_gpus("-1")
    assert caplog.messages == []


def test_processes_wait_longer_than_preparations_take() -> None:
    """By default NCCL ends a training whose main process prepares for more than ten minutes."""
    AcceleratorState._reset_state(reset_partial_state=True)
    handler = devices.make_accelerator("fp32", "-1").init_handler
    assert handler is not None and handler.to_kwargs() == {"timeout": devices.MAX_WAIT}
    assert devices.MAX_WAIT.total_seconds() > 6 * 3600


@pytest.mark.parametrize(
    ("gpu_ids", "world", "taken"),
    [("1", "1", 1), ("0,1", "2", 1), ("2,3", "2", None), ("0", "2", None)],
)
def test_gpus_that_a_process_cannot_take_are_refused(
    gpu_ids: str, world: str, taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate gives process k of torchrun GPU k, whatever is asked for."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, world)
    monkeypatch.setenv("LOCAL_RANK", str(int(world) - 1))
    if taken is not None:
        assert not devices.select_gpus(gpu_ids) and chosen == [taken]
        return
    with pytest.raises(UserError, match=f"CUDA_VISIBLE_DEVICES={gpu_ids} bash"):
        devices.select_gpus(gpu_ids)
    assert not chosen


def requirements(name: str) -> list[Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]


def test_requirements_have_tested_upper_bounds() -> None:
    """Every package has an upper bound and an exact version within its bounds."""

    def key(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    exact = {}
    for pin in requirements("constraints.txt"):
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and pin.url is None, pin
        exact[key(pin.name)] = specifier.version
    for wanted in [*requirements("requirements.txt"), *requirements("requirements-dev.txt")]:
        assert any(bound.operator == "<" for bound in wanted.specifier), wanted
        assert wanted.specifier.contains(exact[key(wanted.name)]), wanted
    assert exact["torch"] != "2.13.0"

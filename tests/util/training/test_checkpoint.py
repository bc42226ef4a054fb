"""Checkpoints: whole or not at all, never lost to a kill, never able to run code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from util import __version__
from util.cli import UserError
from util.files import file_sha256, read_json, write_json
from util.training import checkpoint

STATE = {"step": 3, "scaler": None}


class Killed(BaseException):
    """Stands for SIGKILL within one process: no handler of errors sees it."""


def network(channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(2, channels, 3), nn.BatchNorm3d(channels), nn.Conv3d(channels, 1, 1)
    )


def parts(value: float = 0.0) -> dict[str, dict[str, Tensor]]:
    return {"G": {"w": torch.full((2, 3), value)}, "D": {"w": torch.full((4,), value)}}


def value_of(folder: Path) -> float:
    """What the checkpoint found under this name holds, all of it."""
    place = checkpoint.find(folder)
    state = checkpoint.load_state(place)
    found = {
        float(t.flatten()[0])
        for part in state["parts"]
        for t in checkpoint.load_part(place, part).values()
    }
    assert len(found) == 1
    return found.pop()


def kill(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Calls for which `when` holds never happen, and nothing after them."""
    original = getattr(owner, name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, deadly)


# --- round trips ---


def test_networks_come_back(tmp_path: Path) -> None:
    saved = network().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    checkpoint.save(tmp_path / "latest", {"G": saved.state_dict()}, STATE)
    loaded = network().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    first = next(loaded.parameters())
    nn.init.zeros_(first)
    checkpoint.load_network(loaded, tmp_path / "latest", "G")
    assert all(
        torch.equal(a, b)
        for a, b in zip(saved.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert first.is_contiguous(memory_format=torch.channels_last_3d)
    assert checkpoint.load_state(tmp_path / "latest") == {
        **STATE,
        "parts": ["G"],
        "sha256": {"G": file_sha256(tmp_path / "latest" / "G.safetensors")},
        "version": __version__,
    }


def test_shared_tensors_are_saved(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    checkpoint.save(tmp_path / "latest", {"G": {"a": shared, "b": shared, "c": shared[1:]}}, STATE)
    found = checkpoint.load_part(tmp_path / "latest", "G")
    assert torch.equal(found["a"], found["b"]) and torch.equal(found["c"], shared[1:])


def test_part_of_a_network(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"inner": network(), "outer": nn.Linear(2, 2)})
    checkpoint.save(tmp_path / "latest", {"G": whole.state_dict()}, STATE)
    inner = network()
    for parameter in inner.parameters():
        nn.init.zeros_(parameter)
    checkpoint.load_network(inner, tmp_path / "latest", "G", prefix="inner.")
    wanted = whole["inner"].state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in inner.state_dict().items())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_optimisers_go_on_as_if_never_stopped(
    tmp_path: Path, fused: bool, channels_last: bool
) -> None:
    """A fused Adam reads its moments as they lie in memory: they must come back in the format of
    the parameters.
    """

    def run(stop: bool) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        layer = nn.Conv3d(3, 4, 3)
        if channels_last:
            layer = layer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, fused=fused)
        for step in range(4):
            if stop and step == 2:
                checkpoint.save(
                    tmp_path / "latest", {"o": checkpoint.optimizer_tensors(optimizer)}, STATE
                )
                optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, fused=fused)
                checkpoint.load_optimizer(
                    optimizer, checkpoint.load_part(tmp_path / "latest", "o"), tmp_path
                )
            optimizer.zero_grad()
            layer(torch.randn(2, 3, 5, 5, 5)).square().mean().backward()
            optimizer.step()
        moment = optimizer.state[layer.weight]["exp_avg"]
        assert moment.stride() == layer.weight.stride()
        return layer.weight.detach(), moment

    assert all(torch.equal(a, b) for a, b in zip(run(False), run(True), strict=True))


# --- kills ---


def saved_file(number: int) -> Callable[..., bool]:
    """Whether this is the so-many-th file written."""
    calls: list[Path] = []

    def when(tensors: Any, path: Path) -> bool:
        calls.append(path)
        return len(calls) == number

    return when


KILLS: dict[str, tuple[Any, str, Callable[[], Callable[..., bool]], float]] = {
    "before the first file": (checkpoint, "save_file", lambda: saved_file(1), 1.0),
    "between files": (checkpoint, "save_file", lambda: saved_file(2), 1.0),
    "before the state": (checkpoint, "write_json", lambda: lambda path, value: True, 1.0),
    "before the old one steps aside": (
        Path,
        "rename",
        lambda: lambda path, to: path.name == "latest",
        1.0,
    ),
    "between the renames": (
        Path,
        "rename",
        lambda: lambda path, to: path.name == ".latest.writing",
        1.0,
    ),
    "after the renames": (
        shutil,
        "rmtree",
        lambda: lambda path: path.name == ".latest.previous" and path.exists(),
        2.0,
    ),
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_leaves_a_whole_checkpoint(moment: str, tmp_path: Path) -> None:
    owner, name, when, expected = KILLS[moment]
    latest = tmp_path / "latest"
    checkpoint.save(latest, parts(1.0), STATE)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, owner, name, when())
        with pytest.raises(Killed):
            checkpoint.save(latest, parts(2.0), STATE)
    assert value_of(latest) == expected
    # Killed there a second time, when what lies aside is all there is.
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, owner, name, when())
        with pytest.raises(Killed):
            checkpoint.save(latest, parts(3.0), STATE)
    assert value_of(latest) in (expected, 3.0)
    checkpoint.save(latest, parts(4.0), STATE)
    assert value_of(latest) == 4.0 and [p.name for p in tmp_path.iterdir()] == ["latest"]


def test_the_only_checkpoint_is_never_taken_away(tmp_path: Path) -> None:
    """After a kill between the renames, the next save must not begin by removing what stepped
    aside.
    """
    latest = tmp_path / "latest"
    checkpoint.save(latest, parts(1.0), STATE)
    latest.rename(tmp_path / ".latest.previous")
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, Path, "rename", lambda path, to: True)
        with pytest.raises(Killed):
            checkpoint.save(latest, parts(2.0), STATE)
    assert value_of(latest) == 1.0


def test_json_is_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "options.json"
    write_json(path, {"a": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda number: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}


def test_a_state_with_a_number_that_json_lacks_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "latest", parts(1.0), {**STATE, "best": float("inf")})
    assert checkpoint.load_state(tmp_path / "latest")["best"] is None


# --- what must not be loaded ---


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_that_is_loaded_runs(tmp_path: Path) -> None:
    executed, latest, made = tmp_path / "executed", tmp_path / "latest", network()
    optimizer = torch.optim.Adam(made.parameters())
    saved = {"G": made.state_dict(), "optimizer_G": checkpoint.optimizer_tensors(optimizer)}
    checkpoint.save(latest, saved, STATE)
    code = pickle.dumps(Payload(executed))
    for name in (
        "custom_checkpoint_0.pkl",
        "random_states_0.pkl",
        "optimizer.bin",
        "G.bin",
        "pytorch_model.bin",
    ):
        (latest / name).write_bytes(code)
    checkpoint.load_network(made, checkpoint.find(latest), "G")
    checkpoint.load_optimizer(optimizer, checkpoint.load_part(latest, "optimizer_G"), latest)
    (latest / "G.safetensors").write_bytes(code)
    with pytest.raises(UserError, match=r"G\.safetensors is damaged"):
        checkpoint.load_network(made, latest, "G")
    (latest / "state.json").write_bytes(code)
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        checkpoint.load_state(latest)
    assert not executed.exists()
    pickle.loads(code)
    assert executed.exists()  # the payload is one


def test_another_architecture_is_named(tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    checkpoint.save(latest, {"G": network(4).state_dict()}, STATE)
    with pytest.raises(
        UserError,
        match=r"another architecture \(other shape 0\.weight \(4, 2, 3, 3, 3\) instead of \(6,",
    ):
        checkpoint.load_network(network(6), latest, "G")
    with pytest.raises(UserError, match=r"missing 0\.0\.bias .*not known 0\.bias"):
        checkpoint.load_network(nn.Sequential(network(), nn.Linear(2, 2)), latest, "G")
    optimizer = torch.optim.Adam(network(6).parameters())
    tensors = {f"{i}.exp_avg": torch.zeros(1) for i in range(6)}
    with pytest.raises(UserError, match="another architecture"):
        checkpoint.load_optimizer(optimizer, tensors, latest / "optimizer_G")


def test_a_damaged_or_missing_part_is_named(tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    checkpoint.save(latest, parts(), STATE)
    file = latest / "G.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"G\.safetensors is damaged"):
        checkpoint.load_part(latest, "G")
    with pytest.raises(UserError, match=r"average\.safetensors is missing"):
        checkpoint.load_part(latest, "average")


def without_digests(folder: Path) -> dict[str, Any]:
    """Make a checkpoint one of 0.1, which had no digests; return its state."""
    state: dict[str, Any] = read_json(folder / "state.json")
    state = {name: v for name, v in state.items() if name not in ("sha256", "digest")}
    write_json(folder / "state.json", state)
    return state


def test_every_flipped_bit_of_a_part_is_found(tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    checkpoint.save(latest, parts(1.0), STATE)
    file = latest / "G.safetensors"
    content = file.read_bytes()
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(UserError, match=r"G\.safetensors is damaged.*--which_epoch"):
            checkpoint.load_part(latest, "G")
    file.write_bytes(content)
    assert torch.equal(checkpoint.load_part(latest, "G")["w"], torch.ones(2, 3))


def test_a_changed_state_is_found(tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    checkpoint.save(latest, parts(), STATE)
    state = read_json(latest / "state.json")
    changes: list[dict[str, Any]] = [{"step": 4}, {"parts": ["G"]}, {"sha256": {}}]
    for changed in changes:
        write_json(latest / "state.json", {**state, **changed})
        with pytest.raises(UserError, match=r"state\.json is damaged: its content has changed"):
            checkpoint.load_state(latest)


def test_a_checkpoint_without_digests_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "latest", parts(2.0), STATE)
    without_digests(tmp_path / "latest")
    assert value_of(tmp_path / "latest") == 2.0


WRONG_VALUES: tuple[Any, ...] = (
    None,
    [],
    [1],
    "x",
    10**400,
    1e400,
    {},
    {"x": "y"},
    True,
    -1,
    [[[]]],
)


def test_a_state_of_wrong_types_is_named(tmp_path: Path) -> None:
    latest = tmp_path / "latest"
    run_values = {"labels": [0, 1], "columns": ["AGE"], "encoder": {"kind": "table"}}
    checkpoint.save(latest, parts(), {**STATE, **run_values, "weights": {"a": 0.5}})
    state = without_digests(latest)
    refused = set()
    for name in state:
        for value in WRONG_VALUES:
            (latest / "state.json").write_text(json.dumps({**state, name: value}))
            try:
                checkpoint.load_state(latest)
            except UserError as error:
                assert "state.json is damaged" in str(error) and len(str(error)) < 500
                refused.add(name)
    assert refused == set(state)
    (latest / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="encoder_values is missing"):
        checkpoint.load_state(latest, ["labels", "encoder_values"])
    for content in ("[" * 100_000, "9" * 5000, "{}", "null", '"a"', "\udcff", ""):
        (latest / "state.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match=r"state\.json is damaged"):
            checkpoint.load_state(latest)


def test_an_optimiser_of_wrong_tensors_is_refused(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(network().parameters())
    sizes = [p.shape for p in network().parameters()]
    good = {f"{i}.step": torch.ones(()) for i in range(len(sizes))}
    for name in ("exp_avg", "exp_avg_sq"):
        good |= {f"{i}.{name}": torch.zeros(size) for i, size in enumerate(sizes)}
    checkpoint.load_optimizer(optimizer, good, tmp_path)
    for name in ("x.step", "0", "0.y", "0.step", "0.exp_avg", "1.exp_avg_sq", "99.step"):
        with pytest.raises(UserError, match="another architecture"):
            checkpoint.load_optimizer(optimizer, {**good, name: torch.ones(7)}, tmp_path)
    with pytest.raises(UserError, match="another architecture"):
        checkpoint.load_optimizer(optimizer, {**good, "0.exp_avg": torch.ones(1)}, tmp_path)
    del good["0.step"]
    with pytest.raises(UserError, match="another architecture"):
        checkpoint.load_optimizer(optimizer, good, tmp_path)


def test_a_folder_without_state_is_no_checkpoint(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "G.safetensors")
    checkpoint.save(tmp_path / "7", parts(), STATE)
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match=r"latest holds no checkpoint. Checkpoints in .*: 7"):
        checkpoint.find(tmp_path / "latest")
    (tmp_path / "7" / "state.json").write_text(json.dumps(["step"]))
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        checkpoint.load_state(tmp_path / "7")

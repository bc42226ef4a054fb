"""The reader of weights: formats, wrappers, and files that are not weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.weights import read_weights
from util.cli import UserError

STATE = {"layer.weight": torch.arange(3.0)}


def test_formats_and_wrappers(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    torch.save(STATE, tmp_path / "w.pt")
    torch.save({"epoch": 3, "state_dict": STATE}, tmp_path / "wrapped.pth")
    torch.save({"model": {"net": STATE}}, tmp_path / "twice.pth")
    torch.save({"unet_state_dict": STATE, "scale_factor": torch.ones(1)}, tmp_path / "maisi.pt")
    for name in ("w.safetensors", "w.pt", "wrapped.pth", "twice.pth", "maisi.pt"):
        weights = read_weights(tmp_path / name, "--flag")
        assert list(weights) == list(STATE)
        assert torch.equal(weights["layer.weight"], STATE["layer.weight"])


def test_files_that_are_not_weights(tmp_path: Path) -> None:
    (tmp_path / "damaged.pt").write_bytes(b"damaged")
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    torch.save({**STATE, "folder": tmp_path}, tmp_path / "objects.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, rule in (
        ("absent.pt", "is not there"),
        (
            "damaged.pt",
            r"cannot be read as weights \(it is damaged, or torch.save did not write it",
        ),
        ("objects.pt", "objects that could run code, such as pathlib"),
        ("damaged.safetensors", "cannot be read as weights"),
        ("epoch.pt", "it holds: epoch"),
        ("list.pt", "holds no weights by name"),
    ):
        with pytest.raises(UserError, match=rf"--flag: .*{name}.*{rule}"):
            read_weights(tmp_path / name, "--flag")

"""Counter-based random numbers: known answers, places, devices, and what they look like."""

from __future__ import annotations

import pytest
import torch

from util.seeding import WORD, noise_box, noise_key, philox, uniform_draws


def words(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    return [int(word) for word in philox(counter, [torch.tensor([k]) for k in key])]


def test_philox_gives_the_known_answers() -> None:
    """Of Random123, the authors' library."""
    assert words((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words((WORD,) * 4, (WORD, WORD)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    assert words(pi, (0xA4093822, 0x299F31D0)) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_a_box_is_a_part_of_the_field() -> None:
    keys = torch.stack([noise_key(0, "one"), noise_key(0, "two")])
    field = noise_box(keys, 10, (0, 0, 0), (20, 9, 12))
    box = noise_box(keys[1:], 10, (7, 2, 5), (13, 6, 7))
    assert torch.equal(box[0], field[1, :, 7:, 2:8, 5:])
    assert torch.equal(noise_box(keys, 3, (0, 0, 0), (20, 9, 12)), field[:, :3])
    assert noise_box(keys, 0, (0, 0, 0), (4, 4, 4)).shape == (2, 0, 4, 4, 4)


def test_noise_is_standard_normal_and_its_channels_are_independent() -> None:
    noise = noise_box(noise_key(1, "case")[None], 12, (0, 0, 0), (32, 32, 32))[0].flatten(1)
    assert noise.mean().abs() < 0.005 and noise.std() == pytest.approx(1, abs=0.005)
    assert noise.pow(4).mean() == pytest.approx(3, abs=0.05)
    assert (torch.corrcoef(noise) - torch.eye(12)).abs().max() < 0.03
    beside = torch.corrcoef(torch.stack([noise[0, :-1], noise[0, 1:]]))[0, 1]
    assert abs(float(beside)) < 0.03
    assert uniform_draws(noise_key(1, "case")[None], 2).shape == (1, 2)

"""The check for copies: copies are found, and strangers in the same mask are not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.evaluation.detail import detail_vector
from pipelines.evaluation.memorisation import (
    CopyCheck,
    copy_threshold,
    leave_one_out,
)
from tests.measured_volumes import RNG
from util.cli import UserError


def lungs_of(seed: int) -> NDArray[np.float32]:
    """A chest of one shape, with vessels of its own."""
    rng = np.random.default_rng(seed)
    hu = np.full((40, 40, 40), 30, np.float32)
    hu[4:36, 4:36, 4:36] = -860
    for place in rng.integers(6, 32, (60, 3)):
        hu[tuple(slice(p, p + 3) for p in place)] = -600
    return hu + rng.normal(0, 20, hu.shape).astype(np.float32)


MASK = np.zeros((40, 40, 40), bool)
MASK[4:36, 4:36, 4:36] = True


def details(volumes: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.stack([detail_vector(v, (4, 4, 4), MASK) for v in volumes])


def test_copies_are_found_and_strangers_in_the_same_mask_are_not() -> None:
    scans = [lungs_of(i) for i in range(12)]
    check = CopyCheck.from_scans([f"t{i}" for i in range(12)], details(scans))
    assert check.conclusive
    hidden = [
        scans[3],
        scans[5] + 30,
        scans[7] + RNG.normal(0, 20, scans[7].shape).astype(np.float32),
    ]
    for verdict, name in zip(
        check(details(hidden), sources=["t3", "t5", "t7"]), ("t3", "t5", "t7"), strict=True
    ):
        assert verdict.copy and verdict.alarm and verdict.image.case == name
    assert not any(v.copy for v in check(details([lungs_of(100 + i) for i in range(20)])))


def test_left_out_scans_are_compared_as_new_ones_are() -> None:
    train = RNG.normal(size=(7, 30)) + 1
    distances = leave_one_out(train)
    for i in range(7):
        rest = np.delete(train, i, 0)
        check = CopyCheck.from_scans([str(k) for k in range(6)], rest)
        fresh = check.image.distances(train[i : i + 1])[0]
        assert np.allclose(np.delete(distances[i], i), fresh, atol=1e-5)


def test_features_find_copies_that_lie_elsewhere_but_not_those_of_the_own_mask() -> None:
    features = RNG.normal(size=(30, 10))
    check = CopyCheck.from_scans([f"t{i}" for i in range(30)], RNG.normal(size=(30, 80)), features)
    query, image = features[:1] + 1e-3, RNG.normal(size=(1, 80))
    (stranger,) = check(image, query)
    assert (
        stranger.copy
        and stranger.feature is not None
        and stranger.feature.case == "t0"
        and not stranger.image.copied
    )
    (same_mask,) = check(image, query, sources=["t0"])
    assert not same_mask.copy and same_mask.feature is not None and same_mask.feature.case != "t0"


def test_the_reference_of_copies() -> None:
    train, test = RNG.normal(size=(10, 40)), RNG.normal(size=(6, 40))
    names = [f"t{i}" for i in range(10)]
    assert len(CopyCheck.from_scans(names, train, test_image=test).image.reference) == 6
    assert (
        len(CopyCheck.from_scans(names, train, test_image=test[:3]).image.reference) == 10
    )  # too few: leave one out
    twice = np.concatenate([train, train + 1e-6])
    patients = names * 2
    with_patients = CopyCheck.from_scans(
        [*names, *(f"{n}b" for n in names)], twice, patients=patients
    )
    assert with_patients.image.reference.min() > 0.1  # scans of one patient are no reference
    two = CopyCheck.from_scans(names[:2], train[:2])
    assert not two.conclusive and two.image.threshold == pytest.approx(
        two.image.reference.min() / 2
    )
    with pytest.raises(UserError, match="at least two training scans"):
        CopyCheck.from_scans(names[:1], train[:1])


def test_the_threshold_allows_for_few_distances() -> None:
    many, few = (np.exp(np.random.default_rng(0).normal(0, 0.1, n)) for n in (400, 6))
    assert 0.6 < copy_threshold(many) < 0.75 and copy_threshold(few) < copy_threshold(many)
    assert copy_threshold(np.array([])) == 0


def test_detail_ignores_level_and_needs_lungs() -> None:
    hu = lungs_of(1)
    one, two = detail_vector(hu, (4, 4, 4), MASK), detail_vector(hu + 30, (4, 4, 4), MASK)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5) and float(one @ two) > 0.999
    assert not detail_vector(hu, (4, 4, 4), np.zeros_like(MASK)).any()

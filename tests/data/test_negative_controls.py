"""Negative controls: air outside the patient and in the trachea, and labels, in one scan."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data.negative_controls import measure_controls

SHAPE, SPACING = (96, 72, 40), (4.0, 4.0, 6.0)
TRACHEA, AORTA = 3, 5


def chest(noise: float = 12.0, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A body of 40 HU in air at -990, with two lungs, a trachea and an aorta; and its labels."""
    x, y, z = (
        np.arange(n)[tuple(slice(None) if a == axis else None for a in range(3))] * side
        for axis, (n, side) in enumerate(zip(SHAPE, SPACING, strict=True))
    )
    hu = np.full(SHAPE, -990.0)
    hu[((x - 190) / 130) ** 2 + ((y - 140) / 90) ** 2 + 0 * z < 1] = 40
    labels = np.zeros(SHAPE, np.uint8)
    for label, centre in ((1, 130.0), (2, 250.0)):
        labels[((x - centre) / 40) ** 2 + ((y - 140) / 60) ** 2 + ((z - 110) / 90) ** 2 < 1] = label
    for label, at, value in ((TRACHEA, (190, 120), -970.0), (AORTA, (190, 180), 150.0)):
        tube = (x - at[0]) ** 2 + (y - at[1]) ** 2 + 0 * z < 14**2
        labels[tube] = label
        hu[tube] = value
    hu[np.isin(labels, (1, 2))] = -850
    hu += np.random.default_rng(seed).normal(0, noise, SHAPE)
    return hu.astype(np.float32), labels


def test_every_control_has_its_mean_and_its_noise() -> None:
    hu, labels = chest()
    measured = measure_controls(hu, labels, SPACING, TRACHEA, [AORTA])
    assert list(measured) == ["air", "trachea", "control_label_5"]
    for region, mean in (("air", -990), ("trachea", -970), ("control_label_5", 150)):
        assert measured[region][0] == pytest.approx(mean, abs=2), region
        assert measured[region][1] == pytest.approx(12, rel=0.2), region
    double = measure_controls(2 * chest()[0], labels, SPACING, TRACHEA)
    assert "control_label_5" not in double
    assert double["air"][1] == pytest.approx(2 * measured["air"][1], rel=1e-3)


def test_disease_of_the_lungs_changes_none() -> None:
    hu, labels = chest()
    before = measure_controls(hu, labels, SPACING, TRACHEA, [AORTA])
    diseased = np.where(np.isin(labels, (1, 2)), np.float32(20), hu)
    assert measure_controls(diseased, labels, SPACING, TRACHEA, [AORTA]) == before


def test_table_and_padding_are_not_air() -> None:
    hu, labels = chest()
    clean = measure_controls(hu, labels, SPACING, TRACHEA)["air"]
    hu[:, 62:64] = -300  # a table below the patient
    hu[:8] = -2000  # outside the circle that the scanner reconstructs
    mean, noise = measure_controls(hu, labels, SPACING, TRACHEA)["air"]
    assert mean == pytest.approx(clean[0], abs=1) and noise == pytest.approx(clean[1], rel=0.1)


def test_what_is_not_there_is_left_out() -> None:
    hu, labels = chest()
    hu[hu < -900] = -1024  # a program has blanked all air
    labels[labels == TRACHEA] = 0
    assert measure_controls(hu, labels, SPACING, TRACHEA, [7]) == {}
    inside = np.full((20, 20, 20), 40.0) + np.random.default_rng(0).normal(size=(20, 20, 20))
    assert measure_controls(inside, np.zeros((20, 20, 20), np.uint8), SPACING, TRACHEA) == {}

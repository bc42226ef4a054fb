"""Contrasts over patients: intervals, noise, places and their sentences."""

from __future__ import annotations

import math
from typing import Any

import pytest

from util.metrics.contrast_summary import clearest_contrast, summarise_contrasts
from util.notices import Notice


def rows(column: str = "SMOKING", shift: float = 0.0, **regions: float) -> list[dict[str, Any]]:
    """Effects of 38, 40 and 42 HU in the lungs of three cases, and others by region."""
    made = []
    for case, change in (("a", 38.0), ("b", 40.0), ("c", 42.0)):
        for region, offset in {"lungs": 0.0, **regions}.items():
            made.append(
                {
                    "case": case,
                    "column": column,
                    "from": "Never",
                    "to": "Current",
                    "region": region,
                    "mean_diff_hu": change + shift + offset,
                    "draws": 2,
                    "mc_error_hu": 0.1,
                }
            )
    return made


def test_mean_interval_noise_and_place() -> None:
    (contrast,) = summarise_contrasts(rows(upper=10.0, middle=0.0, lower=-9.0))
    assert contrast.mean == pytest.approx(40)
    half = 4.3027 * 2 / 3**0.5  # t quantile of 2 degrees of freedom, SD 2
    assert (contrast.low, contrast.high) == pytest.approx((40 - half, 40 + half), abs=0.01)
    assert contrast.noise_hu == pytest.approx(0.2)  # two noises: the error is half their distance
    assert (contrast.place, contrast.clearest, contrast.agreeing) == ("upper", "c", 3)
    assert contrast.sentence() == (
        "SMOKING, Current against Never: +40.0 HU [35.0, 45.0] in the lungs, strongest in the "
        "upper thirds; denser in 3 of 3 patients; another noise changes 0.2 HU."
    )


def test_scans_of_a_patient_count_once() -> None:
    (contrast,) = summarise_contrasts(rows(), {"a": "p", "b": "p"})
    assert contrast.patients == 2 and contrast.mean == pytest.approx((39 + 42) / 2)


def test_no_clear_change() -> None:
    (unclear,) = summarise_contrasts(rows(shift=-40.0))
    assert not unclear.is_clear and "no clear change" in unclear.sentence()
    noisy = [{**row, "mc_error_hu": 30.0} for row in rows()]
    assert not summarise_contrasts(noisy)[0].is_clear  # 60 HU by noise alone
    one = [row for row in rows() if row["case"] == "a"]
    (single,) = summarise_contrasts(one)
    assert math.isnan(single.low) and single.is_clear
    assert "+38.0 HU in the lungs of one patient; another noise" in single.sentence()
    (noisy_one,) = summarise_contrasts([{**row, "mc_error_hu": 30.0} for row in one])
    assert "no clear change (+38.0 HU) in one patient;" in noisy_one.sentence()
    (undrawn,) = summarise_contrasts([{**row, "draws": 1, "mc_error_hu": ""} for row in one])
    assert not undrawn.is_clear  # nothing says what is noise
    assert undrawn.sentence().endswith(": +38.0 HU in the lungs of one patient.")


def test_the_clearest_contrast_avoids_what_means_nothing() -> None:
    contrasts = summarise_contrasts([*rows("A", shift=50.0), *rows("B")])
    best = clearest_contrast(contrasts)
    assert best is not None and best.column == "A"
    for avoided in ("A", "A=Current"):
        best = clearest_contrast(contrasts, [avoided])
        assert best is not None and best.column == "B"
    best = clearest_contrast(contrasts, ["A", "B"])
    assert best is not None and best.column == "A"
    assert clearest_contrast([]) is None and summarise_contrasts([]) == []


def test_what_a_notice_concerns() -> None:
    unseen = Notice("t", "unseen", "SEX", "Unicorn")
    assert unseen.concerns_picture("a", "SEX", ("Male", "Unicorn"), ())
    assert not unseen.concerns_picture("a", "SEX", ("Male",), ())
    assert not unseen.concerns_picture("a", "AGE", ("Unicorn",), ()) and not unseen.concerns_case(
        "a"
    )
    trained = Notice("t", "trained", cases=("a",))
    assert trained.concerns_case("a") and not trained.concerns_case("b")
    assert not trained.concerns_picture("a", "SEX", ("Male",), ())
    worded = Notice("t", "worded", phrases=("SEX is X",))
    assert worded.concerns_picture("a", "", (), ("AGE is 3", "SEX is X"))
    assert not worded.concerns_case("a") and not worded.concerns_picture("a", "", (), ("AGE",))

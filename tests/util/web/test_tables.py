"""Tables of effects and metrics."""

from __future__ import annotations

from util.web.tables import effect_summary, effects_by_case, metric_sentence, metric_summary


def test_effects_are_summed_up_over_cases_for_the_lungs() -> None:
    rows = [
        {
            "case": case,
            "column": "SMOKING",
            "from": "Never",
            "to": "Current",
            "region": region,
            "voxels": 9,
            "mean_diff_hu": value,
            "sd_over_voxels_hu": 1.0,
        }
        for case, region, value in (
            ("a", "lungs", 10.0),
            ("b", "lungs", -4.0),
            ("a", "airway", 99.0),
        )
    ]
    row = effect_summary(rows).iloc[0]
    assert (row["mean HU"], row["lowest HU"], row["highest HU"]) == (3.0, -4.0, 10.0)
    assert row["denser in"] == "1 of 2 cases"
    assert "detail SD, HU" not in row  # tables of earlier versions
    measured = [{**r, "change_detail_sd_hu": 2.0, "change_share_below_-950_hu": 0.1} for r in rows]
    row = effect_summary(measured).iloc[0]
    assert (row["detail SD, HU"], row["below -950 HU, %"]) == (2.0, 10.0)
    wide = effects_by_case(rows)
    assert wide.loc[wide["case"] == "a", ["lungs", "airway"]].to_numpy().tolist() == [[10.0, 99.0]]
    metrics = [
        {"case": case, "region": "body", "metric": "mae_hu", "value": v}
        for case, v in (("a", 1), ("b", 3))
    ]
    summary = metric_summary(metrics)
    assert summary.iloc[0].tolist() == ["mae_hu", "body", 2.0, 1.0, 3.0, 2]


def test_the_sentence_of_metrics_says_what_was_done() -> None:
    values = {"mae_hu": 40.0, "detail_sd_hu": 15.0, "real_detail_sd_hu": 20.0}
    rows = [
        {"case": "a", "region": "lungs", "metric": name, "value": value}
        for name, value in values.items()
    ]
    assert metric_sentence(rows, 1) == (
        "1 case generated from mask and text: mean absolute error in the lungs 40 HU, detail 0.75 "
        "of the scans'."
    )
    assert metric_sentence(rows, 1, edited=True).startswith(
        "1 real scan regenerated without a change: mean absolute error"
    )
    # With --set or --prompt the distance from the scan is what was asked for, and no error.
    assert metric_sentence(rows, 1, edited=True, other_text=True) == (
        "1 real scan with another text: mean absolute change in the lungs 40 HU."
    )
    assert metric_sentence((), 2) == "2 cases generated from mask and text."

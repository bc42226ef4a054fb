"""Unknown cells, adjustment sets, and what is known of them: simulated cohorts with a truth."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import networkx as nx  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from benchmarks import real_scans as benchmark
from data.text.prompts import load_template
from options.benchmarks.statistics import RealScansBenchmarkOptions
from pipelines.atlas.pages.adjustment_graph import adjustment_graph
from pipelines.atlas.statistics.adjustment import VOLUME, Roles
from pipelines.atlas.statistics.cautions import count_cautions, imputation_cautions
from pipelines.atlas.statistics.contrasts import AtlasAttribute, contrasts_of
from pipelines.atlas.statistics.imputation import PooledEstimate, impute_tables
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.regression import MAIN_PLACE, AttributeTables, estimate_contrasts
from pipelines.atlas.statistics.sensitivity import missing_sensitivity, sensitivity_ranges
from util.cli import UserError

CONTRASTS = [c for c in benchmark.CONTRASTS if c.column == "SMOKING"]
CURRENT = "SMOKING=Never_to_Current"


def cohort(seed: int, cases: int = 150) -> benchmark.Cohort:
    return benchmark.Cohort.draw(cases, 15.0, seed)


def holes(one: benchmark.Cohort, share: float = 0.25) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    return one.table.mask(rng.random(one.table.shape) < share, "")


def test_imputed_cells_hold_values_of_the_column_and_known_ones_stay() -> None:
    one = cohort(1)
    table = holes(one)
    table["RARE"] = [""] * 120 + ["a", "b"] * 15
    completed = impute_tables(table, one.outcomes, 3)
    assert len(completed.tables) == 3 and set(completed.not_imputed) == {"RARE"}
    assert completed.not_imputed["RARE"] == pytest.approx(0.8)
    for filled, column in product(completed.tables, one.table.columns):
        known = table[column] != ""
        assert (filled.loc[known, column] == table.loc[known, column]).all()
        assert set(filled[column]) <= set(table.loc[known, column])
    first, second = (t["AGE"] for t in completed.tables[:2])
    assert (first != second).any()
    again = impute_tables(table, one.outcomes, 3)
    assert all(a.equals(b) for a, b in zip(completed.tables, again.tables, strict=True))
    assert impute_tables(one.table, one.outcomes).tables == [one.table]


def test_imputed_values_follow_the_measurements() -> None:
    """An imputation that ignores the picture would halve the difference of the imputed cases."""
    one = cohort(2, 400)
    table = holes(one)
    unknown = table["SMOKING"] == ""
    differences = []
    for filled in impute_tables(table, one.outcomes).tables:
        upper = (
            one.outcomes.loc[unknown, (MEAN, "upper")]
            .groupby(filled.loc[unknown, "SMOKING"])
            .mean()
        )
        differences.append(upper["Current"] - upper["Never"])
    assert 55 < np.mean(differences) < 95  # truth: 75 direct


def test_rubins_rules() -> None:
    one = PooledEstimate.from_tables([10.0], [2.0], 50)
    assert (one.value, one.se, one.df) == (10, 2, 50)
    same = PooledEstimate.from_tables([10.0] * 5, [2.0] * 5, 50)
    assert (same.se, same.df) == (2, 50)
    pooled = PooledEstimate.from_tables([8.0, 10.0, 12.0], [2.0] * 3, 50)
    assert pooled.se == pytest.approx(np.sqrt(4 + 4 * 4 / 3)) and pooled.df < 6
    low, high = pooled.interval()
    assert low < 10 - 1.96 * pooled.se and high - 10 == pytest.approx(10 - low)


def test_a_quarter_of_the_cells_missing_hardly_moves_the_estimates() -> None:
    """Beside the same cohorts with every cell known; biases are in benchmarks/RESULTS.md."""
    moved: dict[str, list[float]] = {"imputed": [], "indicators": []}
    for seed in (1, 2):
        one = cohort(seed, 500)
        table = holes(one)
        known = smoking_effect(benchmark.known_estimates(one, table, CONTRASTS))
        for method, changes in moved.items():
            real = benchmark.METHODS[method](one, table, CONTRASTS)
            changes.append(smoking_effect(real) - known)
    assert abs(np.mean(moved["imputed"])) < 2 < np.mean(moved["indicators"])


def smoking_effect(real: pd.DataFrame) -> float:
    rows = real.query("contrast == @CURRENT and region == 'lungs' and adjustment == 'direct'")
    return float(rows["real"].iloc[0])


def test_a_column_missing_in_nine_of_ten_rows_is_not_adjusted_for_nor_claimed() -> None:
    one = cohort(3)
    table = one.table.copy()
    table.loc[np.arange(len(table)) % 10 > 0, "FVC"] = ""
    scans = one.scans(table)
    real = estimate_contrasts(scans, CONTRASTS, benchmark.ROLES)
    assert not real["adjusted_for"].str.contains("FVC").any() and real["real"].notna().all()
    missing = missing_sensitivity(scans, CONTRASTS, benchmark.ROLES)
    columns = {c.id: c.column for c in CONTRASTS}
    warned = imputation_cautions(scans, missing, columns)
    assert [c.kind for c in warned] == ["not adjusted"] and "cannot be concluded" in warned[0].text
    rows = benchmark.ROLES.rows("SMOKING", scans.completed.not_imputed)
    fvc = next(row for row in rows if row["other"] == "FVC")
    assert fvc["direct"] == "no" and fvc["why"] == "not known in 90% of the scans"
    known = table.loc[table["FVC"] != "", "FVC"].value_counts().to_dict()
    attribute = AtlasAttribute("FVC", "mediator", "number", ("60", "100"), known)
    claimed = count_cautions([attribute], table[["FVC"]], pd.Series(range(len(table))))
    assert claimed[0].kind == "missing" and claimed[0].forbids


def test_values_not_missing_at_random_have_their_lines() -> None:
    one = cohort(4)
    table = holes(one)
    scans = one.scans(table)
    missing = missing_sensitivity(scans, CONTRASTS, benchmark.ROLES)
    assumptions = set(missing["assumption"])
    assert {"missing at random", "complete cases", "unknown AGE higher by 0.5 SD"} <= assumptions
    assert {"unknown DIAGNOSIS: 50% are IPF", "SMOKING imputed where unknown"} <= assumptions
    total = missing[missing["effect"] == "total"]
    assert not total["assumption"].str.contains("DIAGNOSIS").any()
    ranges = sensitivity_ranges(missing)
    assert (ranges["least"] <= ranges["at_random"]).all()
    assert (ranges["at_random"] <= ranges["most"]).all()
    # The interval is that of Rubin's rules: it holds the spread between completed tables, too.
    at_random = missing[
        (missing["assumption"] == "missing at random") & (missing["effect"] == "total")
    ]
    row = at_random[at_random["contrast"] == CURRENT].iloc[0]
    attribute = benchmark.ROLES.attributes["SMOKING"]
    covariates = scans.covariates_known(benchmark.ROLES.total("SMOKING"))
    designs = AttributeTables.from_scans(scans, attribute).designs(covariates)
    fits = [
        sm.OLS(scans.outcomes.loc[one.cases, MAIN_PLACE], one.x).fit(cov_type="HC3", use_t=True)
        for one in designs.designs[:3]
    ]
    index = 1 + designs.designs[0].terms.index("Current")
    values, errors = ([getattr(f, name).iloc[index] for f in fits] for name in ("params", "bse"))
    pooled = PooledEstimate.from_tables(values, errors, fits[0].df_resid)
    assert (row["low"], row["high"]) == pytest.approx(pooled.interval())
    everything = benchmark.Cohort.draw(80, 15.0, 1).scans()
    assert not len(missing_sensitivity(everything, CONTRASTS, benchmark.ROLES))


def test_a_sign_that_hangs_on_unknown_cells_forbids_a_claim() -> None:
    scans = cohort(5).scans()
    row = {"contrast": CURRENT, "region": "lungs", "effect": "direct", "cases": 100}
    rows = []
    for assumption, hu in (("missing at random", 15.0), ("unknown AGE lower by 0.5 SD", -3.0)):
        rows.append({**row, "assumption": assumption, "real": hu, "low": 0, "high": 0})
    warned = imputation_cautions(scans, pd.DataFrame(rows), {CURRENT: "SMOKING"})
    assert [(c.kind, c.column, c.forbids) for c in warned] == [("not at random", "SMOKING", True)]
    assert "-3 to +15 HU" in warned[0].text


@pytest.mark.parametrize(("low", "forbidden"), [(2.0, 1), (-2.0, 0)])
def test_the_sign_of_a_small_effect_matters_where_it_is_shown(low: float, forbidden: int) -> None:
    scans = cohort(5).scans()
    row = {"contrast": CURRENT, "region": "lungs", "effect": "direct", "cases": 100}
    rows = []
    for assumption, hu in (("missing at random", 8.0), ("unknown AGE lower by 0.5 SD", -1.0)):
        rows.append({**row, "assumption": assumption, "real": hu, "low": hu - 8 + low, "high": 14})
    warned = imputation_cautions(scans, pd.DataFrame(rows), {CURRENT: "SMOKING"})
    assert sum(c.forbids for c in warned) == forbidden


# --- adjustment sets


def role_graph(roles: Roles) -> nx.DiGraph:
    """Return the graph that the roles stand for, with the picture and the lung volume."""
    order = ("demographic", "acquisition", "exposure", "diagnosis", "mediator", "mask", "picture")
    nodes = {name: a.role for name, a in roles.attributes.items()}
    nodes |= {roles.diagnosis: "diagnosis", VOLUME: "mask", "picture": "picture"}
    graph = nx.DiGraph()
    for (one, first), (other, second) in product(nodes.items(), repeat=2):
        if first == "outcome" or {first, second} == {"demographic", "acquisition"}:
            continue
        if second == "outcome" or order.index(first) < order.index(second):
            graph.add_edge(one, other)
    return graph


@pytest.mark.parametrize("column", list(benchmark.ATTRIBUTES))
def test_total_sets_meet_the_back_door_criterion(column: str) -> None:
    """No covariate is caused by the attribute, and all paths into the attribute are blocked."""
    dead = AtlasAttribute("DEAD", "outcome", "category", ("No", "Yes"), {})
    roles = Roles({**benchmark.ATTRIBUTES, "DEAD": dead}, frozenset(), "DIAGNOSIS")
    graph = role_graph(roles)
    total = set(roles.total(column))
    assert not total & nx.descendants(graph, column)
    back_doors = graph.copy()
    back_doors.remove_edges_from(list(graph.out_edges(column)))
    assert nx.is_d_separator(back_doors, {column}, {"picture"}, total)
    for one in roles.adjustments(column):
        assert "DEAD" not in one.covariates
    direct = {*roles.direct(column), VOLUME}
    only = graph.copy()
    only.remove_edge(column, "picture")
    assert nx.is_d_separator(only, {column}, {"picture"}, direct)


def test_what_an_outcome_is_adjusted_for_comes_before_it() -> None:
    dead = AtlasAttribute("DEAD", "outcome", "category", ("No", "Yes"), {})
    roles = Roles({**benchmark.ATTRIBUTES, "DEAD": dead}, frozenset(), "DIAGNOSIS")
    rows = roles.rows("DEAD", {})
    assert {row["place"] for row in rows} == {"before"} and len(rows) == len(
        benchmark.ATTRIBUTES
    ) + 1
    graphs = [str(adjustment_graph("DEAD", rows, 0, is_outcome=end)) for end in (False, True)]
    assert graphs[0] != graphs[1] and all("log lung volume" in graph for graph in graphs)


def test_total_and_direct_effects_are_those_of_the_model() -> None:
    one = cohort(6, 2000)
    real = estimate_contrasts(one.scans(), benchmark.CONTRASTS, benchmark.ROLES)
    for row in benchmark.compare_with_truth(real, ("lungs", "lower")):
        assert abs(row["real_hu"] - row["true_hu"]) < 3.5, row
    smoking = benchmark.true_effect(CURRENT, "total", "lungs")
    assert smoking > 45 and benchmark.true_effect(CURRENT, "direct", "lungs") == 40


def test_roles_of_another_template(tmp_path: Path) -> None:
    columns = ["SEX", "DIAGNOSIS", "File Name"]
    template = load_template("auto", columns, "File Name")
    path = tmp_path / "roles.yaml"
    path.write_text("columns:\n  DIAGNOSIS: {role: mediator}\n")
    changed = template.with_roles(path, columns)
    assert changed.role("DIAGNOSIS") == "mediator" and template.role("DIAGNOSIS") == "exposure"
    row = {"SEX": "Male", "DIAGNOSIS": "IPF"}
    assert changed.phrases(row) == template.phrases(row)
    for text, message in (
        ("columns:\n  FVC: {role: mediator}\n", "names no column of the table"),
        ("columns:\n  SEX: {role: id}\n", "decided in training"),
        ("columns:\n  SEX: {role: cause}\n", "must be one of"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            template.with_roles(path, columns)
    with pytest.raises(UserError, match="is not a YAML file"):
        template.with_roles(tmp_path / "none.yaml", columns)


def test_contrasts_of_numbers_scale() -> None:
    one = cohort(7)
    real = estimate_contrasts(
        one.scans(), contrasts_of(benchmark.ATTRIBUTES["AGE"]), benchmark.ROLES
    )
    rows = real.query("region == 'lungs' and adjustment == 'direct'").set_index("contrast")
    outer, slope = rows.loc["AGE=50_to_80"], rows.loc["AGE=per_unit"]
    assert outer["real"] == pytest.approx(30 * slope["real"])
    assert outer["p"] == pytest.approx(slope["p"])


def test_the_benchmark_writes_its_figures() -> None:
    options = RealScansBenchmarkOptions(OUT="", cohorts=2, cases=60)
    rows = benchmark.coverage_study(options)
    assert {row["effect"] for row in rows} == {"total", "direct"}
    assert all(row["cohorts"] == 2 and 0 <= row["coverage"] <= 1 for row in rows)
    nulls = benchmark.permuted_study(options)
    assert len(nulls) == 2 and all(row["true_findings"] for row in nulls)
    held, declared = benchmark.summary_sentences({"coverage": rows, "permuted": nulls})
    assert held.startswith("Intervals hold the truth in") and "of 2 permuted columns" in declared

"""Pages of an atlas: zones, charts, and the pages in a real browser, opened from disk."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pipelines.atlas.pages import charts
from pipelines.atlas.report import write_pages
from pipelines.atlas.statistics.outcomes import MEAN, OUTCOMES
from pipelines.atlas.statistics.sentences import split_reason
from pipelines.atlas.statistics.zones import label_zones, top_zones, zone_masks
from tests import atlas_folder
from tests.pages import shows_picture_first
from util.cli import UserError
from util.metrics.regions import chest_regions
from util.web.figures import difference_rgb, radiological_slice
from util.web.page_parts import typeset
from util.web.viewer_parts import RANK_COLOURS, fitting_limit
from util.web.web_data import INT16, pack

LABELS = {c.id: c.label for c in atlas_folder.CONTRASTS}
Visit = Callable[[Path], Any]


# --- zones ---


def test_zones_share_out_the_lungs() -> None:
    labels = atlas_folder.lungs()
    masks = zone_masks(chest_regions(labels, atlas_folder.SPACING))
    assert len(masks) == 12 and "right lower third, subpleural" in masks
    assert np.array_equal(np.sum(list(masks.values()), axis=0) == 1, labels > 0)
    zone = "left upper third, central"
    number = 1 + list(masks).index(zone)
    assert masks[zone].sum() == (label_zones(masks, labels.shape) == number).sum() > 0
    both = (labels > 0).astype(np.uint8)
    one = zone_masks(chest_regions(both, atlas_folder.SPACING, lung_labels=(1,)))
    assert len(one) == 6 and all(name.startswith(("upper", "middle", "lower")) for name in one)
    assert zone_masks(chest_regions(np.zeros((4, 4, 4), np.uint8), (1, 1, 1))) == {}


def test_strongest_zones() -> None:
    means = {"a": -40.0, "b": 25.0, "c": 19.0, "d": 39.0, "e": 30.0}
    assert top_zones(means, 0) == ["a", "d", "e"]  # three at most, by size whatever the sign
    assert top_zones(means, 39.5) == ["a"]  # chance alone reaches the others
    assert top_zones({"a": 40.0, "b": 19.0}, 0) == ["a"]  # less than half of the strongest
    assert (
        top_zones({"a": 0.9}, 0) == [] and top_zones({}, 0) == []
    )  # below the rounding of volumes


def test_small_helpers() -> None:
    assert (
        typeset("CTD-ILD: -4 HU [-9, +1], 45-80, --fold")
        == "CTD-ILD: −4 HU [−9, +1], 45-80, --fold"
    )
    assert (fitting_limit(82), fitting_limit(5), fitting_limit(5000)) == (100, 5, 1000)
    packed = gzip.decompress(base64.b64decode(pack(np.array([np.nan, -1e9, 1.0]), 1.0)))
    low_then_high = np.frombuffer(packed, np.uint8).reshape(2, -1)
    stored = np.ascontiguousarray(low_then_high.T).view("<i2").ravel()
    assert stored.tolist() == [INT16.min, INT16.min + 1, 1]


# --- charts ---


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that were saved."""
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "save_chart", lambda figure, stem, terms: figures.append(figure))
    return figures


def texts(figure: Figure) -> list[str]:
    shown = [t.get_text() for axes in figure.axes for t in axes.texts]
    return shown + [t.get_text() for legend in figure.legends for t in legend.get_texts()]


@pytest.mark.parametrize("refits", [False, True])
def test_forest_plot_has_intervals_only_with_refits(drawn: list[Figure], refits: bool) -> None:
    tests = atlas_folder.tests_table(refits)
    spread = tests.assign(patients=1, patients_low=-7.0, patients_high=1.0)
    charts.forest_plot(tests, spread, LABELS, Path("x"))
    shown = texts(drawn[0])
    assert ("95 % interval over refits" in shown) == ("finding" in shown) == refits
    assert ("lowest to highest patient (not an uncertainty)" in shown) == (not refits)
    assert ("reached by permuted refits (chance)" in shown) == refits
    assert shown.count("−4.0") == 3 and "−5.0 [−9.0, −1.0]" in shown  # without the slope


@pytest.mark.parametrize("refits", [False, True])
def test_heat_map_frames_findings(drawn: list[Figure], refits: bool) -> None:
    charts.heat_map(atlas_folder.tests_table(refits), LABELS, 100, Path("x"))
    axes = drawn[0].axes[0]
    assert len(axes.patches) == int(refits)
    shown = axes.images[0].get_array()
    assert axes.images[0].get_clim() == (-100, 100) and shown is not None and shown.shape == (3, 3)


@pytest.mark.parametrize("refits", [False, True])
def test_outcome_map_has_its_own_scale_for_each_outcome(drawn: list[Figure], refits: bool) -> None:
    charts.outcome_map(atlas_folder.tests_table(refits), LABELS, Path("x"))
    axes = drawn[0].axes[0]
    assert len(axes.patches) == 2 * refits  # the mean and the share of one contrast
    assert texts(drawn[0]).count("−4.0") == 6  # three contrasts, without the slope
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (3, 2) and shown[0].tolist() == [-0.4, -2.0]  # of 10 HU and 2 points
    assert "(points)" in axes.get_xticklabels()[1].get_text()


def test_charts_without_anything(drawn: list[Figure]) -> None:
    empty = atlas_folder.tests_table(False).iloc[:0]
    assert charts.largest_change(empty, ["lungs"]) == 0
    assert (
        not charts.dose_plot(
            pd.DataFrame(columns=["column", "region", "outcome"]), {"AGE": "years"}, Path("x")
        )
        and drawn == []
    )


# --- content ---


WARNING = "The run is unfinished: step 1 of 2."


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas") / "a"
    study = atlas_folder.make_atlas(folder)
    record = json.loads((folder / "atlas.json").read_text())
    (folder / "atlas.json").write_text(json.dumps({**record, "warnings": [WARNING]}))
    write_pages(folder, study)  # type: ignore[arg-type]
    return folder


def test_warnings_of_the_command_stand_on_the_page(atlas: Path) -> None:
    assert f"<li>{WARNING}</li>" in (atlas / "index.html").read_text()


def case_page(atlas: Path) -> Path:
    return atlas / "cases" / "patient__1_.html"


def test_every_link_leads_to_a_file(atlas: Path) -> None:
    for page in (atlas / "index.html", case_page(atlas)):
        text = page.read_text()
        links = re.findall(r'(?:href|src)="([^"#][^"]*)"', text)
        assert len(links) > 8
        for link in links:
            assert link.startswith("data:") or (page.parent / unquote(link)).exists(), link
    text = (atlas / "index.html").read_text()
    assert {"atlas.json", "volumes.csv", "pairs.csv", "maps.npz"} <= set(
        re.findall(r'href="([^"]+)"', text)
    )


def test_pages_claim_nothing_without_refits(atlas: Path) -> None:
    text = (atlas / "index.html").read_text()
    assert "significant" not in text + case_page(atlas).read_text()
    assert (
        "No cell is a finding" in text
        and "too few refits" in text
        and "Nothing is called a finding." in text
    )
    for part in split_reason(atlas_folder.SENTENCE):
        assert part.replace("-4.0", "−4.0") in text
    assert "There are 0 refits." in text
    assert "Whether groups were scanned differently is not known." in text
    assert "<1>" not in text and "patient &lt;1&gt;" in text


def test_outcomes_of_one_contrast_stand_together(tmp_path: Path) -> None:
    study = atlas_folder.make_atlas(tmp_path / "a", refits=True)
    path = tmp_path / "a" / "atlas.json"
    record = json.loads(path.read_text())
    rows = [
        record["not_found"][0] | {"contrast": contrast, "outcome": outcome, "sentence": sentence}
        for contrast, outcome, sentence in (
            ("AGE=45_to_80", "share_below_950", "Less of the lung."),
            ("DIAGNOSIS=HP_to_IPF", "percentile_95", "Denser dense tissue."),
            ("AGE=45_to_80", "mean", "Age lowers the mean."),
        )
    ]
    hidden = record["not_found"][0] | {"outcome": "detail_sd", "sentence": "Coarser."}
    same = [
        record["not_found"][0] | {"outcome": MEAN, "sentence": f"{name}. Not judged: too few."}
        for name in ("First", "Second")
    ]
    record |= {"findings": rows, "not_found": [*record["not_found"], *same, hidden]}
    path.write_text(json.dumps(record))
    text = write_pages(tmp_path / "a", study).read_text()  # type: ignore[arg-type]
    cards = re.findall(r"<section.*?</section>", text, re.DOTALL)
    found = next(card for card in cards if "<h2>Findings</h2>" in card)
    assert found.index("Age lowers the mean.") < found.index("Less of the lung.")
    assert "Also in: share below −950 HU" in found and "Denser dense tissue." in found
    assert found.index("Less of the lung.") < found.index("Denser dense tissue.")
    others = next(card for card in cards if "Looked for" in card)
    before, _, folded = others.partition("The same of outcomes other than the mean (1)")
    assert "Coarser." in folded and "Coarser." not in before
    # A reason stands once, above all that it holds for.
    reason, first, second = map(before.index, ("Not judged: too few.", "First.", "Second."))
    assert reason < first < second and before.count("too few.") == 1
    cases = case_page(tmp_path / "a").read_text()
    # A patient's page has the findings beyond the mean after the sentence on the mean.
    assert cases.index("Age lowers the mean.") < cases.index("Less of the lung.")
    assert "Coarser." not in cases


def test_every_figure_is_png_and_svg(atlas: Path) -> None:
    stems = {p.stem for p in (atlas / "figures").iterdir()}
    assert {
        "forest",
        "heat_map",
        "outcomes",
        "doses",
        "doses_outcomes",
        "patient__1___DIAGNOSIS",
        "map_AGE_45_to_80",
    } <= stems
    for stem in stems:
        assert Image.open(atlas / "figures" / f"{stem}.png").width > 200
        assert "<svg" in (atlas / "figures" / f"{stem}.svg").read_text()[:1000]


@pytest.mark.parametrize("table", ["volumes", "arms"])
def test_only_volumes_of_the_atlas_are_read(table: str, tmp_path: Path) -> None:
    study = atlas_folder.make_atlas(tmp_path / "a")
    inside = tmp_path / "a" / "volumes" / "own.nii.gz"
    (tmp_path / "own.nii.gz").write_bytes(inside.read_bytes())
    path = tmp_path / "a" / f"{table}.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame["file"] = "../own.nii.gz"
    frame.to_csv(path, index=False)
    with pytest.raises(UserError, match="which does not lie in"):
        write_pages(tmp_path / "a", study)  # type: ignore[arg-type]


def test_atlas_without_volumes_or_contrasts(tmp_path: Path) -> None:
    study = atlas_folder.make_atlas(tmp_path / "a")
    for name in ("volumes", "arms"):
        path = tmp_path / "a" / f"{name}.csv"
        path.write_text(path.read_text().splitlines()[0] + "\n")
    record = json.loads((tmp_path / "a" / "atlas.json").read_text())
    empty = (
        "tests",
        "effects",
        "contrasts",
        "maps",
        "doses",
        "controls",
        "cautions",
        "not_found",
        "attributes",
    )
    (tmp_path / "a" / "atlas.json").write_text(json.dumps(record | {name: [] for name in empty}))
    text = write_pages(tmp_path / "a", study).read_text()  # type: ignore[arg-type]
    assert "so there is no page of a patient" in text and "Where: maps" not in text
    assert not (tmp_path / "a" / "cases").exists()


def test_pairs_name_where_they_differ(atlas: Path) -> None:
    pairs = pd.read_csv(atlas / "pairs.csv").fillna({"rank": 0})
    assert pairs.drop_duplicates(["column", "from", "to"])["column"].value_counts().to_dict() == {
        "AGE": 3,
        "DIAGNOSIS": 3,
    }
    ipf = pairs[(pairs["from"] == "HP") & (pairs["to"] == "IPF")]
    named = ipf[ipf["rank"] > 0]
    assert sorted(named["rank"]) == [1, 2, 3] and named["zone"].str.contains("lower third").all()
    assert named["mean_diff_hu"].tolist() == [atlas_folder.LOWER_HU] * 3
    none = pairs[(pairs["from"] == "HP") & (pairs["to"] == "CTD-ILD")]
    assert (none["rank"] == 0).all() and (none["mean_diff_hu"] == 0).all()


# --- in a browser ---


def pixels(page: Any, selector: str) -> NDArray[Any]:
    """Return the pixels of a canvas, (rows, columns, 4)."""
    page.locator(selector).first.scroll_into_view_if_needed()
    page.wait_for_timeout(250)
    url = page.evaluate("s => document.querySelector(s).toDataURL('image/png')", selector)
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA")
    )


def coronal(array: NDArray[Any], page: Any) -> NDArray[Any]:
    return radiological_slice(array, "coronal", int(page.evaluate("Mask2CT.viewers[0].at[1]")))


def assert_difference(page: Any, expected: NDArray[Any]) -> None:
    shown = pixels(page, "[data-role=difference] canvas.voxels")[..., :3].astype(int)
    limit = float(page.input_value("#limit"))
    np.testing.assert_allclose(
        shown, difference_rgb(coronal(expected, page), limit).astype(int), atol=4, rtol=0
    )


def press(page: Any, group: str, text: str) -> None:
    page.locator(f"#{group} button", has_text=re.compile(rf"^{re.escape(text)}")).click()


def test_pages_begin_with_a_sentence_and_pictures(atlas: Path, visit: Visit) -> None:
    shows_picture_first(visit, atlas / "index.html")
    page = shows_picture_first(visit, case_page(atlas))
    sentence = page.inner_text(".headline")
    assert "another noise" in sentence
    shown = {
        group: page.inner_text(f"#{group} button[aria-pressed=true]")
        for group in ("attributes", "from", "to")
    }
    change = page.locator("#regions tr").first.inner_text().split("\t")[1].strip()
    start = "Largest change in the lungs: {attributes}, {to} against {from}: ".format(**shown)
    assert sentence.startswith(f"{start}{float(change):+.0f} HU")


def test_case_page_in_a_browser(atlas: Path, visit: Visit) -> None:
    v, page = (
        {k: a.astype(float) for k, a in atlas_folder.volumes().items()},
        visit(case_page(atlas)),
    )
    page.wait_for_selector("[data-role=difference][data-state=ready]")
    assert page.input_value("#limit") == "50"  # holds the largest change of a region
    assert_difference(page, v["IPF"] - v["own"])
    assert (
        page.inner_text("#dropped") == "IPF: TYPE CTD, DATE were removed from the text, because "
        "they contradict the new value."
    )
    assert page.inner_text("[data-role=before] .title") == "Factual: HP"
    assert "lower third" in page.inner_text("#strongest") and "+50.0 HU" in page.inner_text(
        "#strongest"
    )
    population = page.inner_text("#population")
    assert population.startswith(atlas_folder.SENTENCE.replace("-4.0", "−4.0"))
    assert "An additive model does not fit DIAGNOSIS" in population
    press(page, "attributes", "AGE")
    press(page, "from", "45 years")
    press(page, "to", "80 years")
    page.wait_for_timeout(300)
    assert_difference(page, v["80"] - v["45"])
    assert "both lungs\t−20.0" in page.inner_text("#regions")
    outcomes = page.inner_text("#outcomes")
    assert "95th percentile\t−20.0 HU" in outcomes and "share below −950 HU\t0.0 points" in outcomes
    assert page.locator("#outcomes tr").count() == len(OUTCOMES) - 1
    assert page.inner_text("[data-role=before] .title") == "From: 45 years"
    press(page, "to", "45 years")
    assert page.is_visible("#same") and "both lungs\t0.0" in page.inner_text("#regions")


def test_another_attribute_is_shown_in_all_three_planes(atlas: Path, visit: Visit) -> None:
    page = visit(case_page(atlas))
    page.wait_for_selector("[data-role=difference][data-state=ready]")
    page.click("button[data-value=three]")
    page.wait_for_function(
        "document.querySelectorAll('[data-role=difference] .stage').length === 3"
    )
    press(page, "attributes", "AGE")
    press(page, "from", "45 years")
    press(page, "to", "80 years")
    planes = """Mask2CT.viewers[0].panels.filter(({ role }) => role === "difference")"""
    layers = page.evaluate(f"{planes}.map(({{ layers }}) => layers)")
    assert len(layers) == 3 and layers == [layers[0]] * 3
    # Age changes all of the lungs by -20 HU, the diagnosis some of it by 50.
    shown = page.wait_for_function(f"""() => {{
      const values = {planes}.map(({{ sources }}) => sources && [...new Set(sources[0].values)]);
      return values.every(Boolean) && values;
    }}""")
    assert all(set(values) == {0, -20} for values in shown.json_value())
    names = page.locator("[data-role=difference] canvas.voxels")
    title = page.inner_text("[data-role=difference] .title")
    assert [names.nth(k).get_attribute("aria-label") for k in range(3)] == [title] * 3


def test_values_and_lines_on_a_case_page(atlas: Path, visit: Visit) -> None:
    page = visit(case_page(atlas))
    page.wait_for_selector("[data-role=difference][data-state=ready]")
    heavy = pixels(page, "#one [data-role=difference] canvas.lines")
    black = np.array([int(RANK_COLOURS[0][i : i + 2], 16) for i in (1, 3, 5)])
    assert (
        (heavy[..., 3] == 255) & (heavy[..., :3] == black).all(-1)
    ).sum() > 100  # the strongest zone is outlined
    box = page.locator("[data-role=difference] .stage").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.8 * box["height"])
    assert page.inner_text("[data-role=difference] .value") == "+50 HU"
    assert page.inner_text("[data-role=wipe] .value") == "before −850 HU, after −800 HU"
    assert page.inner_text(".place").startswith("right lung: right lower third")
    assert page.is_visible("[data-role=difference] .bar b")
    on_white = pixels(page, "#one [data-role=difference] canvas.voxels")
    page.check("#overlay")
    on_ct = pixels(page, "#one [data-role=difference] canvas.voxels")
    assert page.locator("#one .difference .stage.overlaid").count() > 0
    assert on_ct[..., :3].mean() < 0.8 * on_white[..., :3].mean()
    page.uncheck("#overlay")
    page.uncheck("#lines")
    fewer = pixels(page, "#one [data-role=before] canvas.lines")
    assert fewer[..., 3].max() == 0


def test_slices_play_and_the_line_moves(atlas: Path, visit: Visit) -> None:
    page = visit(case_page(atlas))
    page.locator("[data-role=wipe]").scroll_into_view_if_needed()
    page.wait_for_selector("[data-role=wipe][data-state=ready]")
    at = page.evaluate("Mask2CT.viewers[0].at[1]")
    page.click(".play")
    page.wait_for_function(f"Mask2CT.viewers[0].at[1] !== {at}")
    page.click(".play")
    at = page.evaluate("Mask2CT.viewers[0].at[1]")
    page.wait_for_timeout(300)
    assert page.evaluate("Mask2CT.viewers[0].at[1]") == at
    page.fill("[data-role=wipe] .cut", "25")
    assert "25%" in page.evaluate(
        "getComputedStyle(document.querySelector('canvas.after')).clipPath"
    )
    page.click("button[data-value=axial]")
    low = page.locator("#strongest button").first
    low.click()
    z = page.evaluate("Mask2CT.viewers[0].at[2]")
    assert z < atlas_folder.SHAPE[
        2
    ] / 2 and f"{z + 1} of {atlas_folder.SHAPE[2]}" in page.inner_text(".slices output")


def test_same_patient_under_each_diagnosis(atlas: Path, visit: Visit) -> None:
    page = visit(case_page(atlas))
    part = page.locator("#differential")
    part.scroll_into_view_if_needed()
    page.wait_for_selector("#differential .pairs .panel[data-state=ready]")
    titles = part.locator(".title").all_inner_texts()
    assert titles == [
        "HP (factual)",
        "IPF",
        "CTD-ILD",
        "IPF minus HP",
        "CTD-ILD minus HP",
        "CTD-ILD minus IPF",
    ]
    named = part.locator(".zones").all_inner_texts()
    assert "lower third" in named[0] and "+50 HU" in named[0] and "−50 HU" in named[2]
    assert named[1] == "No zone changes by more than other noise (2.0 HU)."


def test_population_page_in_a_browser(atlas: Path, visit: Visit) -> None:
    page = visit(atlas / "index.html")
    page.locator("#maps").scroll_into_view_if_needed()
    page.wait_for_selector("[data-role=beside][data-state=ready]")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 50)")
    selector, limit = (
        "[data-role=effect][data-plane=axial] canvas.voxels",
        float(page.input_value("#limit")),
    )
    for value, hu in ((atlas_folder.CONTRASTS[0].id, 10), (atlas_folder.CONTRASTS[2].id, 30)):
        page.select_option("#contrast", value)
        shown = pixels(page, selector)[..., :3].astype(int)
        np.testing.assert_allclose(
            shown[5, 10], difference_rgb(np.array([hu]), limit)[0].astype(int), atol=4
        )
        assert shown[-1, 10].max() < 30  # no lung there: black
    assert page.locator("#contrast option").count() == 3  # no slope
    box = page.locator("[data-role=effect][data-plane=axial] .stage").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    assert page.locator("[data-role=effect][data-plane=axial] .value").inner_text() == "+30.0 HU"
    page.mouse.click(box["x"] + 20, box["y"] + 20)
    assert page.evaluate("Mask2CT.viewers[0].at[0]") > 60  # the patient's right is on the left
    beside = page.locator("[data-role=beside][data-plane=axial]")
    page.select_option("#beside", "share_below_950")  # percentage points, no HU
    page.mouse.move(box["x"] + 25, box["y"] + 20)
    beside.locator(".value", has_text="+2.0 points").wait_for()
    assert beside.locator(".high").inner_text() == f"+{limit:g} points"
    page.select_option("#beside", "generated")
    page.wait_for_timeout(300)
    assert page.locator("[data-role=beside] .bar").first.is_hidden()


def test_an_enlarged_map_says_where_its_own_plane_is(atlas: Path, visit: Visit) -> None:
    page = visit(atlas / "index.html")
    page.locator("#maps").scroll_into_view_if_needed()
    page.wait_for_selector("[data-role=effect][data-plane=sagittal][data-state=ready]")
    page.locator("[data-role=effect][data-plane=sagittal] .stage").hover()
    page.keyboard.press("f")
    page.keyboard.press("End")
    at, count = page.evaluate("(([v]) => [v.at[0], v.grid.shape[0]])(Mask2CT.viewers)")
    place = page.inner_text("dialog.enlarged output")
    assert place.startswith(f"sagittal {at + 1} of {count} ")


def test_the_graph_of_an_adjustment_stands_on_the_page(atlas: Path, visit: Visit) -> None:
    page = visit(atlas / "index.html")
    graphs = page.locator("#adjustment svg")
    assert graphs.count() == 2  # diagnosis and age
    first = graphs.first
    assert first.locator("g.both").count() == 2 and first.locator("g.direct").count() == 2
    assert "DEAD" in str(first.locator("g.never").all_text_contents())
    sizes = first.locator("rect").evaluate_all(
        "boxes => boxes.map(b => b.getBoundingClientRect())"
        ".map(r => [r.left, r.top, r.right, r.bottom])"
    )
    for one, box in enumerate(sizes):
        for other in sizes[one + 1 :]:
            apart = box[2] <= other[0] or other[2] <= box[0]
            assert apart or box[3] <= other[1] or other[3] <= box[1]
    assert "unknown AGE higher by 0.5 SD" in page.content()

"""From the files of an atlas to its pages and figures: the population page and the case pages."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from pipelines.atlas.case_report import CasePageWriter
from pipelines.atlas.files import AtlasFiles, write_table
from pipelines.atlas.pages import charts, map_voxels
from pipelines.atlas.pages.page_population import write_population_page
from pipelines.atlas.pages.population import Population
from pipelines.atlas.statistics.regional import tested_regions
from pipelines.atlas.study import AtlasStudy
from util.modality import CT, Terms
from util.progress import progress_bar
from util.web import page_links, page_parts, viewer_parts

ASSETS = ("page.css", "atlas.css", *viewer_parts.SCRIPTS, "atlas_case.js", "atlas_maps.js")
PAIR_COLUMNS = ["case", "column", "from", "to", "zone", "mean_diff_hu", "rank"]
MAP_COLUMNS = ["key", "kind", "contrast", "cases"]
TABLE_SUFFIXES = (".csv", ".json", ".npz", ".txt")


def write_pages(folder: Path, study: AtlasStudy) -> Path:
    """Write index.html, cases/, figures/, web/ and pairs.csv into the folder of an atlas.

    Args:
        folder: The atlas, with all its other files.

    Returns:
        The path of index.html.
    """
    files = AtlasFiles.from_folder(folder)
    limit = colour_limit(files)
    page_parts.copy_assets(folder / "web", *ASSETS)
    page_links.copy_link_assets(folder / "web")
    (folder / "figures").mkdir(exist_ok=True)
    terms = study.plan.data.terms
    figures = draw_population_figures(files, limit, terms)
    cases = {case.id: case for case in study.cohort.cases}
    names = files.kept_cases
    rows: list[dict[str, Any]] = []
    progress = progress_bar(names, "pages")
    for index, name in enumerate(progress):
        before = names[index - 1] if index else None
        after = names[index + 1] if index + 1 < len(names) else None
        rows += CasePageWriter(files, study, cases[name], limit).write([before, after])
    write_table(folder, "pairs", pd.DataFrame(rows, columns=PAIR_COLUMNS), terms)
    return write_population(files, study, figures, limit)


def colour_limit(files: AtlasFiles) -> float:
    """Return the range of differences of all pages, HU: it holds the largest change of a region.

    It is no smaller than that of other pages, so that a null effect looks like one.
    """
    largest = charts.largest_change(files.tests, tested_regions(files.tests["region"]))
    return viewer_parts.fitting_limit(max(viewer_parts.MIN_LIMIT, largest))


def draw_population_figures(files: AtlasFiles, limit: float, terms: Terms = CT) -> list[str]:
    """Draw the charts and maps into figures/.

    Args:
        limit: Range of differences, HU.
        terms: Unit and words of the modality.

    Returns:
        The stems of the figures.
    """
    folder = files.folder / "figures"
    record = files.record
    labels = {contrast["contrast"]: contrast["label"] for contrast in record["contrasts"]}
    stems = []
    if (files.folder / "agreement.svg").is_file():
        for name in ("agreement.png", "agreement.svg"):
            shutil.copyfile(files.folder / name, folder / name)
        stems.append("agreement")
    if len(charts.contrasts_shown(files.tests)):
        effects = pd.DataFrame(record["effects"])
        charts.forest_plot(files.tests, effects, labels, folder / "forest", terms)
        charts.heat_map(files.tests, labels, limit, folder / "heat_map", terms)
        charts.outcome_map(files.tests, labels, folder / "outcomes", terms)
        stems += ["forest", "heat_map", "outcomes"]
    units = {}
    for attribute in record["attributes"]:
        if attribute.get("kind") == "number":
            units[attribute["column"]] = attribute["unit"] or ""
    doses = pd.DataFrame(record["doses"])
    if len(doses) and charts.dose_plot(doses, units, folder / "doses", terms):
        stems.append("doses")
    if len(doses) and charts.dose_outcome_plot(doses, units, folder / "doses_outcomes", terms):
        stems.append("doses_outcomes")
    table = pd.DataFrame(record["maps"])
    if len(table):
        is_slope = {c["contrast"]: c["kind"] == "slope" for c in record["contrasts"]}
        drawn = {contrast: label for contrast, label in labels.items() if not is_slope[contrast]}
        null = map_voxels.null_contrast(record)
        stems += map_voxels.draw_maps(
            folder, table, files.read_maps(), drawn, limit, null, terms.unit
        )
    return stems


def write_population(
    files: AtlasFiles, study: AtlasStudy, figures: list[str], limit: float
) -> Path:
    """Write the population page.

    Args:
        figures: Stems of the figures.
        limit: Range of differences, HU.

    Returns:
        The path of the page.
    """
    table = pd.DataFrame(files.record["maps"], columns=MAP_COLUMNS)
    maps_folder = files.folder / "web" / "maps"
    volumes, grid = map_voxels.write_map_voxels(maps_folder, table, files.read_maps())
    prompts = dict(zip(files.cases["case"], files.cases["prompt"], strict=True))
    tables = [path.name for path in files.folder.iterdir() if path.suffix in TABLE_SUFFIXES]
    population = Population(
        record=files.record,
        limit=limit,
        volumes=volumes,
        grid=grid,
        figures=figures,
        cases={case: prompts.get(case, "") for case in files.kept_cases},
        pages=files.page_names,
        files=sorted(tables),
    )
    return write_population_page(
        files.folder, population, study.plan.data.hu_window, study.plan.data.terms
    )

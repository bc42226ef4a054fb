"""From the files of an atlas to its pages: the population page, a page a case, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from tqdm import tqdm

from data.cohort import Case
from data.volumes import load_volume
from pipelines.atlas import files as atlas_files
from pipelines.atlas.pages import charts, map_voxels
from pipelines.atlas.pages.case_voxels import FACTUAL, NOISE, REAL, CaseVoxels
from pipelines.atlas.pages.page_case import (
    CaseFacts,
    ShownAttribute,
    ShownValue,
    case_file,
    pair_key,
    pair_rows,
    write_case_page,
)
from pipelines.atlas.pages.page_population import Population, write_population_page
from pipelines.atlas.statistics.findings import TEST_COLUMNS
from pipelines.atlas.statistics.regional import LUNG_REGIONS
from pipelines.atlas.study import AtlasStudy
from util import cli
from util.cli import safe_name
from util.files import read_json
from util.web import page_parts, viewer_parts
from util.web.figures import LUNG, Panel, save_slices_png
from util.web.page_parts import typeset

ASSETS = ("page.css", "atlas.css", *viewer_parts.SCRIPTS, "atlas_case.js", "atlas_maps.js")
PAIR_COLUMNS = ["case", "column", "from", "to", "zone", "mean_diff_hu", "rank"]

Row = dict[str, Any]


@dataclass(frozen=True)
class AtlasFiles:
    """What an atlas' folder holds: atlas.json, the tables with rows by case (all cells text), and
    the tests.
    """

    folder: Path
    record: Mapping[str, Any]
    cases: pd.DataFrame
    arms: pd.DataFrame
    volumes: pd.DataFrame
    tests: pd.DataFrame

    @staticmethod
    def from_folder(folder: Path) -> AtlasFiles:
        record = read_json(folder / atlas_files.ATLAS_RECORD)
        tables = {
            name: pd.read_csv(folder / f"{name}.csv", dtype=str, keep_default_na=False)
            for name in ("cases", "arms", "volumes")
        }
        return AtlasFiles(
            folder,
            record,
            **tables,
            tests=pd.DataFrame(record["tests"], columns=list(TEST_COLUMNS)),
        )

    @property
    def limit(self) -> float:
        """One range of colours for the whole atlas: it holds the largest change of a region of the
        lungs.
        """
        return viewer_parts.fitting_limit(max(1.0, charts.largest_change(self.tests, LUNG_REGIONS)))

    @property
    def kept(self) -> list[str]:
        """Cases whose volumes are there."""
        return self.volumes.loc[self.volumes["kind"] == "own", "case"].tolist()


def write_pages(folder: Path, study: AtlasStudy) -> Path:
    """Writes index.html, cases/, figures/, web/ and pairs.csv into the folder of an atlas; returns
    index.html.
    """
    files = AtlasFiles.from_folder(folder)
    page_parts.copy_assets(folder / "web", *ASSETS)
    (folder / "figures").mkdir(exist_ok=True)
    figures = population_figures(files)
    by_id, kept = {case.id: case for case in study.cohort.cases}, files.kept
    rows: list[Row] = []
    for i, name in enumerate(tqdm(kept, "pages", unit="case", disable=not cli.is_main_process())):
        neighbours = [kept[i - 1] if i else None, kept[i + 1] if i + 1 < len(kept) else None]
        rows += CasePageWriter(files, study, by_id[name]).write(neighbours)
    atlas_files.write_table(folder, "pairs", pd.DataFrame(rows, columns=PAIR_COLUMNS))
    return write_population(files, study, figures)


def population_figures(files: AtlasFiles) -> list[str]:
    """Draws the charts and maps into figures/; returns their stems."""
    folder, record = files.folder / "figures", files.record
    labels = {c["contrast"]: c["label"] for c in record["contrasts"]}
    drawn = [f.stem for f in [files.folder / "agreement.svg"] if f.is_file()]
    for name in drawn:
        for ending in ("png", "svg"):
            (folder / f"{name}.{ending}").write_bytes(
                (files.folder / f"{name}.{ending}").read_bytes()
            )
    if len(charts.contrasts_shown(files.tests)):
        charts.forest_plot(files.tests, pd.DataFrame(record["effects"]), labels, folder / "forest")
        charts.heat_map(files.tests, labels, files.limit, folder / "heat_map")
        drawn += ["forest", "heat_map"]
    units = {
        a["column"]: a["unit"] or "" for a in record["attributes"] if a.get("kind") == "number"
    }
    if record["doses"] and charts.dose_plot(pd.DataFrame(record["doses"]), units, folder / "doses"):
        drawn.append("doses")
    table = pd.DataFrame(record["maps"])
    shown = {c["contrast"]: c["label"] for c in record["contrasts"] if c["kind"] != "slope"}
    if len(table):
        drawn += map_voxels.draw_maps(
            folder, table, read_maps(files), shown, files.limit, map_voxels.null_contrast(record)
        )
    return drawn


def read_maps(files: AtlasFiles) -> dict[str, np.ndarray]:
    """The population maps by key, float32."""
    with np.load(files.folder / "maps.npz", allow_pickle=False) as maps:
        return {key: maps[key].astype(np.float32) for key in maps.files}


def write_population(files: AtlasFiles, study: AtlasStudy, figures: list[str]) -> Path:
    """Writes the population page."""
    volumes, grid = map_voxels.write_map_voxels(
        files.folder / "web" / "maps",
        pd.DataFrame(files.record["maps"], columns=["key", "kind", "contrast", "cases"]),
        read_maps(files),
    )
    prompts = dict(zip(files.cases["case"], files.cases["prompt"], strict=True))
    tables = sorted(
        p.name for p in files.folder.iterdir() if p.suffix in (".csv", ".json", ".npz", ".txt")
    )
    return write_population_page(
        files.folder,
        Population(
            files.record,
            files.limit,
            volumes,
            grid,
            figures,
            {c: prompts.get(c, "") for c in files.kept},
            tables,
        ),
        study.plan.data.hu_window,
    )


class CasePageWriter:
    """Makes the page of one case from its volumes."""

    def __init__(self, files: AtlasFiles, study: AtlasStudy, case: Case) -> None:
        self.files, self.study, self.case = files, study, case
        self.rows = files.volumes[files.volumes["case"] == case.id]
        self.arms = files.arms[files.arms["case"] == case.id]
        self.given = study.formatted_row(case)
        own, data = self.rows[self.rows["kind"] == "own"].iloc[0], study.plan.data
        self.prompt, self.links = own["prompt"], {FACTUAL: f"../{own['file']}"}
        mask = load_volume(case.mask)
        self.spacing = voxel_sizes(mask.affine)
        self.voxels = CaseVoxels(
            files.folder / "web" / case_file(case.id),
            mask.array,
            self.spacing,
            data.lung_labels,
            data.airway_label,
            self._volume(own["file"]),
            study.plan.vessel_hu,
        )

    def write(self, neighbours: list[str | None]) -> list[Row]:
        """Writes page and figures; returns the rows of pairs.csv."""
        data = self.study.plan.data
        if self.case.image is not None:
            self.voxels.add(REAL, np.clip(load_volume(self.case.image).array, *data.hu_window))
        for row in self.rows[self.rows["kind"] == "control"].to_dict("records"):
            self.voxels.add(NOISE, self._volume(row["file"]))
            self.links[NOISE] = f"../{row['file']}"
        varied = [
            self._varied(number, a)
            for number, a in enumerate(self.study.plan.attributes)
            if (self.arms["column"] == a.column).any()
        ]
        listed = self.files.cases[self.files.cases["case"] == self.case.id]
        facts = CaseFacts(
            self.case.id,
            self.prompt,
            varied,
            str(self.files.record["settings"]["cases"]["diagnosis_column"]),
            self._sentences(varied),
            self.links,
            bool((listed["seen"] == "yes").any()),
        )
        write_case_page(
            self.files.folder, facts, self.voxels, self.files.limit, data.hu_window, neighbours
        )
        for attribute in varied:
            self._figure(attribute)
        return pair_rows(facts, self.voxels)

    def _volume(self, file: str) -> np.ndarray:
        return load_volume(self.files.folder / file).array.astype(np.float32)

    def _varied(self, number: int, attribute: Any) -> ShownAttribute:
        """An attribute's values: the given one is the own row's volume, by itself where no value
        generated is it.
        """
        unit, values = f" {attribute.unit}" if attribute.unit else "", list[ShownValue]()
        arms = self.arms[self.arms["column"] == attribute.column].to_dict("records")
        if all(arm["prompt"] != self.prompt for arm in arms):
            known = self.given.get(attribute.column, "")
            said = f"{known}{unit}" if known else "not known"
            values.append(ShownValue(FACTUAL, f"{said} (factual)", said))
        for k, arm in enumerate(arms):
            said, is_own, key = (
                f"{arm['value']}{unit}",
                arm["prompt"] == self.prompt,
                f"a{number:02d}v{k:02d}",
            )
            if not is_own:
                self.voxels.add(key, self._volume(arm["file"]))
                self.links[key] = f"../{arm['file']}"
            dropped = (
                f"{said}: {arm['dropped'].replace(' | ', ', ')} left the text, as it would "
                "contradict."
                if arm["dropped"]
                else ""
            )
            values.append(
                ShownValue(
                    FACTUAL if is_own else key,
                    f"{said} (factual)" if is_own else said,
                    said,
                    dropped,
                )
            )
        start = next(i for i, v in enumerate(values) if v.key == FACTUAL)
        change = [abs(self.voxels.change(FACTUAL, v.key).get("lungs", 0.0)) for v in values]
        made = {v.plain: v for v in values}
        there = [
            made[said]
            for v in attribute.values
            if (said := f"{v}{unit}") in made and v in {a["value"] for a in arms}
        ]
        compared = [
            (there[0], v)
            for v in (there[1:] if attribute.kind == "category" else there[-1:])
            if v is not there[0]
        ]
        return ShownAttribute(attribute.column, values, start, int(np.argmax(change)), compared)

    def _sentences(self, varied: list[ShownAttribute]) -> dict[str, str]:
        """What is said of each contrast over all patients, by the keys of this case's volumes."""
        units = {a.column: f" {a.unit}" if a.unit else "" for a in self.study.plan.attributes}
        ends = {
            c["contrast"]: (c["column"], c["from"], c["to"]) for c in self.files.record["contrasts"]
        }
        keys = {(a.label, v.plain): v.key for a in varied for v in a.values}
        made = {}
        for row in [*self.files.record["findings"], *self.files.record["not_found"]]:
            column, start, end = ends[row["contrast"]]
            pair = [keys.get((column, f"{value}{units[column]}")) for value in (start, end)]
            if None not in pair:
                made[pair_key(str(pair[0]), str(pair[1]))] = typeset(row["sentence"])
        return made

    def _figure(self, attribute: ShownAttribute) -> None:
        """`figures/CASE__COLUMN.png` and .svg: given, changed and difference in three planes."""
        first, second = attribute.values[attribute.start], attribute.values[attribute.end]
        before, after = (
            self._volume(self.links[v.key].removeprefix("../")) for v in (first, second)
        )
        panels = [
            Panel(f"Factual:\n{first.plain}", "ct", before, self.spacing),
            Panel(f"Changed:\n{second.plain}", "ct", after, self.spacing),
            Panel(
                "Difference",
                "difference",
                after - before,
                self.spacing,
                caption="changed − factual",
            ),
        ]
        if NOISE in self.links:
            own, noise = (
                self._volume(self.links[key].removeprefix("../")) for key in (FACTUAL, NOISE)
            )
            panels.append(
                Panel(
                    "Control:\nother noise",
                    "difference",
                    noise - own,
                    self.spacing,
                    caption="nothing changed",
                )
            )
        stem = f"{case_file(self.case.id)}__{safe_name(attribute.label)}"
        at = tuple(k * f for k, f in zip(self.voxels.grid.start, self.voxels.block, strict=True))
        for ending in ("png", "svg"):
            save_slices_png(
                self.files.folder / "figures" / f"{stem}.{ending}",
                panels,
                at,
                LUNG,
                self.files.limit,
            )

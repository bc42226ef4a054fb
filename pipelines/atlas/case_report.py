"""The page of one case, from the volumes that an atlas keeps of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from data.cache import load_case
from data.cohort import Case
from data.regions import regions_of
from data.text.counterfactuals import describe_removed
from data.volumes import load_volume
from pipelines.atlas.files import AtlasFiles
from pipelines.atlas.pages.case_voxels import FACTUAL, NOISE, REAL, CaseVoxels
from pipelines.atlas.pages.page_case import (
    CaseFacts,
    ShownAttribute,
    ShownValue,
    pair_key,
    pair_rows,
    write_case_page,
)
from pipelines.atlas.statistics.additivity import additivity_sentences, alike_sentence
from pipelines.atlas.statistics.contrasts import AtlasAttribute
from pipelines.atlas.statistics.outcomes import MEAN
from pipelines.atlas.statistics.regression import MAIN_PLACE
from pipelines.atlas.study import AtlasStudy
from util.files import path_inside
from util.web.figures import LUNG, Panel, save_slices_png
from util.web.page_parts import typeset


class CasePageWriter:
    """Writer of the page of one case.

    Args:
        limit: Range of differences, HU.
    """

    def __init__(self, files: AtlasFiles, study: AtlasStudy, case: Case, limit: float) -> None:
        self.files = files
        self.study = study
        self.case = case
        self.limit = limit
        self.page = files.page_names[case.id]
        self.arms = self._rows(files.arms)
        volumes = self._rows(files.volumes)
        factual = volumes[volumes["kind"] == "own"].iloc[0]
        self.prompt = factual["prompt"]
        self.volume_files = {FACTUAL: factual["file"]}
        scan, mask = load_case(case, None)
        self.spacing = mask.spacing
        data = study.plan.data
        self.voxels = CaseVoxels(
            files.folder / "web" / self.page,
            mask.array,
            self.spacing,
            regions_of(mask.array, self.spacing, data),
            self._volume(FACTUAL),
            data.terms,
        )
        if scan is not None:
            self.voxels.add(REAL, np.clip(scan.array, *data.hu_window))
        for file in volumes.loc[volumes["kind"] == "control", "file"]:
            self._add_volume(NOISE, file)

    def write(self, neighbours: list[str | None]) -> list[dict[str, Any]]:
        """Write page and figures.

        Args:
            neighbours: The cases before and after, if any.

        Returns:
            The case's rows of pairs.csv.
        """
        attributes = []
        for number, attribute in enumerate(self.study.plan.attributes):
            if (self.arms["column"] == attribute.column).any():
                attributes.append(self._shown_attribute(number, attribute))
        facts = CaseFacts(
            case=self.case.id,
            prompt=self.prompt,
            attributes=attributes,
            diagnosis=str(self.files.record["settings"]["cases"]["diagnosis_column"]),
            sentences=self._sentences(attributes),
            files={key: f"../{file}" for key, file in self.volume_files.items()},
            seen=bool((self._rows(self.files.cases)["seen"] == "yes").any()),
            pages=self.files.page_names,
        )
        data = self.study.plan.data
        write_case_page(
            self.files.folder,
            facts,
            self.voxels,
            self.limit,
            data.hu_window,
            neighbours,
            data.terms,
        )
        for shown in attributes:
            self._draw(shown)
        return pair_rows(facts, self.voxels)

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        return table[table["case"] == self.case.id]

    def _volume(self, key: str) -> np.ndarray:
        folder = self.files.folder
        path = path_inside(folder, self.volume_files[key], folder / "volumes.csv")
        return load_volume(path).array.astype(np.float32)

    def _add_volume(self, key: str, file: str) -> None:
        self.volume_files[key] = file
        self.voxels.add(key, self._volume(key))

    def _shown_attribute(self, number: int, attribute: AtlasAttribute) -> ShownAttribute:
        """Return an attribute's values with their volumes.

        The factual value has the factual volume. It stands first, by itself, where no variant has
        the factual text.
        """
        unit = _unit(attribute)
        values: list[ShownValue] = []
        by_value: dict[str, ShownValue] = {}
        variants = self.arms[self.arms["column"] == attribute.column].to_dict("records")
        if all(variant["prompt"] != self.prompt for variant in variants):
            known = self.study.formatted_row(self.case).get(attribute.column, "")
            text = f"{known}{unit}" if known else "not known"
            values.append(ShownValue(FACTUAL, f"{text} (factual)", text))
        for index, variant in enumerate(variants):
            value = self._shown_value(f"a{number:02d}v{index:02d}", variant, unit)
            by_value[variant["value"]] = value
            values.append(value)
        changes = [
            abs(self.voxels.change(FACTUAL, value.key).get("lungs", 0.0)) for value in values
        ]
        ordered = [by_value[value] for value in attribute.values if value in by_value]
        compared = ordered[1:] if attribute.kind == "category" else ordered[1:][-1:]
        return ShownAttribute(
            label=attribute.column,
            values=values,
            start=[value.key for value in values].index(FACTUAL),
            end=int(np.argmax(changes)),
            compared=[(ordered[0], value) for value in compared],
        )

    def _shown_value(self, key: str, variant: dict[Any, str], unit: str) -> ShownValue:
        """Return a variant's value, and add its volume under this key unless it is the factual."""
        text = f"{variant['value']}{unit}"
        dropped = ""
        if variant["dropped"]:
            dropped = describe_removed(text, variant["dropped"].split(" | "))
        if variant["prompt"] == self.prompt:
            return ShownValue(FACTUAL, f"{text} (factual)", text, dropped)
        self._add_volume(key, variant["file"])
        return ShownValue(key, text, text, dropped)

    def _sentences(self, attributes: list[ShownAttribute]) -> dict[str, str]:
        """Return the sentence on each contrast over all patients, by the keys of its volumes."""
        record = self.files.record
        units = {attribute.column: _unit(attribute) for attribute in self.study.plan.attributes}
        contrasts = {contrast["contrast"]: contrast for contrast in record["contrasts"]}
        keys = {}
        for attribute in attributes:
            for value in attribute.values:
                keys[attribute.label, value.plain] = value.key
        alike = {}
        for effect in record["effects"]:
            if (effect.get("outcome", MEAN), effect["region"]) == MAIN_PLACE:
                alike[effect["contrast"]] = alike_sentence(effect)
        labels = {name: contrast["label"] for name, contrast in contrasts.items()}
        different = additivity_sentences(pd.DataFrame(record["additivity"]), labels)
        sentences: dict[str, str] = {}
        rows = [*record["findings"], *record["not_found"]]
        beyond: dict[str, list[str]] = {}
        for row in record["findings"]:
            if row["outcome"] != MEAN:
                beyond.setdefault(row["contrast"], []).append(row["sentence"])
        for row in rows:
            if row["outcome"] != MEAN:
                continue  # findings beyond the mean follow its sentence
            contrast = contrasts[row["contrast"]]
            column = contrast["column"]
            start = keys.get((column, f"{contrast['from']}{units[column]}"))
            end = keys.get((column, f"{contrast['to']}{units[column]}"))
            if start is not None and end is not None:
                more = [
                    *beyond.get(row["contrast"], []),
                    alike.get(row["contrast"], ""),
                    *different.get(column, []),
                ]
                text = " ".join([row["sentence"], *filter(None, more)])
                sentences[pair_key(start, end)] = typeset(text)
        return sentences

    def _draw(self, attribute: ShownAttribute) -> None:
        """Draw `figures/CASE__COLUMN.png` and .svg: factual, changed and difference."""
        start = attribute.values[attribute.start]
        end = attribute.values[attribute.end]
        factual = self._volume(start.key)
        changed = self._volume(end.key)
        panels = [
            Panel(f"Factual:\n{start.plain}", "ct", factual, self.spacing),
            Panel(f"Changed:\n{end.plain}", "ct", changed, self.spacing),
            self._difference("Difference", changed - factual, "changed − factual"),
        ]
        if NOISE in self.volume_files:
            noise = self._volume(NOISE) - self._volume(FACTUAL)
            panels.append(self._difference("Control:\nother noise", noise, "nothing changed"))
        x, y, z = self.voxels.grid.start
        names = {one.column: one.name for one in self.study.plan.attributes}
        stem = f"{self.page}__{names[attribute.label]}"
        for ending in ("png", "svg"):
            path = self.files.folder / "figures" / f"{stem}.{ending}"
            data = self.study.plan.data
            window = LUNG if data.terms.is_ct else data.hu_window
            save_slices_png(path, panels, (x, y, z), window, self.limit, unit=data.terms.unit)

    def _difference(self, title: str, difference: np.ndarray, caption: str) -> Panel:
        return Panel(title, "difference", difference, self.spacing, caption=caption)


def _unit(attribute: AtlasAttribute) -> str:
    return f" {attribute.unit}" if attribute.unit else ""

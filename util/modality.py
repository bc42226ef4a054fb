"""Modalities of volumes: their unit, and the words of their pages and tables.

Sentences, columns and regions are written for chest CT. Where a page or a table is written, `Terms`
turns them into those of the run's modality, so that no other code knows a unit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dominate.dom_tag import dom_tag

from util.phrasing import PREFIX

if TYPE_CHECKING:  # slow to import, and flags name modalities
    import pandas as pd

LABEL_NAMES: Mapping[int, str] = {0: "background", 1: "left lung", 2: "right lung", 3: "airway"}
UNIT_WINDOW = (0.0, 1000.0)  # a.u., of volumes whose intensities are not HU
# Statistics whose limits are densities in HU, such as the share of voxels below -950 HU.
HU_STATISTIC = re.compile(r"(share_(below|above)_-?\d+_hu|vessel_share)$")
READ_ALOUD = ("alt", "title", "placeholder", "aria-label")  # attributes that are text for readers
PROMPT = "prompt"  # class of elements, and column of tables, that hold a user's own text
FLAGS = "option-groups"  # class of elements that hold names of flags

# A volume's brightness has no meaning beyond its own scan, and its regions are its mask's labels.
PLAIN_WORDS = {
    "Hounsfield units (HU)": "arbitrary units (a.u.)",
    "HU": "a.u.",
    "HU^2": "a.u.^2",
    "the least dense": "the darkest",
    "the densest": "the brightest",
    "least dense": "darkest",
    "less dense": "darker",
    "dense tissue": "bright tissue",
    "densest": "brightest",
    "denser": "brighter",
    "the lungs’ mean density": "the mean intensity of the labelled region",
    "mean lung attenuation": "mean intensity of the labelled region",
    "mean lung density": "mean intensity of the labelled region",
    "lung density": "intensity of the labelled region",
    "mean density": "mean intensity",
    "outside the lungs": "outside the labelled region",
    "both lungs": "the labelled region",
    "the generated lungs": "the generated labelled region",
    "generated lungs": "generated labelled regions",
    "lungs and airways in the masks": "the labels of the masks",
    "volume by side, height, and volume of the airways": "volume and height",
    "mean attenuation": "mean intensity",
    "regions of the lungs": "labels",
    "lung regions": "labels",
    "patient's lungs are": "patient's labelled region is",
    "the lungs": "the labelled region",
    "lungs": "labelled region",
    "of the lung": "of the labelled region",
    "Lung texture": "Texture",
    "no lung": "no label",
    "lung": "labelled",
    "CT": "volume",
    "density": "intensity",
}
PLAIN_NAMES = {
    "mean_lung_attenuation_hu": "mean_intensity",
    "lung_ml": "labelled_ml",
    "lungs": "labelled",
}


@dataclass(frozen=True)
class Terms:
    """Words of a modality.

    Attributes:
        modality: Value of `--modality`.
        unit: Unit of intensities.
        words: Words for readers by those for chest CT; none for CT itself.
        names: The same for names of columns, metrics and regions in tables.
        label_names: Names of mask labels that are known; others are called "label 7".
    """

    modality: str
    unit: str
    words: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    label_names: Mapping[int, str] = field(default_factory=lambda: {0: "background"})

    @property
    def is_ct(self) -> bool:
        """Whether intensities are HU."""
        return self.unit == "HU"

    @cached_property
    def _words(self) -> dict[str, str]:
        capitals = {_capital(word): _capital(plain) for word, plain in self.words.items()}
        return {**capitals, **self.words}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._words, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first))
        return re.compile(rf"(?<![\w-])(?:({words})(?!\w)|\w[\w.-]*_hu(?:_\w+)?\b)")

    def text(self, text: str) -> str:
        """Return a sentence or a label in the words of the modality."""
        if self.is_ct:
            return text
        # The unit's own full stop ends a sentence, too.
        return self._pattern.sub(self._replace, text).replace("a.u..", "a.u.")

    def _replace(self, match: re.Match[str]) -> str:
        return self._words[match[1]] if match[1] else self.name(match[0])

    def name(self, name: str) -> str:
        """Return the name of a column, metric or region in a table."""
        if self.is_ct:
            return name
        for chest, plain in self.names.items():
            name = re.sub(rf"(?<![a-z]){chest}(?![a-z])", plain, name)
        return re.sub(r"(?<![a-z])lung_", "", re.sub(r"_hu(?![a-z])", "", name))

    def has(self, statistic: str) -> bool:
        """Return whether a statistic means something: limits in HU do so for CT alone."""
        return self.is_ct or HU_STATISTIC.search(statistic) is None

    def columns(self, columns: Iterable[str]) -> list[str]:
        """Return the columns of a table as they are written."""
        return [self.name(column) for column in columns if self.has(column)]

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of a table as they are written, with `region` and `metric` named."""
        written = []
        for row in rows:
            if not self.has(str(row.get("metric", ""))):
                continue
            cells = {self.name(column): cell for column, cell in row.items() if self.has(column)}
            for column in ("region", "metric"):
                if column in cells:
                    cells[column] = self.name(cells[column])
            if PROMPT in cells:
                cells[PROMPT] = self.prompt(cells[PROMPT])
            written.append(cells)
        return written

    def frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return a table whose texts are for readers, in the words of the modality."""
        if self.is_ct:
            return frame

        def change(cell: Any) -> Any:
            return self.text(cell) if isinstance(cell, str) else cell

        return frame.map(change).rename(columns=self.text)

    def prompt(self, text: str) -> str:
        """Return a prompt without the words that begin those of chest CT; the rest stays."""
        return text if self.is_ct else text.replace(f"{PREFIX} ", "")

    def document(self, document: dom_tag) -> None:
        """Change the texts of a page to those of the modality; the user's own prompts stay."""
        if not self.is_ct:
            self._change_texts(document)

    def _change_texts(self, element: dom_tag) -> None:
        attributes = getattr(element, "attributes", {})
        classes = str(attributes.get("class", "")).split()
        if FLAGS in classes:
            return
        change = self.prompt if PROMPT in classes else self.text
        for name in READ_ALOUD:
            if isinstance(attributes.get(name), str):
                attributes[name] = change(attributes[name])
        for number, child in enumerate(element.children):
            if isinstance(child, str):
                element.children[number] = change(child)
            else:
                self._change_texts(child)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


CT = Terms("ct", "HU", label_names=LABEL_NAMES)
MODALITIES = {
    terms.modality: terms
    for terms in (
        CT,
        Terms("mr", "a.u.", PLAIN_WORDS, PLAIN_NAMES),
        Terms("custom", "a.u.", PLAIN_WORDS, PLAIN_NAMES),
    )
}

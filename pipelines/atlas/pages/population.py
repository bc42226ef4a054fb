"""Content of the population page of an atlas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from pipelines.atlas.pages.charts import contrasts_shown
from util.web.web_data import PageGrid, VolumeEntry


@dataclass(frozen=True)
class Population:
    """Content of the page.

    Attributes:
        record: atlas.json.
        limit: Range of differences, HU.
        volumes: Kind and step of each map written for the page.
        grid: Grid of the maps.
        figures: Stems of the figures in `figures/`.
        cases: Prompts of the cases with a page.
        pages: Names of these pages, without ending.
        files: Tables to link to.
    """

    record: Mapping[str, Any]
    limit: float
    volumes: Mapping[str, VolumeEntry]
    grid: PageGrid
    figures: Sequence[str]
    cases: Mapping[str, str]
    pages: Mapping[str, str]
    files: Sequence[str]

    def frame(self, name: str) -> pd.DataFrame:
        """Return a table of atlas.json."""
        return pd.DataFrame(self.record[name])

    def lung_tests(self) -> pd.DataFrame:
        """Return the tests of both lungs without slopes, in the order of the table."""
        tests = self.frame("tests")
        return contrasts_shown(tests) if len(tests) else tests

    @property
    def labels(self) -> dict[str, str]:
        """Names of the contrasts for readers."""
        return {c["contrast"]: c["label"] for c in self.record["contrasts"]}

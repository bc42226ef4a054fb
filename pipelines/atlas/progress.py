"""The cases of an atlas that are generated already, so that a stopped command resumes."""

from __future__ import annotations

import logging
import math
import shutil
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.atlas.measure import AtlasMeasurements, Row
from pipelines.atlas.statistics.population import RunningAverage
from util.cli import UserError, counted
from util.files import atomic_path, read_json, write_json

log = logging.getLogger(__name__)

STATE = "state.json"
VOLUMES = "volumes"
SAVE_EVERY_S = 120.0  # population maps of many refits take seconds to write
ROW_TABLES = tuple(f.name for f in fields(AtlasMeasurements) if f.name != "maps")
SUMS = ("total", "square", "count")  # of a running average


def progress_folder(out: Path) -> Path:
    """Return the folder beside an atlas that holds its finished cases."""
    return out.with_name(f".{out.name}.progress")


@dataclass
class GeneratedCases:
    """The generated cases of an atlas."""

    measurements: AtlasMeasurements = field(default_factory=AtlasMeasurements)
    cases: list[Row] = field(default_factory=list)
    volumes: list[Row] = field(default_factory=list)


@dataclass
class AtlasProgress:
    """Finished cases of an atlas on disk.

    Attributes:
        folder: Where they are kept.
        key: What they depend on: settings, networks and cases. Those of another key are dropped.
        saved_at: Time of the last save.
    """

    folder: Path
    key: str
    saved_at: float = 0.0

    def load(self) -> GeneratedCases:
        """Return the finished cases, none where there are none of this key.

        Volumes of a case that was not finished are removed.
        """
        self.saved_at = time.monotonic()
        generated = self._read()
        if generated is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            generated = GeneratedCases()
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {row["file"] for row in generated.volumes}
        for path in (self.folder / VOLUMES).glob("*"):
            if f"{VOLUMES}/{path.name}" not in files:
                path.unlink()
        return generated

    def _read(self) -> GeneratedCases | None:
        if not (self.folder / STATE).is_file():
            return None
        try:
            state = read_json(self.folder / STATE)
            if state["key"] != self.key:
                log.info("The interrupted atlas had other settings or networks; it starts anew.")
                return None
            generated = GeneratedCases(cases=state["cases"], volumes=state["volumes"])
            for name in ROW_TABLES:
                rows = [_measured_row(row) for row in state["rows"][name]]
                getattr(generated.measurements, name).extend(rows)
            averages = generated.measurements.maps.averages
            with np.load(self.folder / state["maps"], allow_pickle=False) as arrays:
                for number, (kind, contrast, refit, cases) in enumerate(state["averages"]):
                    total, square, count = (arrays[f"{name}_{number}"] for name in SUMS)
                    key = (kind, contrast, refit)
                    averages[key] = RunningAverage(total, square, count, cases)
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s); the atlas starts anew.", self.folder, error)
            return None
        log.info("Used from the interrupted atlas: %s.", counted(len(generated.cases), "case"))
        return generated

    def save(self, generated: GeneratedCases, always: bool = False) -> None:
        """Save all finished cases, unless that was done a moment ago; `always` saves them now."""
        if not always and time.monotonic() - self.saved_at < SAVE_EVERY_S:
            return
        maps = f"maps_{len(generated.cases)}.npz"
        arrays: dict[str, Any] = {}
        averages = generated.measurements.maps.averages
        for number, average in enumerate(averages.values()):
            for name in SUMS:
                arrays[f"{name}_{number}"] = getattr(average, name)
        with atomic_path(self.folder / maps) as path:
            np.savez(path, **arrays)
        rows = {name: getattr(generated.measurements, name) for name in ROW_TABLES}
        state = {
            "key": self.key,
            "cases": generated.cases,
            "volumes": generated.volumes,
            "rows": rows,
            "maps": maps,
            "averages": [[*key, average.cases] for key, average in averages.items()],
        }
        write_json(self.folder / STATE, state)
        for path in self.folder.glob("maps_*.npz"):
            if path.name != maps:
                path.unlink()
        self.saved_at = time.monotonic()

    def move_volumes(self, folder: Path) -> None:
        """Copy the kept volumes into the atlas, by hard links where the disk has them."""
        if (self.folder / VOLUMES).is_dir():
            shutil.copytree(self.folder / VOLUMES, folder / VOLUMES, copy_function=_link_or_copy)

    def remove(self) -> None:
        """Remove everything, once the atlas is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Tell where finished cases are kept after a failure, or remove an empty folder."""
        if not (self.folder / STATE).is_file():
            self.remove()
        elif self.folder.is_dir():
            log.warning(
                "Finished cases are kept in %s; run the command again to resume.", self.folder
            )


def _measured_row(row: Row) -> Row:
    """Return a row as it was measured: what JSON has as null is NaN."""
    return {name: math.nan if value is None else value for name, value in row.items()}


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)

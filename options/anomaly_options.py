"""Flags of scripts/find_anomalies.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from options.parser import flag, group, path_flag


@dataclass(frozen=True)
class ScanOptions:
    """Scans to search, and scans that calibrate the search."""

    dataroot: str = path_flag(
        "", "Folder of the cohort: img/, gtlung/ and the clinical table.", kind="folder"
    )
    split: str = flag(
        "test", "Split of the cases to search.", choices=("train", "val", "test", "all")
    )
    how_many: int = flag(0, "Number of cases, the first ones (0: all).", low=0)
    clean: str = path_flag(
        "",
        "Cohort of scans without findings that calibrates the map (default: the validation split "
        "of the run's cohort, or its training split if that has fewer than two cases).",
        kind="folder",
    )
    annotations: str = path_flag(
        "",
        "Folder with label files of known findings, named as the scans. They are shown beside the "
        "regions, and left out of the calibration.",
        old_names=("marks",),
        kind="folder",
    )
    out: str = flag("", "Folder for page, maps and tables; an interrupted command resumes there.")
    overwrite: bool = flag(False, "Replace the content of --out made with other flags.")


@dataclass(frozen=True)
class RunsOptions:
    """Runs that generate."""

    name: tuple[str, ...] = path_flag(
        (),
        "Name of the run; may be repeated for refits, whose spread is then included.",
        kind="run",
    )
    checkpoints_dir: str = flag("checkpoints", "Folder of all runs.")
    which_epoch: str = flag("latest", "Checkpoint of the runs: latest, or the number of an epoch.")
    gpu_ids: str = flag("", "GPU to use, such as 0; -1 for the CPU; default: a GPU if available.")
    tile: tuple[int, int, int] | None = flag(
        None,
        "Voxels of a tile (none: by the free memory, or where tiles are blended as in test.py; "
        "0,0,0: whole volumes).",
    )
    tile_batch: int = flag(4, "Tiles that are generated at once.", low=1)


@dataclass(frozen=True)
class MapOptions:
    """Map of the deviations."""

    samples: int = flag(4, "Volumes per scan and run, each with its own noise.", low=2)
    size_mm: float = flag(12.0, "Diameter of the findings searched for.", low=1, high=200)
    false_alarms: float = flag(
        0.1, "Share of scans without findings that may show a strong region.", low=0.001, high=0.9
    )
    regions: int = flag(3, "Regions outlined per scan.", low=1, high=50)
    seed: int = flag(0, "Seed of the noise.", low=0)


@dataclass(frozen=True)
class AnomalyCommand:
    """All flags of scripts/find_anomalies.py."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataroot", "out", "name")
    EXAMPLE: ClassVar[str] = (
        "python scripts/find_anomalies.py --dataroot phantoms --name run1 --out anomalies"
    )

    scans: ScanOptions = group(ScanOptions, "Scans")
    runs: RunsOptions = group(RunsOptions, "Runs")
    map: MapOptions = group(MapOptions, "Map")

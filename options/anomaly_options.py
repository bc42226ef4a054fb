"""Flags of anomaly."""

from __future__ import annotations

from dataclasses import dataclass

from options.parser import flag, group


@dataclass(frozen=True)
class ScanOptions:
    """Which scans are looked at, and what they are held against."""

    dataroot: str = flag("", "Folder of the cohort: img/, gtlung/ and the clinical table.")
    split: str = flag("test", "Cases to look at.", choices=("train", "val", "test", "all"))
    how_many: int = flag(0, "Only the first so many cases (0: all).", low=0)
    clean: str = flag(
        "",
        "Cohort of scans without findings that calibrates the map (empty: the run's own cohort, "
        "its validation split, or its training split where that has fewer than two cases).",
    )
    annotations: str = flag(
        "",
        "Folder with label files of known findings, named as the scans: shown beside the regions, "
        "and left out of the calibration.",
        old_names=("marks",),
    )
    out: str = flag("", "Folder for page, maps and tables; a stopped command goes on there.")
    overwrite: bool = flag(False, "Replace what other flags left in --out.")


@dataclass(frozen=True)
class RunsOptions:
    """Which runs generate."""

    name: tuple[str, ...] = flag(
        (), "Name of the run; may be repeated for refits, whose spread then counts too."
    )
    checkpoints_dir: str = flag("checkpoints", "Folder of all runs.")
    which_epoch: str = flag("latest", "Checkpoint of the runs: latest, or the number of an epoch.")
    gpu_ids: str = flag("", "GPU to use, such as 0; -1 for the CPU; empty: what is there.")
    tile: tuple[int, int, int] | None = flag(
        None, "Voxels of a tile (none: the run's patch size; 0,0,0: whole volumes)."
    )
    tile_batch: int = flag(4, "Tiles worked on at once.", low=1)


@dataclass(frozen=True)
class MapOptions:
    """How the map is made."""

    samples: int = flag(
        4, "Volumes generated for a scan by each run, each with its own noise.", low=2
    )
    size_mm: float = flag(12.0, "Diameter of the findings looked for.", low=1, high=200)
    false_alarms: float = flag(
        0.1, "Share of scans without findings that may show a strong region.", low=0.001, high=0.9
    )
    regions: int = flag(3, "Regions outlined in a scan.", low=1, high=50)
    seed: int = flag(0, "Seed of the noise.", low=0)


@dataclass(frozen=True)
class AnomalyCommand:
    """Everything the command takes."""

    scans: ScanOptions = group(ScanOptions, "Scans")
    runs: RunsOptions = group(RunsOptions, "Runs")
    map: MapOptions = group(MapOptions, "Map")

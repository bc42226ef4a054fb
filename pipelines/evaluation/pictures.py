"""Pairs of a volume and a real scan that the page of an evaluation shows side by side."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics.pairwise import euclidean_distances

from data.geometry import Volume, grid_with_spacing, grids_match, resample
from data.preparation.masks import load_mask
from pipelines.evaluation.measurements import VolumeMeasurements
from pipelines.evaluation.memorisation import CopyVerdict
from pipelines.evaluation.volume_sets import VolumeFile, VolumeSet
from util.cli import counted
from util.web.figures import Panel, fullest_slices
from util.web.picture_row import PictureRow, write_panels
from util.web.viewer_parts import difference_limit, largest_change

CLOSEST = 4  # pairs of a volume and the training scan nearest to it
RANKS = {"typical": 0.5, "best": 0.0, "worst": 1.0}  # share of the volumes that are better


@dataclass(frozen=True)
class Pair:
    """A volume beside a scan.

    Attributes:
        heading: What the pair is.
        caption: Its figures.
        scan_title: What the scan is.
        badges: Warnings of a few words each.
    """

    heading: str
    caption: str
    synthetic: VolumeFile
    scan: VolumeFile
    scan_title: str = "real scan"
    badges: tuple[str, ...] = ()


@dataclass(frozen=True)
class PicturedPair:
    """A pair whose voxels are written.

    Attributes:
        limit: Range of their difference, HU.
    """

    pair: Pair
    row: PictureRow
    limit: float


def typical_pairs(
    sets: Mapping[str, VolumeSet],
    measurements: Mapping[str, Sequence[VolumeMeasurements]],
    pair_rows: Sequence[Mapping[str, Any]],
) -> list[Pair]:
    """Return the typical, the best and the worst volume beside a real scan.

    The scan is that of the same case, ranked by the mean absolute error. Where the sets have no
    case in common, it is the scan nearest by features of the whole volume.

    Args:
        sets: The sets by name.
        pair_rows: Rows of pairs.csv (see `pipelines.evaluation.volume_measurer.pair_fidelity`).
    """
    volumes = {file.case: file for file in sets["synthetic"].files}
    scans = {file.case: file for file in sets["real"].files}
    errors = _errors(pair_rows)
    count = len(errors) or len(volumes)
    pairs = []
    for name, (case, scan, size) in _at_ranks(errors or _nearest(measurements)).items():
        if errors:
            heading = f"{case}: the {name} volume beside its own scan"
            caption = f"Mean absolute error {size:.0f} HU; {name} of {counted(count, 'pair')}."
        else:
            heading = f"{case}: the {name} volume beside {scan}, the real scan nearest to it"
            caption = f"Distance in features {size:.3g}; {name} of {counted(count, 'volume')}."
        pairs.append(Pair(heading, caption, volumes[case], scans[scan]))
    return pairs


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, float]]:
    """Return case, scan and mean absolute error in the lungs, else in all compared, of each."""
    errors: dict[str, float] = {}
    for region in ("volume", "body", "lungs"):
        for row in rows:
            if row["metric"] == "mae_hu" and row["region"] == region:
                errors[row["case"]] = float(row["value"])
    return [(case, case, error) for case, error in errors.items()]


def _nearest(
    measurements: Mapping[str, Sequence[VolumeMeasurements]],
) -> list[tuple[str, str, float]]:
    """Return case, nearest real scan and its distance of each volume."""
    real = measurements["real"]
    synthetic = measurements["synthetic"]
    features = [np.stack([v.whole[0] for v in volumes]) for volumes in (synthetic, real)]
    distances = euclidean_distances(*features)
    nearest = distances.argmin(1)
    return [
        (volume.case, real[int(k)].case, float(row[k]))
        for volume, row, k in zip(synthetic, distances, nearest, strict=True)
    ]


def _at_ranks(ranked: Sequence[tuple[str, str, float]]) -> dict[str, tuple[str, str, float]]:
    """Return the pairs at `RANKS`, each once."""
    ordered = sorted(ranked, key=lambda pair: pair[2])
    chosen: dict[str, tuple[str, str, float]] = {}
    for name, share in RANKS.items():
        pair = ordered[round(share * (len(ordered) - 1))]
        if pair not in chosen.values():
            chosen[name] = pair
    return chosen


def closest_pairs(sets: Mapping[str, VolumeSet], verdicts: Mapping[str, CopyVerdict]) -> list[Pair]:
    """Return the volumes nearest to a training scan by detail, beside that scan."""
    volumes = {file.case: file for file in sets["synthetic"].files}
    scans = {file.case: file for file in sets["train"].files}
    pairs = []
    for case in sorted(verdicts, key=lambda case: verdicts[case].image.distance)[:CLOSEST]:
        verdict = verdicts[case]
        nearest = verdict.image
        badges = (
            ("copy", verdict.copy),
            ("closer than real", verdict.alarm),
            (f"declared edit of {verdict.edit_of}", bool(verdict.edit_of)),
        )
        pairs.append(
            Pair(
                f"{case} and the training scan nearest to it, {nearest.case}",
                f"Distance {nearest.distance:.2f}; copy below {nearest.threshold:.2f}; closest "
                f"real {nearest.closest_real:.2f}.",
                volumes[case],
                scans[nearest.case],
                "training scan",
                tuple(text for text, holds in badges if holds),
            )
        )
    return pairs


def write_pairs(web: Path, pairs: Sequence[Pair]) -> list[PicturedPair]:
    """Write the voxels of pairs into `web`, in the resolution of the volumes; remove old ones."""
    for old in web.glob("pair-*"):
        shutil.rmtree(old)
    return [_write_pair(web, f"pair-{number:02d}", pair) for number, pair in enumerate(pairs, 1)]


def _write_pair(web: Path, key: str, pair: Pair) -> PicturedPair:
    volume = pair.synthetic.load()
    scan = pair.scan.load()
    on_one_grid = volume.shape == scan.shape and grids_match(
        volume.shape, volume.affine, scan.affine
    )
    if not on_one_grid:
        scan = _on_box_of(volume, scan)
    sides = volume.spacing
    real = Panel(f"{pair.scan_title} {pair.scan.case}", "ct", scan.array, sides)
    panels = [real, Panel(f"synthetic {pair.synthetic.case}", "ct", volume.array, sides)]
    limit = 0.0
    if on_one_grid:
        change = volume.array.astype(np.float32) - scan.array
        limit = difference_limit(largest_change(change))
        title = f"synthetic minus {pair.scan_title}"
        panels.append(Panel(title, "difference", change, sides, before=real))
    at = None
    if pair.synthetic.mask is not None:
        mask = load_mask(pair.synthetic.mask, volume).array
        at = fullest_slices(mask)
        if on_one_grid:
            panels.append(Panel("mask", "mask", mask, sides))
    return PicturedPair(pair, write_panels(web, key, pair.synthetic.case, panels, at), limit)


def _on_box_of(volume: Volume, scan: Volume) -> Volume:
    """Return a scan in the voxels of a volume, both around their centres."""
    shape, affine = grid_with_spacing(scan.shape, scan.affine, volume.spacing)
    shift = (np.asarray(shape) - np.asarray(volume.shape)) / 2
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ shift
    return resample(scan, grid=(volume.shape, affine))

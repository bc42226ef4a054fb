"""Realism of a set of volumes: distances over all planes and in 3D, with their baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.evaluation.baselines import (
    Distance,
    Index,
    Metric,
    Progress,
    ResamplingPlan,
    compare_with_baseline,
)
from pipelines.evaluation.distances import FrechetDistance, KernelDistance
from pipelines.evaluation.measurements import PLANES, VolumeMeasurements

LOWER_BOUNDS = {"FID": 0.0, "Fréchet distance": 0.0}  # unbiased estimators may be below 0


def mean_distance(distances: Sequence[Distance]) -> Distance:
    """Return the mean of several distances as one distance."""
    return lambda one, two: float(np.mean([distance(one, two) for distance in distances]))


def plane_distances(
    pool: Sequence[VolumeMeasurements], network: int, real: Index
) -> dict[str, list[Distance]]:
    """Return FID, KID and MMD in each of `PLANES` between groups of a pool of volumes."""
    features = np.stack([v.planes[network] for v in pool])
    cases = [v.case for v in pool]
    distances: dict[str, list[Distance]] = {"FID": [], "KID": [], "MMD": []}
    for plane in range(len(PLANES)):
        part = features[:, plane]
        distances["FID"].append(FrechetDistance(part))
        distances["KID"].append(KernelDistance(part, cases, "polynomial"))
        distances["MMD"].append(KernelDistance(part, cases, "rbf", real))
    return distances


def volume_distances(
    pool: Sequence[VolumeMeasurements], network: int, real: Index
) -> dict[str, Distance]:
    """Return Fréchet distance, KID and MMD of whole volumes between groups of a pool."""
    features = np.stack([v.whole[network] for v in pool])[:, None]
    cases = [v.case for v in pool]
    return {
        "Fréchet distance": FrechetDistance(features),
        "KID": KernelDistance(features, cases, "polynomial"),
        "MMD": KernelDistance(features, cases, "rbf", real),
    }


def realism_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    plan: ResamplingPlan,
    networks: Mapping[str, str],
    networks_3d: Mapping[str, str],
    progress: Progress = iter,
) -> list[Metric]:
    """Return 2.5D distances of every 2D network and 3D distances of every 3D network.

    A 2.5D distance is the mean of three planes; the FID of each plane is returned, too.

    Args:
        real: Real scans.
        plan: The resamples.
        networks: Digest of the weights by name of the 2D network; it becomes the metric's note.
        networks_3d: The same of the 3D networks.
        progress: Wraps the loop over resamples, for a progress bar.
    """
    pool = [*real, *synthetic]

    def compare(name: str, kind: str, distance: Distance, digest: str) -> Metric:
        bound = LOWER_BOUNDS.get(kind, float("-inf"))
        return compare_with_baseline("realism", name, distance, plan, digest, bound, progress)

    metrics = []
    for i, (title, digest) in enumerate(networks.items()):
        by_kind = plane_distances(pool, i, plan.real)
        for kind, distances in by_kind.items():
            name = f"2.5D {kind}, {title}"
            metrics.append(compare(name, kind, mean_distance(distances), digest))
        for plane, fid in zip(PLANES, by_kind["FID"], strict=True):
            name = f"FID of {plane} slices, {title}"
            metrics.append(Metric("planes", name, fid(plan.real, plan.synthetic)))
    for i, (title, digest) in enumerate(networks_3d.items()):
        for kind, distance in volume_distances(pool, i, plan.real).items():
            metrics.append(compare(f"3D {kind}, {title}", kind, distance, digest))
    return metrics

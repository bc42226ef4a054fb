"""Realism of a set of volumes: the distances of `realism` over all planes, beside their floors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.evaluation.baselines import Distance, Index, Metric, ResamplingPlan, compare_with_baseline
from pipelines.evaluation.measurements import PLANES, VolumeMeasurements
from pipelines.evaluation.distances import FrechetDistance, KernelDistance

LEAST = {
    "FID": 0.0,
    "Fréchet distance": 0.0,
    "KID": -np.inf,
    "MMD": -np.inf,
}  # the unbiased estimators may be below 0
Progress = Callable[[Iterable[Any]], Iterable[Any]]


def mean_distance(distances: Sequence[Distance]) -> Distance:
    """The mean of several distances."""
    return lambda one, two: float(np.mean([distance(one, two) for distance in distances]))


def plane_distances(
    pool: Sequence[VolumeMeasurements], network: int, real: Index
) -> dict[str, list[Distance]]:
    """FID, KID and MMD in each of `PLANES` between groups of a pool of volumes."""
    features = np.stack([v.planes[network] for v in pool])
    cases = [v.case for v in pool]
    found: dict[str, list[Distance]] = {"FID": [], "KID": [], "MMD": []}
    for plane in range(len(PLANES)):
        part = features[:, plane]
        found["FID"].append(FrechetDistance(part))
        found["KID"].append(KernelDistance(part, cases, "polynomial"))
        found["MMD"].append(KernelDistance(part, cases, "rbf", real))
    return found


def realism_metrics(
    real: Sequence[VolumeMeasurements],
    synthetic: Sequence[VolumeMeasurements],
    draws: ResamplingPlan,
    networks: Mapping[str, str],
    networks_3d: Mapping[str, str],
    progress: Progress = iter,
) -> list[Metric]:
    """2.5D distances (mean of three planes, and each plane's FID) by every 2D network, 3D distances
    by every 3D one.

    Networks are given by name and the digest of their weights, which becomes the figure's note.
    """
    pool, found = [*real, *synthetic], list[Metric]()
    for i, (title, digest) in enumerate(networks.items()):
        by_kind = plane_distances(pool, i, draws.real)
        for kind, distances in by_kind.items():
            found.append(
                compare_with_baseline(
                    "realism",
                    f"2.5D {kind}, {title}",
                    mean_distance(distances),
                    draws,
                    note=digest,
                    least=LEAST[kind],
                    progress=progress,
                )
            )
        planes = zip(PLANES, by_kind["FID"], strict=True)
        found += [
            Metric("planes", f"FID of {plane} slices, {title}", d(draws.real, draws.synthetic))
            for plane, d in planes
        ]
    for i, (title, digest) in enumerate(networks_3d.items()):
        features = np.stack([v.whole[i] for v in pool])[:, None]
        cases = [v.case for v in pool]
        kinds: dict[str, Distance] = {
            "Fréchet distance": FrechetDistance(features),
            "MMD": KernelDistance(features, cases, "rbf", draws.real),
        }
        found += [
            compare_with_baseline(
                "realism",
                f"3D {k}, {title}",
                d,
                draws,
                note=digest,
                least=LEAST[k],
                progress=progress,
            )
            for k, d in kinds.items()
        ]
    return found

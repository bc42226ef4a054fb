"""Reconstruction of whole scans by an autoencoder: what latent diffusion cannot do better."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from data.volume_dataset import VolumeSample
from models.diffusion.latent_space import LatentSpace
from models.sliding_window import SlidingWindow
from options.base_options import DataOptions
from util.cli import counted
from util.metrics.fidelity import METRIC_COLUMNS, metric_rows
from util.modality import Terms
from util.web.figures import Panel
from util.web.results_page import ResultsPage, ResultsReport

log = logging.getLogger(__name__)

MAX_ERROR_HU = 40.0  # mean absolute error in the lungs above which a reader is warned
MIN_DETAIL_RATIO = 0.7  # of detail SD, reconstructed over scanned; below, a reader is warned
MAX_DETAIL_RATIO = 1.3  # above, the autoencoder adds texture of its own
RATIOS = ("detail_sd_hu", "vessel_share")  # metrics that stand over the scan's, beside powers

Hu = NDArray[np.floating]


@dataclass(frozen=True)
class ReconstructionCheck:
    """Reconstructions of scans in numbers.

    Attributes:
        rows: Rows as in metrics.csv, one for each case, region and metric.
    """

    rows: Sequence[Mapping[str, Any]]

    @cached_property
    def table(self) -> pd.DataFrame:
        """Errors and ratios to the scan in the lungs, a row per case."""
        frame = pd.DataFrame(self.rows, columns=list(METRIC_COLUMNS))
        lungs = frame[frame["region"] == "lungs"].pivot(
            index="case", columns="metric", values="value"
        )
        table = pd.DataFrame(index=lungs.index)
        table["error, HU"] = lungs["mae_hu"]
        table["difference of means, HU"] = (
            lungs["mean_lung_attenuation_hu"] - lungs["real_mean_lung_attenuation_hu"]
        )
        powers = [name for name in lungs.columns if name.startswith("power_")]
        for name in (*RATIOS, *powers):
            if f"real_{name}" in lungs:
                title = name.removesuffix("_hu").replace("_", " ")
                table[f"{title}, ratio"] = lungs[name] / lungs[f"real_{name}"].replace(0, np.nan)
        body = frame[(frame["region"] == "body") & (frame["metric"] == "mae_hu")]
        table["error in the body, HU"] = body.set_index("case")["value"]
        return table.reset_index()

    @property
    def error_hu(self) -> float:
        """Mean absolute error in the lungs."""
        return float(self.table["error, HU"].mean())

    @property
    def detail_ratio(self) -> float:
        """Detail SD in the lungs, reconstructed over scanned."""
        return float(self.table["detail sd, ratio"].mean())

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        scans = counted(len(self.table), "training scan")
        return (
            f"The autoencoder reconstructs the lungs of {scans} "
            f"with a mean absolute error of {self.error_hu:.1f} HU and {self.detail_ratio:.2f} of "
            "the contrast of their detail."
        )

    @property
    def warning(self) -> str:
        """What limits a run with this autoencoder; "" where it suffices."""
        faults = []
        if not self.error_hu <= MAX_ERROR_HU:
            faults.append(f"an error above {MAX_ERROR_HU:g} HU")
        if not self.detail_ratio >= MIN_DETAIL_RATIO:
            faults.append(f"less than {MIN_DETAIL_RATIO:g} of the detail")
        if self.detail_ratio > MAX_DETAIL_RATIO:
            faults.append(f"more than {MAX_DETAIL_RATIO:g} times the detail")
        if not faults:
            return ""
        return (
            f"{self.sentence} A latent diffusion cannot be better than its autoencoder, and this "
            f"one has {' and '.join(faults)}. Choose one that was trained on similar scans or "
            "keeps more numbers per voxel, or use --model diffusion."
        )


def reconstruct(
    space: LatentSpace, sample: VolumeSample, window: SlidingWindow, device: torch.device
) -> Hu:
    """Return a scan after encoding and decoding, `(X, Y, Z)` in HU without the padding."""
    assert sample.image is not None

    def run_tile(tile: torch.Tensor) -> torch.Tensor:
        return space.decode(space.encode(tile))

    volume = window(run_tile, sample.image[None].to(device))
    return sample.to_hu(volume[0, 0].clamp(-1, 1).cpu())


def reconstructions(
    space: LatentSpace,
    samples: Iterable[VolumeSample],
    window: SlidingWindow,
    device: torch.device,
) -> Iterator[tuple[VolumeSample, Hu, Hu]]:
    """Yield each case with its scan and its reconstruction in HU."""
    for sample in samples:
        if sample.image is None:
            continue
        yield sample, sample.to_hu(sample.image[0]), reconstruct(space, sample, window, device)


def measure(sample: VolumeSample, scan: Hu, result: Hu, data: DataOptions) -> list[dict[str, Any]]:
    """Return error, density and texture of a reconstruction beside the scan's."""
    lungs = np.isin(sample.labels, data.lung_labels)
    return metric_rows(sample.name, result, scan, lungs, data.hu_window, sample.spacing)


def check_reconstruction(
    space: LatentSpace,
    samples: Iterable[VolumeSample],
    window: SlidingWindow,
    data: DataOptions,
    device: torch.device,
) -> ReconstructionCheck:
    """Reconstruct scans and compare them with themselves in HU and texture.

    Args:
        space: The latents of the autoencoder.
        samples: Cases; those without a scan are left out.
        window: Tiles, those of later runs.
        data: HU window and labels of the lungs.
        device: Where to run.
    """
    rows: list[dict[str, Any]] = []
    for sample, scan, result in reconstructions(space, samples, window, device):
        rows += measure(sample, scan, result, data)
    return ReconstructionCheck(rows)


def report_check(check: ReconstructionCheck, terms: Terms) -> None:
    """Log the outcome, as a warning where the autoencoder limits a run."""
    if check.warning:
        log.warning("%s", terms.text(check.warning))
    else:
        log.info("%s", terms.text(check.sentence))


def write_check_page(
    folder: Path,
    title: str,
    cases: Iterable[tuple[VolumeSample, Hu, Hu]],
    data: DataOptions,
    options: Mapping[str, Mapping[str, Any]],
) -> ReconstructionCheck:
    """Write index.html with scans, reconstructions and differences; return the numbers."""
    page = ResultsPage(folder, title, data.hu_window, terms=data.terms)
    rows: list[dict[str, Any]] = []
    for sample, scan, result in cases:
        rows += measure(sample, scan, result, data)
        clipped = np.clip(scan, *data.hu_window)
        sides = sample.spacing
        before = Panel("scan", "ct", clipped, sides, role="real")
        panels = [
            before,
            Panel("reconstruction", "ct", result, sides, role="generated"),
            Panel("reconstruction minus scan", "difference", result - clipped, sides),
            Panel("mask", "mask", sample.labels.astype(np.uint8), sides),
        ]
        page.add_case(sample.name, "Encoded and decoded, without any diffusion.", [], panels)
    check = ReconstructionCheck(rows)
    cautions = [check.warning] if check.warning else []
    page.save(
        options,
        ResultsReport(
            metrics=rows,
            headline=check.sentence,
            cautions=cautions,
            links={"metrics.csv": "metrics.csv"},
            tables={"Reconstructions, lungs": check.table},
        ),
    )
    return check

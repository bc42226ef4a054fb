"""What an evaluation compares: sets, grid, networks and tables, checked before measuring."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.fact_store import FactStore
from options.base_options import DataOptions
from options.evaluate_options import EvaluateOptions
from pipelines.evaluation.counterfactuals.plan import CounterfactualPlan
from pipelines.evaluation.counterfactuals.sets import find_counterfactuals
from pipelines.evaluation.extractors import Extractor, make_extractor
from pipelines.evaluation.inputs import (
    TableValues,
    data_options,
    find_sets,
    read_table_values,
    with_target_labels,
)
from pipelines.evaluation.volume_measurer import ComparisonGrid, VolumeMeasurer
from pipelines.evaluation.volume_sets import (
    VolumeFile,
    VolumeSet,
    check_intensities,
    common_spacing,
    common_window,
    median_extent,
)
from util.cli import counted, format_list
from util.files import claim_folder
from util.training.devices import make_device

log = logging.getLogger(__name__)

RECORD = "evaluation.json"
CACHE = "cache"
CHECKS = "checks.json"  # in the cache
MIN_CONCLUSIVE = 20  # volumes per set below which metrics are not interpreted


@dataclass(frozen=True)
class EvaluationPlan:
    """Everything that is checked before volumes are measured.

    Attributes:
        options: The command's options.
        out: Folder of the report.
        sets: Sets by name, see `pipelines.evaluation.inputs.find_sets`.
        table: Values of the real scans' table.
        networks: 2D networks.
        networks_3d: 3D networks.
        measurer: Measures a volume.
        counterfactuals: Changed volumes, which are judged by the axioms.
        volume_warnings: What a person should know of the volumes.
    """

    options: EvaluateOptions
    out: Path
    sets: Mapping[str, VolumeSet]
    table: TableValues
    networks: Sequence[Extractor]
    networks_3d: Sequence[Extractor]
    measurer: VolumeMeasurer
    counterfactuals: CounterfactualPlan
    volume_warnings: Sequence[str] = ()

    @classmethod
    def from_options(cls, options: EvaluateOptions) -> EvaluationPlan:
        """Find the sets and check that they can be compared.

        Raises:
            UserError: Something that the user gave does not fit.
        """
        m = options.measure
        out = Path(options.sets.out)
        claim_folder(out, [RECORD, CACHE], overwrite=True)
        data = data_options(options)
        sets = find_sets(options, data)
        data = with_target_labels(data, sets["real"])
        store = FactStore(out / CACHE / CHECKS)
        volume_warnings = []
        for volumes in sets.values():
            volume_warnings += check_intensities(volumes, store, data)
        grid = _common_grid(options, data, sets, store)
        changed = []
        if m.axioms:
            changed = find_counterfactuals(
                sets["synthetic"], options.sets.counterfactuals, sets["real"]
            )
        table = read_table_values(options, sets, need_rows=bool(changed))
        counterfactuals = CounterfactualPlan.from_table(
            changed, table.template, table.rows, m.column
        )
        device = make_device(m.gpu_ids)
        networks = [make_extractor(c, device, 2) for c in m.extractor or ("random",)]
        networks_3d = [
            make_extractor(c, device, 3, grid.window) for c in m.extractor_3d or ("random",)
        ]
        for network in (*networks, *networks_3d):
            log.info("Features by %s, sha256 %s", network.about, network.digest)
        measurer = VolumeMeasurer(grid, networks, networks_3d, out / CACHE)
        store.save()
        return cls(
            options,
            out,
            sets,
            table,
            networks,
            networks_3d,
            measurer,
            counterfactuals,
            volume_warnings,
        )

    @property
    def conclusive(self) -> bool:
        """Return whether there are enough volumes to interpret the metrics."""
        smaller = min(len(self.sets["real"].files), len(self.sets["synthetic"].files))
        return smaller >= MIN_CONCLUSIVE

    @property
    def shortage(self) -> str:
        """Why the metrics are not interpreted; "" where they are."""
        if self.conclusive:
            return ""
        return (
            f"{counted(len(self.sets['real'].files), 'real scan')} and "
            f"{counted(len(self.sets['synthetic'].files), 'synthetic volume')} allow no conclusion "
            f"(at least {MIN_CONCLUSIVE} of each are needed)"
        )

    @property
    def warnings(self) -> list[str]:
        """Warnings for the page and the log."""
        warnings = []
        if self.shortage:
            warnings.append(f"{self.shortage}: the metrics only show that everything runs.")
        if all(network.name == "random network" for network in self.networks):
            warnings.append(
                "The distances come from a network without learned weights. They rank models on "
                "the same data, and cannot be compared with published values."
            )
        for network in self.networks_3d:
            warnings += network.window_warnings(self.measurer.grid.window)
        volumes = self.sets["synthetic"].files
        if edits := [file for file in volumes if file.edit_of]:
            warnings.append(
                f"Declared edits of real scans (edits.csv), not generated volumes: {len(edits)} "
                f"of {counted(len(volumes), 'volume')}. Realism, texture and diversity are those "
                "of the scans."
            )
        if strangers := self.foreign_edits:
            names = format_list([f"{file.case} (of {file.edit_of})" for file in strangers])
            warnings.append(
                f"{counted(len(strangers), 'declared edit')} of scans that are not among those of "
                f"--train: {names}. If these people are held out, the volumes show them."
            )
        return [*warnings, *self.table.remarks, *self.volume_warnings]

    @property
    def foreign_edits(self) -> list[VolumeFile]:
        """Declared edits whose scan is not a training scan, where those are given."""
        if "train" not in self.sets:
            return []
        training = set(self.sets["train"].cases)
        files = self.sets["synthetic"].files
        return [file for file in files if file.edit_of and file.edit_of not in training]


def _common_grid(
    options: EvaluateOptions,
    data: DataOptions,
    sets: Mapping[str, VolumeSet],
    store: FactStore,
) -> ComparisonGrid:
    """Return the grid and window that both sets are compared in."""
    g = options.grid
    real = sets["real"]
    synthetic = sets["synthetic"]
    spacing = common_spacing(real, synthetic, g.match)
    window = data.hu_window
    if data.terms.is_ct:  # arbitrary units are scaled to one window
        window = common_window(real, synthetic, g.hu_window, g.match, store)
    x, y, z = g.extent or map(float, median_extent(real))
    return ComparisonGrid(
        g.spacing or spacing,
        (x, y, z),
        window,
        g.slices,
        data.lung_labels,
        data.airway_label,
        data.modality,
        data.lesion_labels,
    )


def unmeasured_metrics(plan: EvaluationPlan) -> list[str]:
    """Return the metrics that are not computed, each with the input that it needs."""
    o = plan.options.sets
    needs = []
    if not plan.counterfactuals.sets and plan.options.measure.axioms:
        needs.append(
            "Counterfactuals (effectiveness, composition, reversibility, minimality, realism): "
            "--synthetic or --counterfactuals with results of test.py --vary."
        )
    if not o.train:
        needs.append("Memorisation: --train with the scans that the generator was trained on.")
    if not plan.table.attributes:
        needs.append("Text effect: --column with a column of the real scans' table.")
    elif not (o.shuffled and o.empty):
        needs.append(
            "Controls of the text effect: --shuffled and --empty with volumes of "
            "scripts/make_controls.py."
        )
    if not o.again:
        needs.append("Diversity under new noise: --again with volumes of scripts/make_controls.py.")
    common_cases = set(plan.sets["real"].cases) & set(plan.sets["synthetic"].cases)
    if not (plan.options.measure.pairs and common_cases):
        needs.append("Closeness to the own scan: real and synthetic volumes of the same names.")
    if not plan.measurer.grid.terms.is_ct:
        needs.append("Faithfulness to the mask: it is known for the lungs of chest CT alone.")
    elif not any(file.mask for file in plan.sets["synthetic"].files):
        needs.append(
            "Faithfulness to the mask: --masks with the masks that the volumes were made from."
        )
    return needs

"""The walk over cases of an atlas: counterfactual volumes of every attribute, measured by region
and mapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from data.text.counterfactuals import Variant
from data.text.paraphrase import reordered, reworded
from data.text.prompts import Prompt, Template
from data.volume_dataset import VolumeSample
from options.base_options import DataOptions
from pipelines.atlas.attributes import attribute_variants
from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast
from pipelines.atlas.statistics.population import LungFrame, PopulationMaps
from pipelines.atlas.statistics.regional import RegionVoxels, find_vessels
from util.metrics.regions import regions

Hu = NDArray[np.floating]
GenerateFn = Callable[
    [VolumeSample, Prompt], Hu
]  # a case and a prompt to `(X, Y, Z)` HU on the model's grid, without padding
Row = dict[str, Any]


@dataclass(frozen=True)
class Generators:
    """The networks that generate one case: the run itself, the run with other noise, and its refits
    by name and kind.
    """

    run: str
    paint: GenerateFn
    noises: Sequence[GenerateFn]
    other_noise: GenerateFn | None
    refits: Sequence[tuple[str, str, frozenset[str], GenerateFn]]  # name, kind, permuted columns


@dataclass(frozen=True)
class MeasurementPlan:
    """What is looked at, and how."""

    template: Template
    data: DataOptions
    attributes: Sequence[AtlasAttribute]
    contrasts: Sequence[Contrast]
    vessel_hu: float

    def contrasts_of(self, attribute: AtlasAttribute) -> list[Contrast]:
        return [c for c in self.contrasts if c.column == attribute.column]


@dataclass
class AtlasMeasurements:
    """All rows, over cases: tables by name, and the population maps."""

    effects: list[Row] = field(default_factory=list)
    doses: list[Row] = field(default_factory=list)
    controls: list[Row] = field(default_factory=list)
    refits: list[Row] = field(default_factory=list)
    arms: list[Row] = field(default_factory=list)
    maps: PopulationMaps = field(default_factory=PopulationMaps)


class CaseCounterfactuals:
    """One case: its regions, its own volume, and every change of it."""

    def __init__(
        self,
        plan: MeasurementPlan,
        whole: VolumeSample,
        own: Prompt,
        painters: Generators,
        measured: AtlasMeasurements,
    ) -> None:
        self.plan, self.whole, self.own_prompt, self.painters, self.out = (
            plan,
            whole,
            own,
            painters,
            measured,
        )
        data, self.case = plan.data, whole.case.id
        self.own = painters.paint(whole, own)
        lungs = np.isin(whole.labels, data.lung_labels)
        vessels = find_vessels(self.own, lungs, plan.vessel_hu)
        self.vessel_share = float(vessels.sum() / max(1, lungs.sum()))
        self.masks = regions(
            whole.labels, voxel_sizes(whole.affine), data.lung_labels, data.airway_label
        )
        self.regions = RegionVoxels.from_masks(self.masks, vessels)
        self.frame = (
            LungFrame(whole.labels, data.lung_labels, lungs & ~vessels) if lungs.any() else None
        )

    def measure(self, keep: Callable[[Variant, Hu], None] | None = None) -> None:
        """Generates and measures everything; `keep` is given each varied arm with its volume."""
        self._map("generated", "", self.own)
        if self.whole.image is not None:
            self._map(
                "real",
                "",
                self.whole.to_hu(self.whole.image[0]),
            )
        self._controls()
        for attribute in self.plan.attributes:
            arms = attribute_variants(self.plan.template, self.whole.case.row, attribute)
            for arm in arms:
                self.out.arms.append(
                    {
                        "case": self.case,
                        "column": arm.column,
                        "value": arm.value,
                        "prompt": arm.prompt.sentence,
                        "dropped": " | ".join(arm.dropped),
                        "file": "",
                    }
                )
            if arms:
                self._attribute(attribute, arms, keep)

    def _map(self, kind: str, contrast: str, volume: Hu, refit: str = "") -> None:
        if self.frame is not None:
            self.out.maps.add((kind, contrast, refit), self.frame(volume))

    def _controls(self) -> None:
        """What changes where nothing should: other noise, another refit, other order, other
        words.
        """
        paint, other = self.painters.paint, self.painters.other_noise
        made = {
            "re-ordered": lambda: paint(self.whole, reordered(self.own_prompt)),
            "re-worded": lambda: paint(self.whole, reworded(self.own_prompt)),
        }
        refit = next(
            (paint for _, kind, _, paint in self.painters.refits if kind == "resampled"), None
        )
        if refit is not None:
            made = {"other refit": lambda: refit(self.whole, self.own_prompt), **made}
        if other is not None:
            made = {"other noise": lambda: other(self.whole, self.own_prompt), **made}
        for name, generate in made.items():
            difference = generate() - self.own
            self._map(name, "", difference)
            sizes = self.regions.means(np.abs(difference))
            self.out.controls += [
                {
                    "control": name,
                    "case": self.case,
                    "region": region,
                    "mean_hu": mean,
                    "voxel_abs_hu": sizes[region],
                }
                for region, mean in self.regions.means(difference).items()
            ]

    def _volumes(self, paint: GenerateFn, arms: Sequence[Variant]) -> dict[str, Hu]:
        same = self.painters.paint is paint
        return {
            arm.value: self.own
            if same and arm.prompt == self.own_prompt
            else paint(self.whole, arm.prompt)
            for arm in arms
        }

    def _attribute(
        self,
        attribute: AtlasAttribute,
        arms: Sequence[Variant],
        keep: Callable[[Variant, Hu], None] | None,
    ) -> None:
        each = [
            self._volumes(paint, arms) for paint in (self.painters.paint, *self.painters.noises)
        ]
        volumes = {
            v: np.mean([made[v] for made in each], axis=0) if len(each) > 1 else each[0][v]
            for v in each[0]
        }
        if keep is not None:
            for arm in arms:
                keep(arm, each[0][arm.value])
        self._doses(attribute, volumes)
        single = [{v: self.regions.means(made[v]) for v in made} for made in each]
        for contrast in self.plan.contrasts_of(attribute):
            difference = contrast_difference(volumes, contrast)
            self._map("effect", contrast.id, difference)
            self._effect_rows(contrast, difference, single)
        for name, kind, permuted, paint in self.painters.refits:
            if kind == "permuted" and attribute.column not in permuted:
                continue
            made = self._volumes(paint, arms)
            for contrast in self.plan.contrasts_of(attribute):
                difference = contrast_difference(made, contrast)
                self._map(kind, contrast.id, difference, name)
                common = {"refit": name, "kind": kind, "contrast": contrast.id, "case": self.case}
                self.out.refits += [
                    {**common, "region": region, "effect_hu": mean}
                    for region, mean in self.regions.means(difference).items()
                ]

    def _doses(self, attribute: AtlasAttribute, volumes: Mapping[str, Hu]) -> None:
        means = {value: self.regions.means(volume) for value, volume in volumes.items()}
        first = means[attribute.values[0]]
        self.out.doses += [
            {
                "column": attribute.column,
                "value": value,
                "case": self.case,
                "region": region,
                "change_hu": mean - first[region],
            }
            for value, found in means.items()
            for region, mean in found.items()
        ]

    def _effect_rows(
        self,
        contrast: Contrast,
        difference: Hu,
        single: Sequence[Mapping[str, Mapping[str, float]]],
    ) -> None:
        kept, every = self.regions.means(difference), self.regions.all_means(difference)
        sizes = self.regions.means(np.abs(difference))
        for region, mean in kept.items():
            with_noise = [
                sum(w * made[v][region] for v, w in contrast.weights.items()) for made in single
            ]
            self.out.effects.append(
                {
                    "contrast": contrast.id,
                    "column": contrast.column,
                    "kind": contrast.kind,
                    "from": contrast.start,
                    "to": contrast.end,
                    "case": self.case,
                    "region": region,
                    "voxels": len(self.regions.kept[region]),
                    "mean_diff_hu": mean,
                    "mean_diff_all_hu": every[region],
                    "mean_abs_hu": sizes[region],
                    "noise_change_hu": max(abs(v - mean) for v in with_noise)
                    if len(single) > 1
                    else None,
                }
            )


def contrast_difference(volumes: Mapping[str, Hu], contrast: Contrast) -> Hu:
    """The difference that a contrast makes of an attribute's volumes, float32 HU (for slopes HU per
    unit).
    """
    parts = [np.float32(weight) * volumes[value] for value, weight in contrast.weights.items()]
    return np.sum(parts, axis=0, dtype=np.float32)


def measure_real_scan(
    whole: VolumeSample, data: DataOptions, vessel_hu: float
) -> tuple[dict[str, float], float] | None:
    """Regional means of a real scan without its vessels, and the vessels' share; None without scan
    or lungs.
    """
    lungs = np.isin(whole.labels, data.lung_labels)
    if whole.image is None or not lungs.any():
        return None
    scan = whole.to_hu(whole.image[0])
    vessels = find_vessels(scan, lungs, vessel_hu)
    masks = regions(whole.labels, voxel_sizes(whole.affine), data.lung_labels, data.airway_label)
    return RegionVoxels.from_masks(masks, vessels).means(scan), float(vessels.sum() / lungs.sum())

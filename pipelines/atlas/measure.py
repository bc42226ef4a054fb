"""Measurements of an atlas: counterfactual volumes of each case, by region and as maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.regions import fill_lesions, regions_of
from data.text.counterfactuals import CaseText, Variant
from data.text.paraphrase import reordered, reworded
from data.text.prompts import Prompt, Template
from data.volume_dataset import VolumeSample
from options.base_options import DataOptions
from pipelines.atlas.attributes import attribute_variants
from pipelines.atlas.statistics.contrasts import AtlasAttribute, Contrast
from pipelines.atlas.statistics.outcomes import MEAN, Values
from pipelines.atlas.statistics.population import LungFrame, PopulationMaps
from pipelines.atlas.statistics.regional import LOCAL_OUTCOMES, RegionOutcomes

Hu = NDArray[np.floating]
# Maps a case and a prompt to `(X, Y, Z)` HU on the model's grid, without padding.
GenerateFn = Callable[[VolumeSample, Prompt], Hu]
KeepFn = Callable[[Hu, Variant], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class Replicate:
    """A refit that generates.

    Attributes:
        name: Name of the refit.
        kind: `resampled` or `permuted`.
        permuted: Columns that were shuffled in its training.
        generate: Generates with its network.
    """

    name: str
    kind: str
    permuted: frozenset[str]
    generate: GenerateFn


@dataclass(frozen=True)
class Generators:
    """The networks that generate a case.

    Attributes:
        run: Name of the run, or of the refit of the case's fold.
        generate: Generates with that run.
        noises: The same with further noise fields, over which effects are averaged.
        other_noise: The same with other noise, as a control; None for a model without noise.
        replicates: The refits.
    """

    run: str
    generate: GenerateFn
    noises: Sequence[GenerateFn]
    other_noise: GenerateFn | None
    replicates: Sequence[Replicate]


@dataclass(frozen=True)
class MeasurementPlan:
    """The measurements of each case.

    Attributes:
        template: How rows become text.
        data: How the cohort is read.
        attributes: Attributes to vary.
        contrasts: Contrasts between their values.
        without_vessels: Whether means without vessels are measured, too.
    """

    template: Template
    data: DataOptions
    attributes: Sequence[AtlasAttribute]
    contrasts: Sequence[Contrast]
    without_vessels: bool = False

    def contrasts_of(self, attribute: AtlasAttribute) -> list[Contrast]:
        """Return the contrasts of an attribute."""
        return [contrast for contrast in self.contrasts if contrast.column == attribute.column]

    def regions(self, sample: VolumeSample) -> dict[str, NDArray[np.bool_]]:
        """Return the regions of a case, each `(X, Y, Z)`."""
        return regions_of(sample.labels, sample.spacing, self.data)

    def outcomes(self, sample: VolumeSample, volume: Hu) -> RegionOutcomes:
        """Return what measures the volumes of a case, of which one shows where its vessels are."""
        regions = self.regions(sample)
        outcomes = RegionOutcomes.from_masks(regions, sample.spacing, self.data.terms)
        return outcomes.without_vessels(regions, volume) if self.without_vessels else outcomes


@dataclass
class AtlasMeasurements:
    """All rows over cases by table, and the population maps."""

    effects: list[Row] = field(default_factory=list)
    doses: list[Row] = field(default_factory=list)
    controls: list[Row] = field(default_factory=list)
    refits: list[Row] = field(default_factory=list)
    arms: list[Row] = field(default_factory=list)
    maps: PopulationMaps = field(default_factory=PopulationMaps)


class CaseCounterfactuals:
    """The factual volume of one case and its counterfactuals, added to the measurements.

    Args:
        plan: The measurements to make.
        sample: The case.
        text: Its factual text.
        generators: The networks that generate it.
        measurements: Receives rows and maps.
    """

    def __init__(
        self,
        plan: MeasurementPlan,
        sample: VolumeSample,
        text: CaseText,
        generators: Generators,
        measurements: AtlasMeasurements,
    ) -> None:
        self.plan = plan
        self.sample = sample
        self.text = text
        self.prompt = prompt = text.prompt
        self.generators = generators
        self.measurements = measurements
        self.case = sample.case.id
        self.factual = generators.generate(sample, prompt)
        data = plan.data
        self.outcomes = plan.outcomes(sample, self.factual)
        self.regions = self.outcomes.voxels
        self.factual_values = self.outcomes.measure(self.factual)
        self.frame = None
        if np.isin(sample.labels, data.lung_labels).any():
            labels = fill_lesions(sample.labels, data.lesion_labels, data.lung_labels)
            self.frame = LungFrame(labels, data.lung_labels, data.terms.is_ct)

    def measure(self, keep: KeepFn | None = None) -> None:
        """Generate and measure everything.

        Args:
            keep: Called with each counterfactual volume and its variant.
        """
        self._add_map("generated", "", self.factual)
        if self.sample.image is not None:
            self._add_map("real", "", self.sample.to_hu(self.sample.image[0]))
        self._measure_controls()
        for attribute in self.plan.attributes:
            variants = attribute_variants(self.text, attribute)
            for variant in variants:
                self.measurements.arms.append(
                    {
                        "case": self.case,
                        "column": variant.column,
                        "value": variant.value,
                        "prompt": variant.prompt.sentence,
                        "dropped": " | ".join(variant.dropped),
                        "file": "",
                    }
                )
            if variants:
                self._measure_run(attribute, variants, keep)
                self._measure_replicates(attribute, variants)

    def _add_map(self, kind: str, contrast: str, volume: Hu, refit: str = "") -> None:
        if self.frame is not None:
            self.measurements.maps.add((kind, contrast, refit), self.frame(volume))

    def _measure_controls(self) -> None:
        """Measure changes where nothing should change: other noise, refit, order and wording."""
        if self.generators.other_noise is not None:
            self._measure_control("other noise", self.generators.other_noise, self.prompt)
        for replicate in self.generators.replicates:
            if replicate.kind == "resampled":
                self._measure_control("other refit", replicate.generate, self.prompt)
                break
        generate = self.generators.generate
        self._measure_control("re-ordered", generate, reordered(self.prompt))
        self._measure_control("re-worded", generate, reworded(self.prompt))

    def _measure_control(self, name: str, generate: GenerateFn, prompt: Prompt) -> None:
        difference = generate(self.sample, prompt) - self.factual
        self._add_map(name, "", difference)
        sizes = self.regions.means(np.abs(difference))
        for region, mean in self.regions.means(difference).items():
            self.measurements.controls.append(
                {
                    "control": name,
                    "case": self.case,
                    "region": region,
                    "mean_hu": mean,
                    "voxel_abs_hu": sizes[region],
                }
            )

    def _volumes(self, generate: GenerateFn, variants: Sequence[Variant]) -> dict[str, Hu]:
        """Return the volume of each value."""
        is_run = generate is self.generators.generate
        volumes = {}
        for variant in variants:
            if is_run and variant.prompt == self.prompt:
                volumes[variant.value] = self.factual
            else:
                volumes[variant.value] = generate(self.sample, variant.prompt)
        return volumes

    def _measure_run(
        self, attribute: AtlasAttribute, variants: Sequence[Variant], keep: KeepFn | None
    ) -> None:
        """Measure an attribute's effect in the run, averaged over noise fields."""
        first = self._volumes(self.generators.generate, variants)
        others = (self._volumes(generate, variants) for generate in self.generators.noises)
        by_noise = [first, *others]
        volumes = first
        if len(by_noise) > 1:
            volumes = {v: np.mean([each[v] for each in by_noise], axis=0) for v in first}
        if keep is not None:
            for variant in variants:
                keep(first[variant.value], variant)
        by_draw = [self._measure_volumes(each) for each in by_noise]
        self._add_doses(attribute, by_draw)
        for contrast in self.plan.contrasts_of(attribute):
            difference = contrast_difference(volumes, contrast)
            self._add_map("effect", contrast.id, difference)
            self._add_effects(contrast, difference, by_draw)
        self._add_local_maps(attribute, by_noise)

    def _measure_volumes(self, volumes: Mapping[str, Hu]) -> dict[str, Values]:
        """Return the outcomes of the volume of each value."""
        measured = {}
        for value, hu in volumes.items():
            is_factual = hu is self.factual
            measured[value] = self.factual_values if is_factual else self.outcomes.measure(hu)
        return measured

    def _measure_replicates(self, attribute: AtlasAttribute, variants: Sequence[Variant]) -> None:
        """Measure an attribute's effect in each refit; permuted ones must have shuffled it."""
        for replicate in self.generators.replicates:
            if replicate.kind == "permuted" and not attribute.is_permuted(replicate.permuted):
                continue
            volumes = self._volumes(replicate.generate, variants)
            values = self._measure_volumes(volumes)
            for contrast in self.plan.contrasts_of(attribute):
                difference = contrast_difference(volumes, contrast)
                self._add_map(replicate.kind, contrast.id, difference, replicate.name)
                for (outcome, region), effect in contrast_effects(values, contrast).items():
                    self.measurements.refits.append(
                        {
                            "refit": replicate.name,
                            "kind": replicate.kind,
                            "contrast": contrast.id,
                            "case": self.case,
                            "outcome": outcome,
                            "region": region,
                            "effect": effect,
                        }
                    )

    def _add_doses(
        self, attribute: AtlasAttribute, by_draw: Sequence[Mapping[str, Values]]
    ) -> None:
        """Add rows of doses.csv: outcomes along an attribute's values, against its first."""
        first = attribute.values[0]
        for value in by_draw[0]:
            for outcome, region in by_draw[0][first]:
                key = (outcome, region)
                change = float(np.mean([draw[value][key] - draw[first][key] for draw in by_draw]))
                self.measurements.doses.append(
                    {
                        "column": attribute.column,
                        "value": value,
                        "case": self.case,
                        "outcome": outcome,
                        "region": region,
                        "change": change,
                    }
                )

    def _add_local_maps(
        self, attribute: AtlasAttribute, by_noise: Sequence[Mapping[str, Hu]]
    ) -> None:
        """Add maps of outcomes that single voxels have, as means over noise fields."""
        if self.frame is None:
            return
        known = {outcome.name for outcome in self.outcomes.outcomes}
        for outcome in [name for name in LOCAL_OUTCOMES if name in known]:
            mapped: dict[str, Hu] = {}
            for volumes in by_noise:
                for value, volume in volumes.items():
                    local = self.outcomes.local(volume, outcome) / np.float32(len(by_noise))
                    mapped[value] = mapped[value] + local if value in mapped else local
            for contrast in self.plan.contrasts_of(attribute):
                self._add_map(outcome, contrast.id, contrast_difference(mapped, contrast))

    def _add_effects(
        self,
        contrast: Contrast,
        difference: Hu,
        by_draw: Sequence[Mapping[str, Values]],
    ) -> None:
        """Add a contrast's rows of effects_by_case.csv.

        Args:
            difference: Its effect on each voxel, averaged over noise fields.
            by_draw: Outcomes by noise field and value.
        """
        sizes = self.regions.means(np.abs(difference))
        draws = [contrast_effects(values, contrast) for values in by_draw]
        for outcome, region in draws[0]:
            effects = [draw[outcome, region] for draw in draws]
            mean = float(np.mean(effects))
            noise_change = None
            if len(effects) > 1:
                noise_change = max(abs(effect - mean) for effect in effects)
            self.measurements.effects.append(
                {
                    "contrast": contrast.id,
                    "column": contrast.column,
                    "kind": contrast.kind,
                    "from": contrast.start,
                    "to": contrast.end,
                    "case": self.case,
                    "outcome": outcome,
                    "region": region,
                    "voxels": len(self.regions.indices[region]),
                    "effect": mean,
                    "mean_abs_hu": sizes[region] if outcome == MEAN else None,
                    "noise_change": noise_change,
                }
            )


def contrast_effects(
    values: Mapping[str, Values], contrast: Contrast
) -> dict[tuple[str, str], float]:
    """Return a contrast's effect by (outcome, region) from the values of measured volumes."""
    effects = {}
    for key in values[next(iter(contrast.weights))]:
        effects[key] = sum(weight * values[v][key] for v, weight in contrast.weights.items())
    return effects


def contrast_difference(volumes: Mapping[str, Hu], contrast: Contrast) -> Hu:
    """Return the effect of a contrast from an attribute's volumes, float32 HU (slopes per unit)."""
    parts = [np.float32(weight) * volumes[value] for value, weight in contrast.weights.items()]
    return np.sum(parts, axis=0, dtype=np.float32)


def real_outcomes(sample: VolumeSample, plan: MeasurementPlan) -> Values | None:
    """Return the outcomes of a case's scan; None where it has no scan or no lungs."""
    lungs = np.isin(sample.labels, plan.data.lung_labels)
    if sample.image is None or not lungs.any():
        return None
    scan = sample.to_hu(sample.image[0])
    return plan.outcomes(sample, scan).measure(scan)


def lung_volume_ml(sample: VolumeSample, data: DataOptions) -> float:
    """Return the volume of the lungs with their lesions, ml."""
    voxels = np.isin(sample.labels, data.whole_lung_labels).sum()
    return float(voxels * np.prod(sample.spacing) / 1000)

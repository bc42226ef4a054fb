"""The methods paragraph of an atlas with its settings, ready to adapt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.atlas.statistics.associations import STRONG_ASSOCIATION
from pipelines.atlas.statistics.findings import FDR
from pipelines.atlas.statistics.imputation import IMPUTATIONS
from pipelines.atlas.statistics.intervals import MAX_PERMUTED_P, MIN_PERMUTED, MIN_REFITS
from util.modality import CT

GENERATED = """
Counterfactual volumes were generated with the run {run} ({model}, text encoder {encoder},
{steps} training steps on {training} cases). For each of {generated} cases ({cases_said}), one
attribute of the clinical row at a time was set to each value studied, with the lung mask and the
noise held fixed; values that contradicted the changed one were removed from the text. Categories
were compared with a reference value; numbers were generated at the 10, 30, 50, 70 and 90 %
quantiles of the training cases, giving the difference between the outer ones and a least-squares
slope. Outcomes of a region are its mean attenuation, the SD of its detail, the 5th, 95th and 99.5th
percentiles{shares_said}, over all voxels; effects are differences of outcomes, averaged over
cases{noise_said}. Voxels lie between {window} HU, the HU window of training. The seed of the noise
is {seed}."""
SHARES = ", and the shares of voxels below -950 HU, below -910 HU and above -700 HU"
REFITTED = """
Intervals are 95 % intervals over {refits} refits, each trained from the start on patients drawn
with replacement and with another seed (Student's t times their standard deviation). The interval
of an attribute that is associated with another studied one (measure of association at least
{strong:g}) reaches further: as far as it would with all of the other's effect, and as far as it
would if the other explained the shared part."""
NOT_REFITTED = """
The run was not refitted often enough for intervals (at least {fewest} refits), so that none is
given; the range over patients describes patients, not uncertainty."""
PERMUTED = """
For the null distribution, {permuted} refits were trained on permuted rows."""
REAL = """
The real scans of {real} cases{seen_said} were compared by linear regression of each regional
outcome on the attribute (statsmodels, {errors} errors). Total effects are adjusted for demographics
and acquisition (those of the diagnosis and of mediators for exposures, too); direct effects for
other exposures, mediators and the logarithm of the lung volume, too. Outcomes and columns that
depend on others were not adjusted for.{imputed_said}"""
IMPUTED = """ Unknown covariates were imputed {count} times by chained equations, assuming that they
are missing at random, and pooled by Rubin's rules."""
CONTROLS = """
Negative controls were {controls_said} (mean and noise, false-discovery rate {fdr:.0%})."""
NO_CONTROLS = """
No negative control could be measured in the scans."""
SHAPES = """
Volumes and heights of the masks were compared in the same way as outcomes."""
FINDINGS = """
A difference counts as a finding where it has a permutation p value of at most {permuted_p:g} (at
least {least} permuted refits, each with its largest effect over the regions of the lungs), has the
sign of the adjusted difference in the real scans, and the latter differs from 0 with a
false-discovery rate of at most {fdr:.0%} over {tests} tests (contrasts, outcomes and lung regions;
Benjamini and Hochberg). Differences are associations in the training data, not effects of an
intervention."""


def methods_paragraph(facts: Mapping[str, Any]) -> str:
    """Return a paragraph from the facts of an atlas (the names in braces above)."""
    parts = [GENERATED, REFITTED if facts["refits"] >= MIN_REFITS else NOT_REFITTED]
    if facts["permuted"]:
        parts.append(PERMUTED)
    is_ct = facts.get("unit", CT.unit) == CT.unit
    controls = CONTROLS if facts["controls"] else NO_CONTROLS
    parts += [REAL, *([controls] if is_ct else []), SHAPES, FINDINGS]
    imputed = IMPUTED.format(count=IMPUTATIONS) if facts["imputed"] else ""
    text = "".join(parts).format(
        **facts,
        imputed_said=imputed,
        shares_said=SHARES if is_ct else "",
        controls_said=" and ".join(facts["controls"]),
        least=MIN_PERMUTED,
        permuted_p=MAX_PERMUTED_P,
        fewest=MIN_REFITS,
        fdr=FDR,
        strong=STRONG_ASSOCIATION,
    )
    return " ".join(text.split())

"""Generation of one volume into one file, for `--out`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.volumes import has_suffix, strip_suffix, write_like
from options.test_options import TestOptions
from pipelines.generation.case_writer import DicomWriter, dicom_key, display_window
from pipelines.generation.plan import GenerationPlan
from util.cli import UserError
from util.files import claim_file


def check_single_file(options: TestOptions) -> Path:
    """Return the file of `--out`; raise `UserError` where it cannot be written."""
    out = Path(options.source.out)
    if not has_suffix(out.name) or not out.name.endswith((".nii", ".nii.gz")):
        raise UserError(
            f"--out is {options.source.out!r}; with --mask it names the volume to write, ending "
            "in .nii.gz."
        )
    if options.output.gif:
        raise UserError(
            "--out names one volume, and --gif draws animations of a results folder. Leave one of "
            "them out; without --out the results go to a folder below --results_dir."
        )
    if options.arms.draws > 1:
        raise UserError(
            "--out names one volume, and --draws measures effects over several. Leave one of them "
            "out; without --out the results go to a folder below --results_dir."
        )
    if options.arms.vary or options.arms.vary_text:
        raise UserError(
            "--out names one volume, and --vary and --vary_text make several. Leave --out out: the "
            "results then go to a folder below --results_dir."
        )
    claim_file(out, options.output.overwrite)
    if options.output.dicom:
        claim_file(dicom_folder(out), options.output.overwrite)
    return out


def dicom_folder(out: Path) -> Path:
    """Return the folder of the DICOM series beside the file of `--out`."""
    return out.with_name(f"{strip_suffix(out.name)}_dicom")


def generate_file(plan: GenerationPlan, out: Path) -> None:
    """Generate the factual volume of the plan's only case into one file."""
    sample = plan.samples[0]
    volume = plan.generate(sample, plan.variants(sample.case).factual.prompt)
    on_file, mask = sample.to_source_grid(volume), sample.case.mask
    out.parent.mkdir(parents=True, exist_ok=True)
    write_like(out, on_file, mask, np.int16, display_window(plan.data))
    if plan.options.output.dicom:
        DicomWriter(mask, dicom_key(plan.options), plan.data).write(
            dicom_folder(out), on_file, "generated"
        )

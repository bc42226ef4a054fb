"""Edits of real training scans: the same scan with one attribute changed, as a labelled case."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import load_mask
from data.cohort import IMAGES, MASKS, Case, Cohort
from data.fingerprints import volume_digest
from data.provenance import EDIT_COLUMNS
from data.resampling import patients_of
from data.volumes import load_volume, write_like
from models.editing import EditScan, InversionEditor, ResidualEditor
from models.inference import LoadedRun
from options.expand_options import ExpandOptions
from pipelines.generation.plan import run_samples
from pipelines.synthesis.planning.planned_case import PlannedCase
from pipelines.synthesis.planning.source_texts import SourceTexts
from util.cli import UserError, format_list
from util.web.figures import LUNG

EDITORS = {"residual": ResidualEditor, "edit": InversionEditor}
# Types of a case's record.
RECORD_TYPES = {
    "case": str,
    "source": str,
    "how": str,
    "seed": int,
    "changes": list,
    "mean_change_hu": float,
    "mean_absolute_change_hu": float,
}


@dataclass(frozen=True)
class CaseEditor:
    """Edits and writes single scans of training cases."""

    options: ExpandOptions
    run: LoadedRun
    texts: SourceTexts

    def __call__(self, planned: PlannedCase) -> dict[str, Any]:
        """Write scan and mask of a case; return its record.

        The change is added to the scan as it lies on disk, so that anatomy and texture are the
        patient's own even where the model works on another grid.
        """
        out = Path(self.options.out)
        source = planned.source
        assert source.image is not None
        change = self._change(planned)
        scan = load_volume(source.image).array + change
        labels = load_mask(source).array
        about = f"Mask2CT: {self.options.how} edit of a real scan, see edits.csv"
        file = f"{planned.id}.nii.gz"
        write_like(out / IMAGES / file, scan, source.mask, np.int16, LUNG, about)
        write_like(out / MASKS / file, labels, source.mask, np.uint8)
        inside = np.isin(labels, self.run.options.data.whole_lung_labels)
        in_lungs = change[inside] if inside.any() else change
        changes = [[column, *values] for column, values in planned.changes.items()]
        return {
            "case": planned.id,
            "source": source.id,
            "how": self.options.how,
            "seed": planned.seed,
            "changes": changes,
            "emptied": list(planned.dropped),
            "mean_change_hu": round(float(in_lungs.mean()), 3),
            "mean_absolute_change_hu": round(float(np.abs(in_lungs).mean()), 3),
            "prompt": planned.prompt.sentence,
        }

    def _change(self, planned: PlannedCase) -> np.ndarray:
        """Return what the edit adds to the scan, HU, on the grid of its file."""
        sample = run_samples(self.run, [planned.source], self.run.options.data)[0]
        assert sample.image is not None
        generator = replace(self.run.generator, seed=planned.seed)
        editor = EDITORS[self.options.how](generator, self.options.edit_strength)
        prompt = tuple(self.texts.prompts[planned.source.id].texts)
        scan = EditScan(sample, sample.image, prompt, noise_key=planned.id)
        edited = sample.to_hu(editor(scan, planned.prompt.texts))
        return sample.to_source_grid(edited - sample.to_hu(sample.image[0]))


def edit_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of edits.csv: one per case and changed column."""
    rows = []
    for record in records:
        for column, before, after in record["changes"]:
            row = {**record, "column": column, "from": before, "to": after}
            rows.append({name: row[name] for name in EDIT_COLUMNS})
    return rows


def editable_cases(
    cohort: Cohort, patient_column: str, held_out_masks: Collection[str] = ()
) -> list[Case]:
    """Return the cases whose scans may be edited: those of the training split, each once.

    No scan of a person who is held out can become a source, whatever the splits hold: a case of
    another split, or of a patient with a case in another split, is left out.

    Args:
        cohort: The cohort with its splits.
        patient_column: Column that names the patient, "" for none.
        held_out_masks: Digests of the masks that the run did not train on, of its own cohort.

    Raises:
        UserError: No case is left.
    """
    patients = patients_of(cohort, patient_column)
    training = set(cohort.splits["train"])
    held_out = {case for name, ids in cohort.splits.items() if name != "train" for case in ids}
    held_out_patients = {patients[case] for case in held_out if case in patients}
    allowed = []
    for case in cohort.cases:
        if case.id not in training or patients[case.id] in held_out_patients:
            continue
        if not held_out_masks or volume_digest(case.mask)["sha256"] not in held_out_masks:
            allowed.append(case)
    if not allowed:
        raise UserError(
            f"{cohort.root}: every patient of the training split is also held out for validation "
            "or test, so no scan can be edited without showing a person of the tests. Give the "
            "cohort a splits.json that keeps patients apart."
        )
    with_scan = [case for case in allowed if case.image is not None]
    if not with_scan:
        raise UserError(
            f"--how residual and edit change real scans, and no training case of {cohort.root} has "
            f"one in {IMAGES}/. Add the scans, or use --how generate."
        )
    return with_scan


def check_edits(
    options: ExpandOptions, run: LoadedRun, texts: SourceTexts, planned: Sequence[PlannedCase]
) -> None:
    """Check that the model can edit and that every edit changes something that no other does.

    Raises:
        UserError: It is not so.
    """
    model = run.generator.model
    if options.how == "edit":
        model.check_inversion()
    unchanged = [
        case.id for case in planned if case.prompt.texts == texts.prompts[case.source.id].texts
    ]
    if unchanged:
        raise UserError(
            f"The text of {format_list(unchanged)} would be that of the scan itself, so that "
            "nothing is edited. Change a column that the text states."
        )
    if options.how == "edit" or not model.noise_channels:
        counts = Counter((case.source.id, tuple(case.prompt.texts)) for case in planned)
        repeated = sum(count - 1 for count in counts.values())
        if repeated:
            other = ", or --how residual, whose noise differs" if options.how == "edit" else ""
            raise UserError(
                f"--n {len(planned)}: {repeated} of the edits would repeat another one exactly, "
                "because a scan can be edited to a text in one way. Use an --n of at most "
                f"{len(counts)}{other}."
            )

"""Generation of single synthetic cases: a mask, its volume, and the search for copies."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import load_mask
from data.cohort import IMAGES, MASKS, Case
from data.geometry import Volume, resample
from data.text.prompts import Template
from data.volumes import read_header, write_like
from models.inference import LoadedRun
from options.expand_options import ExpandCommand
from pipelines.evaluation.memorisation import NearestScan
from pipelines.generation.plan import run_samples
from pipelines.synthesis.copies import CopySearch, SyntheticVolume
from pipelines.synthesis.masks import MaskMaker, NewMask
from pipelines.synthesis.planning.planned_case import PlannedCase
from util.files import write_json
from util.notices import no_phrase_warnings
from util.progress import progress_bar
from util.records import read_record
from util.web.figures import LUNG

log = logging.getLogger(__name__)

SAME_MASK_FILE = "same_mask.json"  # distances of unseen cases to the scans of their masks
MAX_UNSEEN = 24  # cases outside the training split that are generated for it
# Types of a case's record.
RECORD_TYPES = {
    "case": str,
    "source": str,
    "seed": int,
    "redrawn": int,
    "left_out": bool,
    "reason": str,
    "nearest_training_case": str,
    "distance": float,
    "threshold": float,
    "nearest_mask": str,
    "mask_distance": float,
    "mask_threshold": float,
}


@dataclass(frozen=True)
class CaseSynthesiser:
    """Generates and writes single cases.

    Attributes:
        command: The command's options.
        run: The trained run.
        template: How rows become text.
        make_mask: Makes the mask of a case.
        copies: The search for copies, or None where copies are not searched for.
    """

    command: ExpandCommand
    run: LoadedRun
    template: Template
    make_mask: MaskMaker
    copies: CopySearch | None = None

    def __call__(self, planned: PlannedCase) -> dict[str, Any]:
        """Write mask and volume of a case; return its record.

        A volume that is too close to a training scan is redrawn up to `redraws` times, then
        dropped. A case without a plausible mask is dropped, too.
        """
        out = Path(self.command.expand.out)
        mask = out / MASKS / f"{planned.id}.nii.gz"
        nearest = NearestScan()
        for number in range(self.command.expand.redraws + 1):
            new = self.make_mask(planned, number)
            if new.problems:
                reason = f"no plausible mask ({'; '.join(new.problems)})"
                log.warning("%s is left out: %s.", planned.id, reason)
                mask.unlink(missing_ok=True)  # of an earlier draw, whose volume was a copy
                return _record(planned, number, NearestScan(), new, reason)
            volume = self.generate(planned, new, mask, number)
            if self.copies is not None:
                nearest = self.copies(volume)
            if not nearest.copied:
                header = read_header(mask)
                hu = resample(volume.hu, grid=(header.shape, header.affine))
                write_like(out / IMAGES / mask.name, hu.array, mask, np.int16, LUNG)
                return _record(planned, number, nearest, new)
        mask.unlink()
        return _record(planned, number, nearest, new, "copy")

    def generate(
        self, planned: PlannedCase, new: NewMask, mask: Path, number: int
    ) -> SyntheticVolume:
        """Write a mask to the file `mask`, and generate its volume.

        Args:
            mask: File of the mask.
            number: Number of the draw, which decides the noise.
        """
        write_like(mask, new.labels, planned.source.mask, np.uint8)
        case = Case(planned.id, None, mask, planned.row, planned.source.body)
        sample = run_samples(self.run, [case], self.run.options.data)[0]
        generator = replace(self.run.generator, seed=planned.seed)
        volume = generator(sample, planned.prompt.texts, noise_key=f"{planned.id}:{number}")
        return SyntheticVolume(
            Volume(sample.to_hu(volume), sample.affine),
            Volume(new.labels, load_mask(planned.source).affine),
            planned.source,
            new.deformation,
        )

    def with_copy_search(self, copies: CopySearch, unseen: Sequence[Case]) -> CaseSynthesiser:
        """Return a synthesiser that searches for copies.

        The effect of a mask alone is measured on cases outside the training split; a drawn shape
        is nobody's mask.

        Args:
            unseen: Cases outside the training split.
        """
        if self.command.expand.masks == "shape":
            return replace(self, copies=copies)
        out = Path(self.command.expand.out)
        path = out / SAME_MASK_FILE
        cases = unseen[:MAX_UNSEEN]
        distances = None
        if path.is_file():
            distances = read_record(path, list[float], "The distances are measured again")
        if distances is None or len(distances) != len(cases):
            mask = out / f".{os.getpid()}.nii.gz"
            distances = []
            for case in progress_bar(cases, "cases outside training"):
                row = dict(case.row)
                prompt = self.template.phrases(row)
                planned = PlannedCase(case.id, case, row, prompt, self.command.expand.seed)
                with no_phrase_warnings():
                    volume = self.generate(planned, self.make_mask(planned, 0), mask, 0)
                distances.append(copies.distance_to_source(volume))
            mask.unlink(missing_ok=True)
            write_json(path, distances)
        return replace(self, copies=copies.with_same_mask_threshold(distances))


def _record(
    planned: PlannedCase, redrawn: int, nearest: NearestScan, new: NewMask, reason: str = ""
) -> dict[str, Any]:
    """Return the record of a case.

    Args:
        redrawn: How often it was drawn again.
        nearest: The training scan nearest to its volume.
        reason: Why it is left out; "" for a case that is written.
    """
    return {
        "case": planned.id,
        "source": planned.source.id,
        "seed": planned.seed,
        "redrawn": redrawn,
        "left_out": bool(reason),
        "reason": reason,
        "nearest_training_case": nearest.case,
        "distance": round(nearest.distance, 5),
        "threshold": round(nearest.threshold, 5),
        "nearest_mask": new.nearest.case,
        "mask_distance": round(new.nearest.distance, 5),
        "mask_threshold": round(new.nearest.threshold, 5),
        "emptied": list(planned.dropped),
        "prompt": planned.prompt.sentence,
    }

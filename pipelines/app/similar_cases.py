"""Real cases that resemble a volume or a text, by the cohort's CLIP.

The CLIP that a run pre-trained on its training cases embeds volumes and texts into one space (see
`pipelines.clip_pretraining`). Cases are compared by the cosine of their embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.cache import load_case
from data.cohort import Case
from data.volumes import label_channels, to_unit
from models.inference import locate_text_encoder
from pipelines.app.session import AppSession
from pipelines.clip_pretraining import RECORD, Clip
from util.cli import UserError
from util.files import read_json
from util.volume_inputs import one_hot

NEAREST = 5  # cases that are listed
CAUTION = (
    "Cases resemble each other by the cohort's CLIP, which is small and learned from this cohort "
    "alone; its retrieval among held-out pairs is {retrieval}. It says nothing of a diagnosis."
)


@dataclass(frozen=True)
class SimilarCase:
    """A real case, and the cosine of its embedding with that of the query."""

    case: str
    similarity: float


class CaseIndex:
    """The scans of a cohort as embeddings.

    Raises:
        UserError: The run has no CLIP with an image encoder; the message says why.
    """

    def __init__(self, session: AppSession) -> None:
        self.session = session
        folder = clip_folder(session)
        self.clip = Clip.load(folder, len(session.run.labels)).eval()
        self.record = read_json(folder / RECORD)
        self.size = tuple(self.record["made_from"]["clip_size"])

    @property
    def caution(self) -> str:
        """How far the comparison can be trusted."""
        found = self.record.get("retrieval", {})
        text = "not known"
        if "top5" in found:
            text = (
                f"top-5 {100 * found['top5']:.0f} % ({found['of']}, {found['pairs']} pairs; chance "
                f"{100 * found['chance_top5']:.0f} %)"
            )
        return CAUTION.format(retrieval=text)

    def fill(self, watch: Callable[[int, int], None] = lambda number, cases: None) -> None:
        """Embed the scans of all cases; `watch` is called before each one."""
        scans = self.scans
        for number, case in enumerate(scans):
            watch(number, len(scans))
            if case.id not in self._embeddings:
                image, mask = load_case(case, self.session.plan.data.spacing)
                assert image is not None
                self._embeddings[case.id] = self.embed(image.array, mask.array, case.mask)

    @cached_property
    def scans(self) -> list[Case]:
        """The cases with a scan."""
        return [case for case in self.session.plan.cohort.cases if case.image is not None]

    @cached_property
    def _embeddings(self) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def embed(self, hu: np.ndarray, labels: np.ndarray, mask: Path) -> Tensor:
        """Return the embedding `(C,)` of a volume `(X, Y, Z)` in HU with its mask."""
        run = self.session.run
        unit = torch.from_numpy(to_unit(hu, run.options.data.hu_window)).float()
        channels = label_channels(labels, run.labels, mask)
        shares = one_hot(torch.as_tensor(channels)[None], len(run.labels))
        image = F.adaptive_avg_pool3d(unit[None, None], self.size)
        return self.clip.volume(image, F.adaptive_avg_pool3d(shares, self.size))[0]

    @torch.no_grad()
    def embed_text(self, phrases: Sequence[str]) -> Tensor:
        """Return the embedding `(C,)` of a text.

        Raises:
            UserError: The text is empty.
        """
        if not phrases:
            raise UserError("The text is empty, so that nothing can be compared with it.")
        return self.clip.embed_phrases([list(phrases)])[0]

    def nearest(self, query: Tensor, without: str = "", count: int = NEAREST) -> list[SimilarCase]:
        """Return the cases whose scans are nearest to a query, the nearest first.

        Args:
            query: `(C,)`.
            without: A case that is left out, such as the patient's own.
            count: Number of cases.
        """
        names = [name for name in self._embeddings if name != without]
        if not names:
            return []
        known = torch.stack([self._embeddings[name] for name in names])
        cosines = F.cosine_similarity(known, query[None])
        order = cosines.argsort(descending=True, stable=True)[:count].tolist()
        return [SimilarCase(names[k], float(cosines[k])) for k in order]


def clip_folder(session: AppSession) -> Path:
    """Return the folder of the run's CLIP.

    Raises:
        UserError: The run has none with an image encoder; the message says why.
    """
    run = session.run
    text = locate_text_encoder(run.options.text, run.folder)
    name = session.plan.options.model.text_encoder or text.text_encoder
    folder = Path(name)
    if not (folder / RECORD).is_file():
        raise UserError(
            "Similar cases need the cohort's own CLIP, which embeds scans beside texts; the text "
            f"encoder of this run is {name!r}. Train a run with --text_encoder cohort, the default."
        )
    if not session.plan.cohort.cases:
        raise UserError("Similar cases need a cohort to search in. Start the page with --dataroot.")
    return folder

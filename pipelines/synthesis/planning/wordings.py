"""Plan of a synthetic cohort that balances words of the texts (`--vary_text`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.cohort import Case
from data.text.free_text import TextEdit
from pipelines.synthesis.planning.balance import balanced_counts
from pipelines.synthesis.planning.planned_case import (
    PlannedCase,
    case_name,
    case_seed,
    cycle_randomly,
)
from pipelines.synthesis.planning.source_texts import SourceTexts
from pipelines.synthesis.random_streams import EDIT_STREAM
from util.cli import UserError


def plan_edited(
    texts: SourceTexts,
    edits: Sequence[TextEdit],
    n: int,
    *,
    together: bool,
    changed: bool,
    seed: int,
) -> list[PlannedCase]:
    """Plan new cases whose texts hold each wording of some edits equally often.

    Args:
        texts: Real cases whose masks, rows and texts are used.
        edits: The edits; the words of each are in the text of some case.
        n: Number of new cases.
        together: Balance real and new cases together; else the new ones alone.
        changed: Take any patient whose text holds the words, and replace them; else only patients
            whose text holds the wording itself.
        seed: Decides which patients come first.

    Raises:
        UserError: No text holds the words of an edit, or, without `changed`, one of its wordings.
    """
    rng = np.random.default_rng([seed, EDIT_STREAM])
    counts: dict[str, int] = {}
    queues = {}
    wordings = {}
    for edit in edits:
        holding = texts.holding(edit)
        by_value: dict[str, list[Case]] = {value: [] for value in edit.values}
        for case in texts.cases:
            by_value.get(edit.value(texts.prompts[case.id]), []).append(case)
        for wording, value in zip(edit.wordings, edit.values, strict=True):
            name = value if len(edits) == 1 else f"{edit.wordings[0]} => {value}"
            if not (changed or by_value[value]):
                raise UserError(
                    f"--vary_text: no text holds {value!r}, which --rows own needs. Leave it out, "
                    "or use --rows changed."
                )
            counts[name] = len(by_value[value])
            queues[name] = cycle_randomly(holding if changed else by_value[value], rng)
            wordings[name] = (edit, wording)
    shares = balanced_counts(counts, n, together)
    names = [name for name, share in shares.items() for _ in range(share)]
    planned = []
    for number, k in enumerate(rng.permutation(len(names))):
        name = names[k]
        edit, wording = wordings[name]
        source = next(queues[name])
        prompt = texts.prompts[source.id]
        if changed and wording != edit.wordings[0]:
            prompt = edit.apply(prompt, wording) or prompt
        new = texts.with_text(source, prompt)
        seed_of_case = case_seed(seed, number)
        one = PlannedCase.from_change(case_name(number, n), source, new, seed_of_case, name)
        planned.append(one)
    return planned

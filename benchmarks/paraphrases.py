"""Share of an effect that survives when its value is said in other words.

For each wording of the second value of --vary: the mean effect in the lungs over the cases (HU),
and its share of the effect of the template's own words. Wordings of --listed are those that
training may know (--paraphrases), those of --held_out no training knows.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's packages

from options.benchmarks.effects import ParaphrasesBenchmarkCommand
from options.parser import answer_early, parse_command

answer_early(__name__, ParaphrasesBenchmarkCommand, __doc__ or "")  # the imports below are slow


import numpy as np

from data.text.counterfactuals import Variant
from data.text.prompts import Phrase, Prompt
from data.text.synonyms import load_paraphrases
from options.test_options import InterventionOptions, TestOptions
from pipelines.generation.plan import GenerationPlan, open_plan, open_run
from util.cli import UserError, run_command
from util.files import write_json
from util.phrasing import strip_phrase

log = logging.getLogger(__name__)


def reworded(prompt: Prompt, phrase: str, wording: str) -> Prompt:
    """Return a prompt with other words for one of its phrases."""
    return Prompt(
        Phrase(wording, None) if strip_phrase(one.text) == phrase else one for one in prompt
    )


def wordings_of(plan: GenerationPlan, file: str, phrase: str) -> list[str]:
    """Return the wordings of a phrase in a file of paraphrases."""
    read = load_paraphrases(file, plan.template, plan.cohort.columns)
    return list(read.wordings.get(phrase, ()))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every wording, and write the table."""
    o = parse_command(ParaphrasesBenchmarkCommand, __doc__ or "", argv)
    arms = InterventionOptions(vary=(o.paraphrases.vary,))
    options = TestOptions(source=o.source, model=o.model, arms=arms)
    plan = open_plan(options, open_run(options))
    column, value = plan.interventions[0].column, plan.interventions[0].values[1]
    phrase = strip_phrase(
        plan.template[column].to_phrase(plan.template[column].format_value(value))
    )
    kinds = {
        "listed": wordings_of(plan, o.paraphrases.listed, phrase),
        "held out": wordings_of(plan, o.paraphrases.held_out, phrase),
    }
    if not any(kinds.values()):
        raise UserError(f"--listed and --held_out hold no wording of {phrase!r}. Add some.")
    wordings = [[wording] for names in kinds.values() for wording in names]
    plan.run.generator.encoder.validate(wordings)  # at once: one warning
    effects: dict[str, list[float]] = {}
    for sample in plan.samples:
        group: Sequence[Variant] = plan.variants(sample.case).counterfactual[0]
        prompts = [group[0].prompt, group[1].prompt]
        names = ["", phrase, *kinds["listed"], *kinds["held out"]]
        prompts += [reworded(group[1].prompt, phrase, wording) for wording in names[2:]]
        lungs = np.isin(sample.labels, plan.data.lung_labels)
        means = [float(hu[lungs].mean()) for hu in plan.generate_all(sample, prompts)]
        for name, mean in zip(names[1:], means[1:], strict=True):
            effects.setdefault(name, []).append(mean - means[0])
    figures = table(effects, phrase, kinds)
    if o.paraphrases.json:
        write_json(Path(o.paraphrases.json), figures)


def table(
    effects: dict[str, list[float]], phrase: str, kinds: dict[str, list[str]]
) -> dict[str, Any]:
    """Log the table, and return its figures."""
    whole = float(np.mean(effects[phrase]))
    log.info("%r: %+.1f HU over %d cases.", phrase, whole, len(effects[phrase]))
    figures: dict[str, Any] = {"phrase": phrase, "effect_hu": whole, "wordings": {}}
    for kind, wordings in kinds.items():
        shares = []
        for wording in wordings:
            effect = float(np.mean(effects[wording]))
            shares.append(effect / whole)
            figures["wordings"][wording] = {"kind": kind, "hu": effect, "share": shares[-1]}
            log.info("| %s | %s | %+.1f HU | %.0f %% |", wording, kind, effect, 100 * shares[-1])
        if shares:
            figures[kind] = {"mean_share": float(np.mean(shares)), "least": min(shares)}
            log.info(
                "%s: %.0f %% of the effect on average, at least %.0f %%.",
                kind,
                100 * float(np.mean(shares)),
                100 * min(shares),
            )
    return figures


if __name__ == "__main__":
    run_command(main)

"""The words that a run knows for phrases: those of its training, and those that its user adds."""

from __future__ import annotations

from collections.abc import Mapping

from data.text.prompts import load_template
from data.text.synonyms import load_paraphrases
from models.inference import LoadedRun, load_run
from models.text.base_encoder import TextEncoder
from models.text.phrase_encoder import PhraseEncoder
from options.diffusion_options import SamplingOptions
from options.test_options import ModelOptions
from util.cli import UserError


def known_synonyms(encoder: TextEncoder) -> Mapping[str, str]:
    """Return the phrases that other words stand for, by their normalised form."""
    return encoder.synonyms if isinstance(encoder, PhraseEncoder) else {}


def load_worded_run(
    model: ModelOptions, seed: int = 0, sampling: SamplingOptions | None = None
) -> LoadedRun:
    """Load a run, and let its text encoder know the words of `--paraphrases`.

    Args:
        model: The run.
        seed: Seed of the noise.
        sampling: How a diffusion model samples, where not as the run says.

    Raises:
        UserError: The run cannot be loaded, reads no phrases, or the file does not fit it.
    """
    run = load_run(model, seed=seed, sampling=sampling)
    if not model.paraphrases:
        return run
    encoder, data = run.generator.encoder, run.options.data
    if not isinstance(encoder, PhraseEncoder):
        raise UserError(
            f"--paraphrases gives other words for phrases, and the run {run.folder.name} does not "
            "read phrases. Leave it out, or train a run with --text_mode phrases."
        )
    columns = tuple(run.state["columns"])
    template = load_template(data.template, columns, data.key_column, data.patient_column)
    encoder.add_synonyms(load_paraphrases(model.paraphrases, template, columns).synonyms)
    return run

"""A run's options and checkpoint without anything of single patients.

What leaves the house: weights, the words of the template with their categories, and counts over at
least `MIN_PATIENTS` patients. What stays: ids, paths, digests of files, weights of cases, single
numbers such as an age, and texts that people wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data.text.prompts import Template
from data.text.values import parse_number
from models.text.base_encoder import TextEncoder
from models.text.phrase_encoder import PhraseEncoder
from models.text.table_encoder import TableEncoder
from options.train_options import RunOptions, TrainOptions
from pipelines.evidence import EVIDENCE
from util.phrasing import strip_phrase

MIN_PATIENTS = 5  # of a count that is handed on
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)  # of a number's values
WITHHELD = "\x01"  # in the name of a phrase that stays in the house
MIN_ID_LENGTH = 5  # of an id that is searched for; shorter ones are words of any text

# Entries of a checkpoint that are handed on as they are.
PLAIN_ENTRIES = ("step", "steps", "labels", "columns", "version")
ENCODER = "encoder"  # folder of the text encoder
TEMPLATE = "template.yaml"
AUTOENCODER = "autoencoder.safetensors"


def redact_options(options: TrainOptions, has_template_file: bool) -> TrainOptions:
    """Return options without paths; files that are handed on are named as they lie there.

    Args:
        options: The run's options.
        has_template_file: Whether the template is a file of the user's.
    """
    data = replace(
        options.data,
        dataroot="",
        paraphrases="",
        cache_dir="",
        splits="",
        template=TEMPLATE if has_template_file else options.data.template,
    )
    text = options.text
    if text.text_encoder != "table":
        text = replace(text, text_encoder=ENCODER, text_revision="", medclip_bert="")
    diffusion = options.diffusion
    if diffusion.autoencoder:
        diffusion = replace(diffusion, autoencoder=AUTOENCODER)
    return replace(
        options,
        run=replace(RunOptions(), name=options.run.name, seed=options.run.seed),
        data=data,
        text=text,
        diffusion=diffusion,
        loss=replace(options.loss, perceptual_weights=""),
        optim=replace(options.optim, load_global=""),
    )


def known_phrases(state: Mapping[str, Any], template: Template) -> set[str]:
    """Return the phrases that the template words from values that are handed on.

    Checkpoints of the first versions hold no values; there, every phrase counts that is worded as
    the template words one of its columns.
    """
    values = training_values(state, template)
    if values:
        return {
            strip_phrase(template[column].to_phrase(value))
            for column, known in values.items()
            for value in known
        }
    columns = template.attributes(state["columns"])
    phrases = state["encoder_values"].get("phrases") or ()
    return {p for p in phrases if any(template[c].parse_phrase(p) is not None for c in columns)}


def training_values(state: Mapping[str, Any], template: Template) -> dict[str, list[str]]:
    """Return the values of each column that are handed on: categories, and quantiles of numbers.

    A column of free words, in which most values belong to a single patient, has none; neither have
    calendar dates.
    """
    counted = state.get(EVIDENCE, {}).get("values", {})
    values = {}
    for column, known in state.get("data", {}).get("values", {}).items():
        numbers = [number for number in map(parse_number, known) if number is not None]
        is_date, all_numbers = template[column].kind == "date", len(numbers) == len(known)
        if (is_date or all_numbers) and len(numbers) > len(QUANTILES):
            quantiles = np.quantile(numbers, QUANTILES)
            values[column] = [f"{float(f'{v:.3g}'):.10g}" for v in quantiles]  # never "1e+03"
        elif all_numbers or not (is_date or _is_free_text(known, counted.get(column, {}))):
            values[column] = list(known)
    return values


def _is_free_text(values: Sequence[str], counts: Mapping[str, int]) -> bool:
    """Return whether most values of a column are one patient's own words."""
    single = sum(counts.get(value, 1) < 2 for value in values)
    return len(values) > 2 and single > len(values) / 2


def redact_state(
    state: Mapping[str, Any], template: Template, encoder: TextEncoder
) -> dict[str, Any]:
    """Return a checkpoint's plain values without ids, digests, single values and free texts.

    Args:
        state: The checkpoint's values.
        template: How rows became text.
        encoder: The run's text encoder.
    """
    identity = dict(state["encoder"])
    identity |= {"source": ENCODER if identity["source"] != "table" else "table"}
    if "revision" in identity:
        identity["revision"] = ""
    evidence = state.get(EVIDENCE, {})
    counts = {
        column: {v: n for v, n in values.items() if n >= MIN_PATIENTS}
        for column, values in evidence.get("values", {}).items()
        if column in training_values(state, template)
    }
    return {
        **{name: state[name] for name in PLAIN_ENTRIES if state.get(name) is not None},
        "version": state.get("version") or "0.1",
        "encoder": identity,
        "encoder_values": _redact_encoder(state, template, encoder),
        "data": {"values": training_values(state, template)},
        EVIDENCE: {
            "patients": evidence.get("patients", 0),
            "values": {column: values for column, values in counts.items() if values},
            "lung_sd_hu": evidence.get("lung_sd_hu"),
            "effects": {},
        },
    }


def _redact_encoder(
    state: Mapping[str, Any], template: Template, encoder: TextEncoder
) -> dict[str, Any]:
    """Return an encoder's values with phrases of the template alone.

    The table encoder has a channel per phrase in their order, so there a phrase that stays in the
    house leaves a name without meaning.
    """
    values = dict(state["encoder_values"])
    phrases: list[str] = sorted(values.get("phrases") or ())
    if not isinstance(encoder, PhraseEncoder):
        return values
    wordings = {stem["phrase"] for stem in values.get("numbers", {}).values()}
    kept = {*wordings, *known_phrases(state, template)}
    names: dict[str, str] = {}
    before = ""
    for number, phrase in enumerate(phrases):
        if phrase in kept:
            before = names[phrase] = phrase
        elif isinstance(encoder, TableEncoder):
            # Sorts behind the last phrase that is named, and before the next.
            names[phrase] = f"{before}{WITHHELD}{number:06d}"
    shares = {names[p]: w for p, w in (values.get("shares") or {}).items() if p in names}
    terms = [
        {**term, "phrases": [names[p] for p in term["phrases"]]}
        for term in values.get("terms") or ()
        if all(p in names for p in term["phrases"])
    ]
    return {**values, "phrases": sorted(names.values()), "shares": shares, "terms": terms}


def case_ids(state: Mapping[str, Any], splits: Mapping[str, Sequence[str]]) -> set[str]:
    """Return every id of a case that a run's files hold."""
    ids = set(state.get("weights", {}))
    for name in ("files", "rows"):
        ids |= set(state.get("data", {}).get(name, {}))
    for cases in splits.values():
        ids |= set(cases)
    ids |= set(state.get("left_out", ()))
    return ids


def find_ids(content: bytes, ids: Sequence[str]) -> list[str]:
    """Return the ids that a file's content holds as words of their own."""
    text = content.decode("utf-8", errors="replace")
    found = []
    for one in ids:
        is_long = len(one) >= MIN_ID_LENGTH and one in text
        if is_long and re.search(rf"(?<![\w.-]){re.escape(one)}(?![\w-])", text):
            found.append(one)
    return found

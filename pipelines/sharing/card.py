"""The model card of an exported run (Mitchell et al. 2019, arXiv 1810.03993)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from data.text.prompts import Template
from options.train_options import TrainOptions
from pipelines.evidence import EVIDENCE
from pipelines.sharing.redact import MIN_PATIENTS
from util import __version__
from util.cli import counted
from util.markdown import code, escape_text, markdown_table

MAX_VALUES = 12  # of a column, listed by name
METRICS = {
    "val_lung_mae_hu": "Mean absolute error in the lungs (HU)",
    "val_lung_ssim": "SSIM in the lungs",
    "val_lung_mean_error_hu": "Mean error in the lungs (HU)",
    "val_lung_detail_ratio": "SD of detail over that of scans",
    "val_lung_noise_correlation": "Correlation of detail between two noises",
    "val_lung_effect_hu": "Tracked effect in the lungs (HU)",
}


@dataclass(frozen=True)
class CardFacts:
    """What the card says.

    Attributes:
        name: Name of the run.
        options: Its options, redacted.
        state: Its checkpoint's plain values, redacted.
        template: How rows became text.
        cases: Training scans.
        metrics: Last value of each metric of validation.
        parameters: Parameters of the network that generates.
        licence: Licence of the weights; "" where it is not stated.
    """

    name: str
    options: TrainOptions
    state: Mapping[str, Any]
    template: Template
    cases: int
    metrics: Mapping[str, float]
    parameters: int
    licence: str


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown, with the front matter that the Hugging Face hub reads."""
    sections = [
        _front_matter(facts),
        _summary(facts),
        _data(facts),
        _columns(facts),
        _metrics(facts),
        USE,
        _licence(facts),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def _front_matter(facts: CardFacts) -> str:
    licence = facts.licence.lower() or "other"
    tags = ("medical", "ct", "3d", "image-generation", "counterfactual")
    lines = ["---", f"license: {licence}", "library_name: mask2ct", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _summary(facts: CardFacts) -> str:
    generator, options = facts.options.generator, facts.options
    low, high = options.data.hu_window
    labels = ", ".join(str(label) for label in facts.state["labels"])
    lungs = ", ".join(map(str, options.data.lung_labels))
    terms = options.data.terms
    subject = "chest CT, conditioned on a lung mask" if terms.is_ct else "3D volumes, on a mask"
    encoder = code(facts.state["encoder"].get("kind", ""))
    step, version = facts.state["step"], facts.state["version"]
    return f"""
# {escape_text(facts.name)}

A generative model of {subject} and on clinical text, trained with Mask2CT
({code(generator.model)}, {facts.parameters / 1e6:.2f} million parameters, step {step},
version {version}, exported by {__version__}).

```bash
python test.py --name FILE_OR_FOLDER --mask lung.nii.gz --prompt "..." --out generated.nii.gz
```

```python
volume = mask2ct.load("FILE_OR_FOLDER").generate("lung.nii.gz", "...")
```

| | |
|---|---|
| input | mask with the labels {labels} (lungs {lungs}), text |
| output | volume in {terms.unit} on the grid of the mask, {low:g} to {high:g} {terms.unit} |
| text encoder | {encoder}, mode {code(options.text.text_mode)} |
"""


def _data(facts: CardFacts) -> str:
    patients = facts.state[EVIDENCE]["patients"]
    scans = counted(facts.cases, "scan") if facts.cases else "An unknown number of scans"
    people = counted(patients, "patient") if patients else "an unknown number of patients"
    return f"""
## Training data

{scans} of {people}. This file holds no volume, picture, id, path or row of any of
them. Values of a column that fewer than {MIN_PATIENTS} patients have are not counted,
numbers are given by quantiles, and texts that people wrote are left out. Weights can still remember
training scans: see Cautions. The tokenizer of a text encoder that was trained on the cohort holds
words of its texts.
"""


def _columns(facts: CardFacts) -> str:
    values = facts.state[EVIDENCE]["values"]
    known = facts.state["data"]["values"]
    rows = []
    for column in facts.template.attributes(facts.state["columns"]):
        counts = values.get(column, {})
        if len(known.get(column, ())) > MAX_VALUES or not counts:
            text = "numbers or words, not counted" if known.get(column) else "not counted"
        else:
            text = ", ".join(f"{escape_text(v)} {n}" for v, n in list(counts.items())[:MAX_VALUES])
        role = facts.template.role(column)
        rows.append((escape_text(column), role, text))
    table = pd.DataFrame(rows, columns=["column", "role", "patients by value"])
    return f"## Columns\n\n{markdown_table(table)}"


def _metrics(facts: CardFacts) -> str:
    shown = {title: facts.metrics[name] for name, title in METRICS.items() if name in facts.metrics}
    if not shown:
        return "## Metrics\n\nThe run was not validated."
    rows = [(title, f"{value:.3g}") for title, value in shown.items()]
    table = pd.DataFrame(rows, columns=["of the last validation, a few cases", ""])
    return f"## Metrics\n\n{markdown_table(table)}"


def _licence(facts: CardFacts) -> str:
    stated = f"The weights: {escape_text(facts.licence)}."
    missing = "The licence of the weights is not stated: ask whoever gave you this file."
    weights = stated if facts.licence else missing
    return f"## Licence\n\n{weights} The code: Apache-2.0 (LICENSE)."


USE = """
## Intended use

Research and teaching: volumes for any mask, and counterfactuals, which show what the model has
learned that an attribute does to a chest CT.

## Cautions

- Not for diagnosis, treatment or any other clinical decision. Generated volumes are nobody's scans.
- An effect is an association in the training cohort. It is not a causal effect, and it is blurred
  or absent where few patients have a value.
- Values and words that training has not seen give effects without meaning; the commands warn of
  them.
- Generative models can repeat training scans. `scripts/evaluate.py` looks for copies; it is no
  proof of privacy.
- Say in every publication that the data are synthetic, and how they were made.
"""

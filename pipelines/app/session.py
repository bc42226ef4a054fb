"""An opened run with its cohort: the columns that can be asked for, the cases, and the prompts."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.body import BodyLabel
from data.checks.masks import check_labels_known, mask_facts, mask_problems
from data.cohort import Case, Cohort
from data.regions import regions_of
from data.text.counterfactuals import Intervention, check_intervention, describe_removed
from data.text.free_text import TextReader
from data.text.prompts import Prompt, load_template
from data.text.values import parse_number
from data.volume_dataset import VolumeSample
from data.volumes import has_suffix
from models.inference import LoadedRun
from models.text.relevance import warn_low_relevance
from options.app_options import AppCommand
from options.checks import check_chest_ct
from options.test_options import CaseOptions, InterventionOptions, TestOptions
from pipelines.app.progress import OnTile
from pipelines.app.question import MAX_TEXT, NOT_KNOWN, Question
from pipelines.evidence import EVIDENCE, warn_young_run
from pipelines.generation.plan import GenerationPlan, open_plan, run_samples
from pipelines.run_words import known_synonyms, load_worded_run
from util.cli import UserError, format_list, safe_name
from util.notices import Notice, collected_warnings

log = logging.getLogger(__name__)

KEPT_SAMPLES = 2  # cases whose voxels and regions are kept in memory
MAX_LISTED = 40  # known values of a column


@dataclass(frozen=True)
class KnownColumn:
    """A column that can be asked for.

    Attributes:
        role: Exposure, demographic, mediator, outcome or acquisition.
        unit: Unit of its numbers; "" for none.
        values: Values that the run was trained on, as the text shows them.
        numeric: Whether they are numbers.
        patients: Training patients by value; empty where the run did not record them.
    """

    name: str
    role: str
    unit: str
    values: tuple[str, ...]
    numeric: bool
    patients: Mapping[str, int] = field(default_factory=dict)

    @property
    def info(self) -> str:
        """Role, unit and range in a few words."""
        parts = [self.role, *([self.unit] if self.unit else [])]
        if self.numeric and self.values:
            parts.append(f"{self.values[0]} to {self.values[-1]} in training")
        return ", ".join(parts)


@dataclass(frozen=True)
class AskedText:
    """The two texts of a question.

    Attributes:
        a: Prompt of volume A.
        b: Prompt of volume B.
        columns: Columns that differ, with the values of A and B as the text shows them.
        notices: Columns that were removed from a text because they contradict a value.
    """

    a: Prompt
    b: Prompt
    columns: Mapping[str, tuple[str, str]]
    notices: tuple[Notice, ...] = ()

    @property
    def differs(self) -> bool:
        """Whether the two texts are different ones."""
        return self.a.texts != self.b.texts

    @property
    def contrast(self) -> tuple[str, str, str]:
        """What is compared, for tables: the attribute, the value of A and that of B."""
        if not self.columns:
            return "free text", "A", "B"
        before = ", ".join(pair[0] or "not known" for pair in self.columns.values())
        after = ", ".join(pair[1] or "not known" for pair in self.columns.values())
        return " and ".join(self.columns), before, after


@dataclass(frozen=True)
class OpenCase:
    """A case that is ready to generate, with its regions."""

    sample: VolumeSample
    regions: Mapping[str, NDArray[np.bool_]]


class AppSession:
    """A run that answers questions.

    Args:
        plan: The run with its cohort; a cohort without cases where none was given.
        folder: Folder for dropped masks and answers.
        notices: What a reader has to know of every answer.

    Attributes:
        columns: The columns that can be asked for.
        reader: Finds the columns in free texts.
    """

    def __init__(self, plan: GenerationPlan, folder: Path, notices: Sequence[Notice] = ()) -> None:
        self.plan = plan
        self.folder = folder
        self.notices = tuple(notices)
        self._masks: dict[str, Case] = {}
        self._open: OrderedDict[str, OpenCase] = OrderedDict()
        self.trained = plan.training_values
        self.columns = {column.name: column for column in self._known_columns()}
        values = {column.name: column.values for column in self.columns.values()}
        synonyms = known_synonyms(plan.run.generator.encoder)
        self.reader = TextReader(plan.template, values, synonyms)

    @classmethod
    def from_options(cls, options: AppCommand, folder: Path) -> AppSession:
        """Load the run and its cohort.

        Raises:
            UserError: The run or the cohort cannot be used.
        """
        run = load_worded_run(options.model, sampling=options.sampling)
        check_chest_ct(run.options.data, "the live page")
        source = CaseOptions(dataroot=options.app.dataroot, split="all", accept_changes=True)
        arms = InterventionOptions(draws=options.app.draws)
        test = TestOptions(source, options.model, arms, options.sampling)
        with collected_warnings() as notices:
            plan = open_plan(test, run) if options.app.dataroot else _plan_without_cases(test, run)
            if not options.app.dataroot:
                warn_young_run(run)
        of_run = [n for n in notices if n.badge in ("run unfinished", "small cohort")]
        return cls(plan, folder, of_run)

    @property
    def run(self) -> LoadedRun:
        """The run."""
        return self.plan.run

    @property
    def cases(self) -> list[str]:
        """Names of the cases that can be chosen, dropped masks first."""
        return [*reversed(self._masks), *(case.id for case in self.plan.cohort.cases)]

    def _known_columns(self) -> list[KnownColumn]:
        template = self.plan.template
        counted = self.run.state.get(EVIDENCE, {}).get("values", {})
        columns = []
        for name in template.attributes(self.run.state["columns"]):
            known = (self.trained or {}).get(name) or counted.get(name, {})
            values = tuple(known)
            numbers = [parse_number(value) for value in values]
            numeric = template[name].kind == "number" or (bool(values) and None not in numbers)
            columns.append(
                KnownColumn(
                    name,
                    template.role(name),
                    template[name].unit,
                    values,
                    numeric,
                    counted.get(name, {}),
                )
            )
        return columns

    def case(self, name: str) -> Case:
        """Return a case by its name.

        Raises:
            UserError: There is none.
        """
        if name in self._masks:
            return self._masks[name]
        if any(case.id == name for case in self.plan.cohort.cases):
            return self.plan.cohort[name]
        if not name:
            raise UserError("Choose a case, or drop a mask.")
        raise UserError(
            f"There is no case {name[:80]!r}. Choose another one, or drop its mask again."
        )

    def add_mask(self, path: Path) -> str:
        """Take a mask file as a case without a row; return its name.

        Raises:
            UserError: The file is not a mask with the labels of the run.
        """
        if not has_suffix(path.name):
            raise UserError(f"{path.name} is not a volume. Drop a .nii.gz, .nii, .mha or .nrrd.")
        facts = mask_facts(path)
        if problems := mask_problems(path, facts, self.plan.data.max_labels):
            raise UserError(problems[0])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        kept = self.folder / "masks" / digest / safe_name(path.name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept)
        labels = [int(label) for label in facts["labels"]]
        body = BodyLabel.from_options(self.run.options.data, self.run.folder)
        row = dict.fromkeys(self.run.state["columns"], NOT_KNOWN)
        case = Case(kept.name, None, kept, row, body)
        check_labels_known(labels, self.run.labels, [kept])
        known = {other.id for other in self.plan.cohort.cases}
        if kept.name in known or self._masks.get(kept.name, case).mask != kept:
            case = replace(case, id=f"{digest}_{kept.name}")
        self._masks[case.id] = case
        return case.id

    def open_case(self, name: str) -> OpenCase:
        """Read a case; the last ones are kept."""
        if name not in self._open:
            sample = run_samples(self.run, [self.case(name)], self.plan.data)[0]
            regions = regions_of(sample.labels, sample.spacing, self.plan.data)
            self._open[name] = OpenCase(sample, regions)
            while len(self._open) > KEPT_SAMPLES:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def row(self, name: str) -> dict[str, str]:
        """Return the known values of a case as the text shows them, by column."""
        row = self._raw_row(self.case(name))
        return {column: self.plan.template.format_value(row, column) for column in self.columns}

    def written_text(self, name: str) -> str:
        """Return the text of a case in prompts.csv; "" where its row is its text."""
        prompt = self.plan.prompts.get(name, Prompt())
        return prompt.sentence if any(phrase.column is None for phrase in prompt) else ""

    def _raw_row(self, case: Case) -> dict[str, str]:
        columns = self.run.state["columns"]
        return self.plan.template.consistent({c: case.row.get(c, "") for c in columns}).row

    def texts(self, question: Question) -> AskedText:
        """Return the prompts of a question.

        Raises:
            UserError: A column is unknown, a value is not a number where one is needed, or a text
                is too long.
        """
        for text in (question.text_a, question.text_b):
            if len(text) > MAX_TEXT:
                raise UserError(f"A free text may have {MAX_TEXT} characters; this is longer.")
        template = self.plan.template
        factual = self._raw_row(self.case(question.case))
        removed: list[Notice] = []
        factual = self._changed(factual, question.factual, "A", removed)
        changed = self._changed(factual, question.changed, "B", removed)
        columns = {}
        for column in question.changed:
            pair = (
                template.format_value(factual, column),
                template.format_value(changed, column),
            )
            if pair[0] != pair[1]:
                columns[column] = pair
        a = template.phrases(factual)
        b = template.phrases(changed)
        if question.text_a.strip():
            a = Prompt.from_free_text(question.text_a)
            b = self._edit_text(a, question.changed)
            columns = {column: ("as in the text", pair[1]) for column, pair in columns.items()}
            removed = []
        if question.text_b.strip():
            b = Prompt.from_free_text(question.text_b)
            columns = {}
        return AskedText(a, b, columns, tuple(removed))

    def _changed(
        self, row: dict[str, str], values: Mapping[str, str], name: str, removed: list[Notice]
    ) -> dict[str, str]:
        """Return a row with these values; what they remove is added to `removed`."""
        for column, value in values.items():
            if column not in self.columns:
                raise UserError(
                    f"The run knows no column {column[:80]!r}; it has: "
                    f"{format_list(list(self.columns), MAX_LISTED)}."
                )
            changed = self.plan.template.change(row, column, value)
            row = changed.row
            if changed.dropped:
                text = describe_removed(f"{name}: {column} = {value}", changed.dropped)
                removed.append(Notice(text, "phrases dropped", column, value))
        return row

    def _edit_text(self, text: Prompt, values: Mapping[str, str]) -> Prompt:
        """Return a free text with other values of these columns.

        Raises:
            UserError: The text does not state a column.
        """
        for column, value in values.items():
            changed = self.reader.change(text, column, value)
            if changed is None:
                raise UserError(
                    f"The free text of A does not state {column} in words that are understood, so "
                    "that it cannot be changed there. Write the whole text of B."
                )
            text = changed.prompt
        return text

    def warn_of_values(self, question: Question, texts: AskedText) -> None:
        """Log what the training data do not support of a question's values."""
        values: dict[str, list[str]] = {}
        for part in (question.factual, question.changed):
            for column, value in part.items():
                if value:
                    values.setdefault(column, []).append(value)
        empty = dict.fromkeys(self.run.state["columns"], NOT_KNOWN)
        rows = [{**empty, **case.row} for case in self.plan.cohort.cases] or [empty]
        for column, asked in values.items():
            intervention = Intervention(column, tuple(dict.fromkeys(asked)))
            check_intervention("The form", intervention, self.plan.template, rows, self.trained)
        prompts = [prompt.annotated for prompt in self.plan.prompts.values()]
        prompts += [texts.a.annotated, texts.b.annotated]
        warn_low_relevance(self.run.generator.encoder, prompts, list(texts.columns))

    def question_plan(self, question: Question, on_tile: OnTile) -> GenerationPlan:
        """Return the plan with the noise of a question and its progress."""
        generator = self.run.generator
        generator = replace(
            generator, seed=question.seed, window=replace(generator.window, on_tile=on_tile)
        )
        options = self.plan.options
        options = replace(options, arms=replace(options.arms, seed=question.seed))
        return replace(self.plan, run=replace(self.run, generator=generator), options=options)


def _plan_without_cases(options: TestOptions, run: LoadedRun) -> GenerationPlan:
    data = run.options.data.for_other_cohort("")
    columns = tuple(run.state["columns"])
    template = load_template(data.template, columns, data.key_column, data.patient_column)
    cohort = Cohort(Path(), (), {}, run.labels, columns)
    return GenerationPlan(
        run,
        options,
        data,
        cohort,
        cases=(),
        template=template,
        prompts={},
        settings=(),
        interventions=(),
        edits=(),
        editor=None,
    )

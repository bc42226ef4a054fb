"""What each attribute changes: its sentences, its warnings, and why it may show nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dominate import tags

from util.metrics.contrast_summary import ContrastSummary
from util.notices import Notice
from util.phrasing import LOW_RELEVANCE
from util.web import page_parts

MAX_LISTED = 8  # values whose patients are listed one by one
INTERVALS = (
    "In brackets: 95 % interval of the mean over patients, for this one trained network. It does "
    "not hold what another training, or other training patients, would change; the atlas and "
    "refits measure that. “Another noise” is the difference between the effects of two noises."
)


@dataclass(frozen=True)
class AttributeFacts:
    """What decides whether a run can show an attribute.

    Attributes:
        column: The attribute.
        relevance: How far the training scans determine its effect, 0 to 1; None where that was not
            estimated.
        patients: Training patients by value; empty where the run did not record them.
        detectable: Smallest difference in HU that the training patients of two values can show (80
            % power), by "A|B"; absent where it is not known.
        region: Where text may change a volume.
    """

    column: str
    relevance: float | None = None
    patients: Mapping[str, int] = field(default_factory=dict)
    detectable: Mapping[tuple[str, str], float] = field(default_factory=dict)
    region: str = ""

    def reasons(self, contrasts: Sequence[ContrastSummary]) -> list[str]:
        """Return the figures that decide what these contrasts of the attribute can show."""
        texts = []
        if self.patients:
            texts.append(f"Training patients by value: {_counts(self.patients)}.")
            if len(self.patients) == 1:
                texts.append("All training patients have the same value: nothing can be learnt.")
            for value in dict.fromkeys(v for c in contrasts for v in (c.start, c.end)):
                if value not in self.patients and len(self.patients) <= MAX_LISTED:
                    texts.append(f"No training patient has {value}.")
        else:
            texts.append("The run did not record its training patients by value.")
        for contrast in contrasts:
            smallest = self.detectable.get((contrast.start, contrast.end))
            if smallest is not None:
                texts.append(
                    f"{contrast.end} against {contrast.start}: {smallest:.1f} HU is the smallest "
                    "difference in mean lung density that these patients can show (80 % power, "
                    f"two-sided 5 %); the volumes differ by {contrast.mean:+.1f} HU."
                )
        texts.append(self._relevance_text())
        return [*texts, self.region] if self.region else texts

    def _relevance_text(self) -> str:
        if self.relevance is None:
            return "Relevance of the attribute for the training scans: not estimated in this run."
        judged = "too low to show" if self.relevance < LOW_RELEVANCE else "enough to show"
        return (
            f"Relevance of the attribute for the training scans: {self.relevance:.2f} of 1 "
            f"({judged} an effect; below {LOW_RELEVANCE:g} its phrases have nearly no weight)."
        )


def _counts(patients: Mapping[str, int]) -> str:
    if len(patients) <= MAX_LISTED:
        return ", ".join(f"{value} {count}" for value, count in patients.items())
    values = list(patients)
    return f"{sum(patients.values())} with {len(values)} values, {values[0]} to {values[-1]}"


def attribute_list(
    contrasts: Sequence[ContrastSummary],
    notices: Sequence[Notice],
    facts: Mapping[str, AttributeFacts],
) -> None:
    """Add a card with every attribute: sentences, warnings, and why it may show nothing.

    Args:
        notices: All warnings; those of an attribute are shown with it.
        facts: What decides whether it shows, by attribute.
    """
    columns = dict.fromkeys(
        [c.column for c in contrasts] + list(facts) + [n.column for n in notices if n.column]
    )
    if not columns:
        return
    with page_parts.card("What each attribute changes", id="attributes"):
        with tags.ul(cls="attributes"):
            for column in columns:
                mine = [contrast for contrast in contrasts if contrast.column == column]
                warned = [notice for notice in notices if notice.column == column]
                with tags.li():
                    _attribute(column, mine, warned)
                    if column in facts:
                        with page_parts.fold("Why does it show nothing?"):
                            page_parts.bullet_list(
                                [page_parts.typeset(t) for t in facts[column].reasons(mine)]
                            )
        if contrasts:
            page_parts.note(INTERVALS)


def _attribute(
    column: str, contrasts: Sequence[ContrastSummary], notices: Sequence[Notice]
) -> None:
    tags.strong(f"{column} ")
    page_parts.badges([notice.badge for notice in notices if notice.badge])
    for contrast in contrasts:
        tags.div(page_parts.typeset(contrast.sentence()))
    page_parts.bullet_list([notice.text for notice in notices], "cautions warnings")

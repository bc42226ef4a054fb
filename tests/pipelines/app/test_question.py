"""A question as a link, and what a link may not hold."""

from __future__ import annotations

import pytest

from pipelines.app.question import MAX_TEXT, Question
from util.cli import UserError

ASKED = Question(
    "case 7 & more",
    {"AGE": "64", "SEX": ""},
    {"SMOKING HISTORY": "Never smoker", "a.b": "c=d&e"},
    "Patient age: 60. ä",
    "",
    12,
)


def test_a_link_reproduces_the_question() -> None:
    assert Question.from_query(ASKED.query) == ASKED
    assert Question.from_query("") == Question("")


def test_questions_have_names_of_their_own() -> None:
    again = Question.from_query(ASKED.query)
    assert again.key == ASKED.key
    other = Question(ASKED.case, ASKED.factual, ASKED.changed, ASKED.text_a, "", 13)
    assert other.key != ASKED.key


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("case=a&cases=b", "'cases'"),
        ("case=a&seed=-1", "'-1'"),
        ("case=a&seed=1e99", "'1e99'"),
        ("case=a&seed=1.5", "'1.5'"),
        ("case=" + "a" * MAX_TEXT, "longer"),
    ],
)
def test_other_links_are_refused(query: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        Question.from_query(query)

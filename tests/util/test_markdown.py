"""Text of users in Markdown is shown as it is."""

from __future__ import annotations

from util.markdown import code, escape_text

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[link](http://a)",
    "![x](http://a/b.png)",
    "a | b",
    "**bold** _it_ `code`",
    "# title",
    "line\nbreak\n\n- list",
    "&lt;",
    "\u202eabc",
    "~~gone~~ $x$ @name",
    "- item",
    "+ item",
    ":smile: and http://a",
)


def test_no_character_of_a_text_is_markup() -> None:
    for text in HOSTILE:
        escaped = escape_text(text)
        assert not set("<>[]|`*_\n\\~$@") & set(escaped), escaped
        assert escaped[0] not in "#+-" and "://" not in escaped and ":smile:" not in escaped
        assert escaped.replace("&#", "").count("&") == 0 and "\u202e" not in escaped
    assert escape_text("Ex smoker, 12.5 pack years") == "Ex smoker, 12.5 pack years"
    for text in ("CTD-ILD", "Gender: Female", "Give --paraphrases (see README)."):
        assert escape_text(text) == text  # legible where the file is read as it is


def test_code_keeps_its_text_inside() -> None:
    assert code("tiny") == "`tiny`"
    assert code("a`b``c") == "``` a`b``c ```"
    assert "\n" not in code("a\n\n# b")

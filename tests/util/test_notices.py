"""Warnings that pages repeat."""

from __future__ import annotations

from util.notices import collected_warnings, no_phrase_warnings, not_yet_warned


def test_a_phrase_is_named_once_and_never_for_what_is_only_measured() -> None:
    with collected_warnings():
        with no_phrase_warnings():
            assert not_yet_warned(["a"]) == []
        assert not_yet_warned(["a", "b"]) == ["a", "b"]
        assert not_yet_warned(["b", "c"]) == ["c"]
    assert not_yet_warned(["a"]) == ["a"]

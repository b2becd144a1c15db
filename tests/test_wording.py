"""Words, stems and keys: which spellings are the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentguard.normalize import normalize
from latentguard.wording import derivation_stem, inflection_stem, text_key, word_spans, words


@pytest.mark.parametrize(
    "inflections",
    [
        ("bully", "bullies", "bullied", "bullying"),
        ("stab", "stabs", "stabbed", "stabbing"),
        ("behead", "beheading", "beheadings"),
        ("thing", "things"),
        ("knife", "knives"),
        ("wolf", "wolves"),
        ("life", "lives"),
        ("slave", "slaves"),
        ("glove", "gloves"),
        ("olive", "olives"),
    ],
)
def test_the_inflections_of_a_word_have_one_stem(inflections: tuple[str, ...]) -> None:
    assert len({inflection_stem(word) for word in inflections}) == 1


def test_relatives_have_one_family() -> None:
    assert derivation_stem("racist") == derivation_stem("racism")


def test_a_key_knows_no_case_and_no_punctuation() -> None:
    assert text_key("Anti-Semitism ") == text_key("antisemitism")


def test_words_are_split_at_hyphens_and_lose_a_possessive_s() -> None:
    assert words("A man's half-open door, f****d") == ["a", "man", "half", "open", "door", "f*d"]


@given(st.text())
def test_the_words_of_a_normalised_text_are_found_where_they_stand(text: str) -> None:
    normalised = normalize(text)
    located = word_spans(normalised)
    assert [word for word, _, _ in located] == words(normalised)
    assert all(words(normalised[start:end]) == [word] for word, start, end in located)


@given(st.text(alphabet="abcdefghilnorstuvwy", min_size=1, max_size=12) | st.text(max_size=12))
def test_a_stem_differs_from_its_word_in_the_last_five_letters_at_most(word: str) -> None:
    stem = inflection_stem(word)
    assert stem.startswith(word[:-5])
    assert len(word) - 5 <= len(stem) <= len(word)

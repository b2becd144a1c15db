"""Templates: what both sides of a scene share, and the mending of articles, spaces and commas."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentguard.synthesis.templates import Choices, is_prose, phrase, sentence, template_fault, tidy

VOCABULARY = {"person": ["a nurse", "a judge", "a clown"], "place": ["in a barn", "by a lake"]}


def choices(seed: int = 0) -> Choices:
    return Choices(VOCABULARY, random.Random(seed))


@given(st.integers())
def test_the_same_group_and_slot_get_the_same_on_both_sides(seed: int) -> None:
    both = choices(seed)
    unsafe = both.fill("<person> with a {red|blue|green} knife <place>")
    safe = both.fill("<person> with a {red|blue|green} spoon <place>")
    assert unsafe.replace("knife", "spoon") == safe


@given(st.integers())
def test_two_slots_of_a_name_in_one_text_differ(seed: int) -> None:
    first, second = choices(seed).fill("<person> and <person>").split(" and ")
    assert first != second


def test_an_alternative_may_be_empty_or_hold_a_slot() -> None:
    texts = {choices(seed).fill("fog {|<place>}, still") for seed in range(30)}
    assert texts == {"fog, still", "fog in a barn, still", "fog by a lake, still"}


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("a old man and an young woman", "an old man and a young woman"),
        ("a hour", "an hour"),
        ("an unicorn in an uniform", "a unicorn in a uniform"),
        ("an university, an European, an one-eyed cat", "a university, a European, a one-eyed cat"),
        ("a unidentified, a unlit, a urban", "an unidentified, an unlit, an urban"),
        ("a FBI agent with a UFO, a X-ray and a LED", "an FBI agent with a UFO, an X-ray and an LED"),
        ("a NASA badge, an US flag", "a NASA badge, a US flag"),
        ("a 8k render, an 4k render, a 18-year lease", "an 8k render, a 4k render, an 18-year lease"),
        ("A angry dog", "An angry dog"),
        ("grade A apples, from a to z", "grade A apples, from a to z"),
        ('a "open" sign', 'an "open" sign'),
        ("two  spaces ,, three, , commas,", "two spaces, three, commas"),
        ("an end . ,and", "an end. ,and"),
        (", at the start", "at the start"),
        ("The cat sat.. the dog lay.", "The cat sat. The dog lay."),
        ("wait... what", "wait... what"),
    ],
)
def test_texts_are_mended(broken: str, mended: str) -> None:
    assert tidy(broken) == mended


@given(st.text(alphabet="aAeEnN u,.;x 8-'\"", max_size=40))
def test_mending_a_mended_text_changes_nothing(text: str) -> None:
    once = tidy(text)
    assert tidy(once) == tidy(tidy(once))
    assert "  " not in once


def test_sentences_and_phrases() -> None:
    assert is_prose("The end is near.")
    assert not is_prose("a knight, oil painting")
    assert sentence("a knight,") == "A knight."
    assert phrase("A knight.") == "A knight"


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, "not a text"),
        ("  ", "not a text"),
        ("{a|b", "braces"),
        ("{a|{b|c}}", "braces"),
        ("a|b}", "braces"),
        ("{alone}", "without alternatives"),
        ("<planet>", "<planet>"),
    ],
)
def test_a_faulty_template_is_told(template: object, fault: str) -> None:
    assert fault in str(template_fault(template, VOCABULARY))


def test_a_sound_template_has_no_fault() -> None:
    assert template_fault("{a|} <person> {b|<place>}", VOCABULARY) is None

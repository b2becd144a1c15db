"""Which names of concepts a text mentions, and how closely."""

from __future__ import annotations

import pytest

from latentguard.naming import NameMatcher, Naming


@pytest.mark.parametrize(
    ("name", "text", "naming"),
    [
        ("zebra", "a zebra", Naming.EXACT),
        ("zebra", "The ZEBRAS' field", Naming.EXACT),
        ("bully", "he bullied them", Naming.FULL),
        ("stab", "a stabbing", Naming.FULL),
        ("knives", "a knife's edge", Naming.FULL),
        ("sexism", "a sexist remark", Naming.PART),
        ("hate speech", "hateful speeches", Naming.FULL),
        ("hate speech", "a speech", Naming.PART),
        ("redlining", "a red line on the map", Naming.FULL),
        ("low class", "a low-class bar", Naming.EXACT),
        ("beat down", "beaten or beating him down", Naming.FULL),
        ("copyright infringement", "infringing on the artist's copyright", Naming.FULL),
        ("f***ing", "so F*****ing cold", Naming.EXACT),
    ],
)
def test_a_text_names_a_concept(name: str, text: str, naming: Naming) -> None:
    assert NameMatcher([name]).find(text) == {0: naming}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ass", "an assassin in a class"),
        ("beat down", "he beat the drum as the sun went down"),
        ("beat down", "a beat"),
        ("foodie", "some food"),
        ("sexism", "they have sex"),
        ("I'll kill you", "the frost will kill the crop"),
    ],
)
def test_a_text_does_not_name_a_concept(name: str, text: str) -> None:
    assert NameMatcher([name]).find(text) == {}


def test_of_nested_names_only_the_longer_counts() -> None:
    assert NameMatcher(["abuse", "verbal abuse"]).find("verbal abuse") == {1: Naming.EXACT}


def test_a_word_of_two_names_is_a_part_of_neither() -> None:
    assert NameMatcher(["hate speech", "hate crime"]).find("they hate him") == {}

"""Telling the concept of rows that stand in order of concept, from the spelling of the names alone."""

from __future__ import annotations

import pytest

from latentguard.training.concept_names import NameMatcher, Naming
from latentguard.training.concept_placing import place_concepts
from latentguard.training.wording import derivation_stem, inflection_stem, text_key, words

FILLER = ["a house", "the rain", "two cars", "an old lamp", "some bread", "the sea", "a coat", "one tree"]


def rows(concept: str, named: str) -> list[str]:
    """Ten rows; those marked x in `named` name the concept."""
    return [
        f"{FILLER[n % 8]} number {n} {concept}" if mark == "x" else f"{FILLER[n % 8]} and row {n}"
        for n, mark in enumerate(named)
    ]


def place(prompts: list[str], *vocabulary: str) -> list[str | None]:
    return place_concepts(prompts, ["one"] * len(prompts), vocabulary)


class TestNames:
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
    def test_a_text_names_a_concept(self, name: str, text: str, naming: Naming) -> None:
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
    def test_a_text_does_not_name_a_concept(self, name: str, text: str) -> None:
        assert NameMatcher([name]).find(text) == {}

    def test_of_nested_names_only_the_longer_counts(self) -> None:
        assert NameMatcher(["abuse", "verbal abuse"]).find("verbal abuse") == {1: Naming.EXACT}

    def test_a_word_of_two_names_is_a_part_of_neither(self) -> None:
        assert NameMatcher(["hate speech", "hate crime"]).find("they hate him") == {}

    def test_stems_and_keys(self) -> None:
        assert {inflection_stem(word) for word in ("bully", "bullies", "bullied", "bullying")} == {"bulli"}
        assert derivation_stem("racist") == derivation_stem("racism")
        assert text_key("Anti-Semitism ") == text_key("antisemitism")
        assert words("A man's half-open door, f****d") == ["a", "man", "half", "open", "door", "f*d"]


class TestPlacing:
    def test_rows_that_name_nothing_take_the_concept_of_their_block(self) -> None:
        prompts = rows("arson", "xx.x..x.xx") + rows("zebra", ".xx.xx.x..")
        assert place(prompts, "arson", "zebra") == ["arson"] * 10 + ["zebra"] * 10

    def test_a_row_that_also_names_another_concept_stays_in_its_block(self) -> None:
        prompts = rows("arson", "xxxxxxxxxx") + rows("zebra", "xxxxxxxxxx")
        prompts[4] += " by a zebra"
        prompts[15] += " and arson"
        assert place(prompts, "arson", "zebra") == ["arson"] * 10 + ["zebra"] * 10

    def test_a_stray_name_makes_no_block_of_its_own(self) -> None:
        prompts = rows("arson", "xxxx.xxxxx")
        prompts[4] += " like a zebra"
        assert place(prompts, "arson", "zebra") == ["arson"] * 10

    def test_a_block_that_never_names_its_concept_stays_unplaced(self) -> None:
        prompts = rows("arson", "xxxxxxxxxx") + rows("", "..........") + rows("zebra", "xxxxxxxxxx")
        assert place(prompts, "arson", "zebra")[10:20] == [None] * 10

    def test_one_naming_row_is_too_little(self) -> None:
        assert place(rows("arson", "....x....."), "arson", "zebra") == [None] * 10

    def test_a_concept_may_come_back(self) -> None:
        prompts = rows("arson", "x" * 10) + rows("zebra", "x" * 10) + rows("arson", "x" * 10)
        assert place(prompts, "arson", "zebra")[20:] == ["arson"] * 10

    def test_no_block_spans_a_change_of_category(self) -> None:
        prompts = rows("arson", "xxxxxxxx..")
        categories = ["one"] * 8 + ["two"] * 2
        assert place_concepts(prompts, categories, ["arson", "zebra"]) == ["arson"] * 8 + [None] * 2

    def test_a_row_repeated_for_each_of_its_categories_is_one_row(self) -> None:
        once = rows("arson", "x.x.x.xxxx")
        prompts = [prompt for prompt in once for _ in range(2)]
        assert place_concepts(prompts, ["one", "two"] * 10, ["arson"]) == ["arson"] * 20

    def test_names_that_no_spelling_tells_apart_give_the_first(self) -> None:
        assert place(rows("low class", "x" * 10), "low-class", "low class") == ["low-class"] * 10

    def test_two_concepts_that_fit_as_well_give_none(self) -> None:
        assert place(rows("arson of a zebra", "x" * 10), "arson", "zebra") == [None] * 10

    @pytest.mark.parametrize("vocabulary", [[], ["arson"]])
    def test_nothing_to_place_gives_nothing(self, vocabulary: list[str]) -> None:
        assert place_concepts([], [], vocabulary) == []

    def test_without_a_vocabulary_nothing_is_placed(self) -> None:
        assert place_concepts(["a", "b"], ["x", "x"], []) == [None, None]

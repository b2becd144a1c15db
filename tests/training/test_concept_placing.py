"""Telling the concept of rows that stand in order of concept, from the spelling of the names alone."""

from __future__ import annotations

import pytest

from latentguard.training.concept_placing import place_concepts

FILLER = ["a house", "the rain", "two cars", "an old lamp", "some bread", "the sea", "a coat", "one tree"]


def rows(concept: str, named: str) -> list[str]:
    """Ten rows; those marked x in `named` name the concept."""
    return [
        f"{FILLER[n % 8]} number {n} {concept}" if mark == "x" else f"{FILLER[n % 8]} and row {n}"
        for n, mark in enumerate(named)
    ]


def place(prompts: list[str], *vocabulary: str) -> list[str | None]:
    return place_concepts(prompts, ["one"] * len(prompts), vocabulary)


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

"""Pairs made of captions and concept names."""

from __future__ import annotations

from latentguard.training.mentions import mention

CAPTIONS = ["A row of benches.", "Two sheep behind a fence", "A man on a tennis court."]


def test_the_concept_is_what_tells_a_pair_apart() -> None:
    for pair in mention(["knife fight"], CAPTIONS, per_concept=3, seed=0):
        assert "knife fight" in pair.unsafe
        assert pair.safe in CAPTIONS
        left = set(pair.unsafe.replace("knife fight", " ").replace(",", " ").split())
        words = set((pair.safe or "").rstrip(".").split())
        assert words <= left
        assert left - words <= {"with", "and", "in", "the", "background", "beside", "a", "picture", "of"}


def test_every_concept_gets_as_many_as_asked_for() -> None:
    pairs = mention(["a", "b"], CAPTIONS, per_concept=2, seed=0)
    assert [pair.concept for pair in pairs] == ["a", "a", "b", "b"]


def test_the_same_seed_gives_the_same_pairs_whatever_the_order_of_the_concepts() -> None:
    names = [f"concept {i}" for i in range(9)]
    forward = mention(names, CAPTIONS, per_concept=2, seed=3)
    assert forward == mention(reversed(names), CAPTIONS, per_concept=2, seed=3)
    assert forward != mention(names, CAPTIONS, per_concept=2, seed=4)


def test_without_captions_there_are_no_pairs() -> None:
    assert mention(["knife fight"], [], per_concept=3, seed=0) == []

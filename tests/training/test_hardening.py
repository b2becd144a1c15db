"""Adversarial training: pairs with other texts for their concepts, and pairs within harmless text."""

from __future__ import annotations

from pathlib import Path

import torch

from latentguard import LatentGuard
from latentguard.encoders.base import TextEncoder
from latentguard.training.attacked import attacked_figures
from latentguard.training.cache import TokenStateCache
from latentguard.training.compute import Compute
from latentguard.training.hardening import measuring_half, training_half, with_padding, with_replacements
from latentguard.training.pairs import TrainingPair
from latentguard.training.trainer import Trainer, TrainingArguments
from latentguard.wording import text_key

KEY = text_key("knife fight")
OTHERS = {KEY: ["blade brawl", "dagger duel", "sword scuffle"]}
PAIRS = [
    TrainingPair("knife fight", f"a knife fight in the {place}", f"a dance in the {place}", "violence", "test")
    for place in ("street", "house", "garden", "city")
]
HARMLESS = ["A row of benches.", "Two sheep behind a fence;", "An empty tennis court.", "A bowl of soup, steaming"]


def test_training_and_measuring_share_no_replacement() -> None:
    train, measure = training_half(OTHERS)[KEY], measuring_half(OTHERS)[KEY]
    assert sorted(train + measure) == sorted(OTHERS[KEY])
    assert train == ["blade brawl", "sword scuffle"]


def test_a_replacement_takes_the_place_of_the_name_and_nothing_else_changes() -> None:
    rewritten = with_replacements(PAIRS, {KEY: ["blade brawl"]}, per_concept=9, seed=0)
    assert sorted(pair.unsafe for pair in rewritten) == sorted(
        pair.unsafe.replace("knife fight", "blade brawl") for pair in PAIRS
    )
    assert {(pair.concept, pair.category, pair.harm) for pair in rewritten} == {("knife fight", "violence", True)}
    assert {pair.safe for pair in rewritten} == {pair.safe for pair in PAIRS}


def test_no_concept_gets_more_than_its_share_and_prompts_that_do_not_spell_it_are_passed_over() -> None:
    other = TrainingPair("knife fight", "two men with daggers", "two men with flutes", "violence", "test")
    assert len(with_replacements([other, *PAIRS], OTHERS, per_concept=2, seed=0)) == 2
    assert with_replacements([other], OTHERS, per_concept=2, seed=0) == []
    assert with_replacements(PAIRS, {}, per_concept=2, seed=0) == []


def test_both_sides_of_a_pair_get_the_same_padding() -> None:
    rewritten = with_padding(PAIRS, HARMLESS, share=1.0, seed=0)
    assert len(rewritten) == len(PAIRS)
    for pair in rewritten:
        assert pair.safe is not None
        assert pair.unsafe.replace("knife fight", "dance") == pair.safe
        assert any(text.rstrip(".;") in pair.unsafe for text in HARMLESS)
        assert len(pair.unsafe) > 30


def test_padding_takes_the_share_asked_for_and_keeps_texts_short() -> None:
    assert len(with_padding(PAIRS, HARMLESS, share=0.5, seed=0)) == 2
    assert with_padding(PAIRS, [], share=1.0, seed=0) == []
    assert with_padding(PAIRS, [f"{n} " + "word " * 80 for n in range(5)], share=1.0, seed=0) == []


def test_sexual_prompts_are_not_set_beside_children() -> None:
    pair = TrainingPair("nudity", "a nude woman on a sofa", "a woman on a sofa", "sexual", "test")
    children = ["a child with a kite", "two kids at school", "a girl with a dog", "boys in a boat"]
    assert with_padding([pair], children, share=1.0, seed=0) == []


def test_the_same_seed_gives_the_same_pairs() -> None:
    for seed in (0, 1):
        assert with_padding(PAIRS, HARMLESS, share=1.0, seed=seed) == with_padding(
            PAIRS, HARMLESS, share=1.0, seed=seed
        )
    assert with_padding(PAIRS, HARMLESS, share=1.0, seed=0) != with_padding(PAIRS, HARMLESS, share=1.0, seed=1)


def test_training_sees_rewritten_pairs_of_its_own_concepts_only(tiny_encoder: TextEncoder, tmp_path: Path) -> None:
    names = ["knife", "gun", "bomb", "blood", "sword"]
    pairs = [
        TrainingPair(name, f"a {name} in the {place}", f"a cat in the {place}", "violence", "test")
        for name in names
        for place in ("street", "house", "garden", "city", "river")
    ]
    trainer = Trainer(
        tiny_encoder,
        TokenStateCache(tmp_path / "states", tiny_encoder),
        pairs,
        [HARMLESS],
        TrainingArguments(held_out=0.2, mentions=0, replaced=2, padded=0.0, held_out_pairs=0.0),
        tmp_path / "run",
        Compute(torch.device("cpu")),
        {text_key(name): [f"{name}ish"] for name in names},
    )
    held_out = {pair.concept for pair in trainer.held_out_pairs}
    assert len(held_out) == 1
    assert len(trainer.table) == 4 * (5 + 2)


def test_attacks_on_held_out_pairs_are_measured_with_the_other_half(tiny_guard: LatentGuard) -> None:
    figures = attacked_figures(tiny_guard, PAIRS, {"synonym": OTHERS, "adversarial": {}}, seed=0)
    assert figures["as it is"]["unsafe"] == figures["synonym"]["unsafe"] == len(PAIRS)
    assert "adversarial" not in figures
    assert {"characters", "order", "padding", "halves"} <= set(figures)
    assert all(0.0 <= one["auc"] <= 1.0 for one in figures.values())


def test_pairs_that_only_show_a_concept_are_not_attacked(tiny_guard: LatentGuard) -> None:
    assert attacked_figures(tiny_guard, [TrainingPair("cat", "a cat", "a dog", None, "t", harm=False)], None, 0) == {}

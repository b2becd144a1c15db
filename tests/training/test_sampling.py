"""Which prompts make a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentguard.training.pairs import TrainingPair
from latentguard.training.sampling import PairTable, draw_batch, tabulate

PAIRS = [
    TrainingPair("knife", "u0", "s0", None, "t"),
    TrainingPair("gun", "u1", None, None, "t"),
    TrainingPair("knife", "u2", "s2", None, "t"),
    TrainingPair("bomb", "u3", "s3", None, "t"),
]
PLACES = {text: place for place, text in enumerate(["u0", "s0", "u1", "u2", "s2", "u3", "s3"])}
NEGATIVES = np.arange(100, 120)


@pytest.fixture
def table() -> PairTable:
    return tabulate(PAIRS, PLACES)


def of(table: PairTable, concept: int) -> set[int]:
    return set(table.unsafe[table.starts[concept] : table.starts[concept + 1]].tolist())


def test_a_table_keeps_each_concepts_prompts_together(table: PairTable) -> None:
    assert {name: of(table, i) for i, name in enumerate(table.concepts)} == {"bomb": {5}, "gun": {2}, "knife": {0, 3}}


def test_a_missing_twin_is_marked(table: PairTable) -> None:
    assert dict(zip(table.unsafe.tolist(), table.safe.tolist(), strict=True)) == {5: 6, 2: -1, 0: 1, 3: 4}


@given(seed=st.integers(0, 2**31), step=st.integers(0, 10**6))
def test_a_batch_pairs_different_concepts_with_prompts_of_their_own(seed: int, step: int) -> None:
    table = tabulate(PAIRS, PLACES)
    batch = draw_batch(table, [NEGATIVES], concepts=2, harmless=3, seed=seed, step=step)
    assert len(set(batch.concepts.tolist())) == 2
    assert all(prompt in of(table, concept) for concept, prompt in zip(batch.concepts, batch.unsafe, strict=True))


def test_a_batch_is_a_function_of_seed_and_step(table: PairTable) -> None:
    def drawn(step: int) -> list[list[int]]:
        batch = draw_batch(table, [NEGATIVES], concepts=3, harmless=4, seed=1, step=step)
        return [batch.concepts.tolist(), batch.prompts.tolist()]

    assert drawn(5) == drawn(5)
    assert any(drawn(step) != drawn(5) for step in range(6, 10))


def test_twins_are_those_of_the_prompts_drawn_and_say_so(table: PairTable) -> None:
    twin = {0: 1, 3: 4, 5: 6}
    for step in range(20):
        batch = draw_batch(table, [NEGATIVES], concepts=3, harmless=4, seed=0, step=step)
        assert batch.twins.tolist() == [twin[int(batch.unsafe[row])] for row in batch.twin_of]
        assert set(batch.unsafe.tolist()) - {int(batch.unsafe[row]) for row in batch.twin_of} == {2}


def test_as_many_further_negatives_as_asked_for(table: PairTable) -> None:
    batch = draw_batch(table, [NEGATIVES], concepts=3, harmless=4, seed=0, step=0)
    assert len(set(batch.negatives.tolist())) == 4
    assert set(batch.negatives.tolist()) <= set(NEGATIVES.tolist())


def test_prompts_are_unsafe_then_twins_then_negatives(table: PairTable) -> None:
    batch = draw_batch(table, [NEGATIVES], concepts=3, harmless=4, seed=0, step=0)
    assert batch.prompts.tolist() == [*batch.unsafe, *batch.twins, *batch.negatives]


def test_more_concepts_than_there_are_gives_all_of_them(table: PairTable) -> None:
    batch = draw_batch(table, [NEGATIVES[:0]], concepts=64, harmless=8, seed=0, step=0)
    assert sorted(batch.concepts.tolist()) == [0, 1, 2]


def test_a_concepts_prompts_are_drawn_about_evenly(table: PairTable) -> None:
    knife = table.concepts.index("knife")
    drawn = []
    for step in range(400):
        batch = draw_batch(table, [NEGATIVES], concepts=3, harmless=0, seed=0, step=step)
        drawn.append(int(batch.unsafe[batch.concepts.tolist().index(knife)]))
    assert 150 < drawn.count(0) < 250


def test_a_small_group_of_negatives_is_drawn_more_often_than_its_size(table: PairTable) -> None:
    large, small = np.arange(1000, 1400), np.arange(2000, 2004)
    drawn = np.concatenate(
        [draw_batch(table, [large, small], concepts=1, harmless=20, seed=0, step=step).negatives for step in range(200)]
    )
    # By the square roots of the sizes: 20 to 2, so about a tenth, against a hundredth by size.
    assert 0.05 < (drawn >= 2000).mean() < 0.12

"""The mapping layer: the fast score and the plain formula are one, and nothing but a prompt's own tokens matters."""

from __future__ import annotations

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentguard.encoders.base import Pooling, TokenStates
from latentguard.mapping import ConceptQueries, MappingLayer, MappingShape, with_pooled

SHAPE = MappingShape(width=24, heads=4, head_width=8, output=16)


def layer(shape: MappingShape = SHAPE, seed: int = 0) -> MappingLayer:
    torch.manual_seed(seed)
    return MappingLayer(shape).eval()


def states(lengths: list[int], width: int = SHAPE.width, *, longest: int | None = None, seed: int = 1) -> TokenStates:
    """Random states of prompts of these many tokens; what stands at padding is random as well."""
    generator = torch.Generator().manual_seed(seed)
    size = longest or max(lengths)
    hidden = torch.randn(len(lengths), size, width, generator=generator)
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    return TokenStates(hidden, mask, torch.randn(len(lengths), width, generator=generator))


def concepts(count: int, width: int = SHAPE.width, seed: int = 2) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@given(
    heads=st.integers(1, 5),
    head_width=st.integers(1, 9),
    output=st.integers(4, 12),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    count=st.integers(1, 7),
    seed=st.integers(0, 2**32),
)
def test_the_fast_score_is_the_plain_formula(
    heads: int, head_width: int, output: int, lengths: list[int], count: int, seed: int
) -> None:
    mapping = layer(MappingShape(SHAPE.width, heads, head_width, output), seed)
    z, mask = with_pooled(states(lengths, seed=seed))
    embeddings = concepts(count, seed=seed + 1)
    with torch.no_grad():
        plain = mapping(embeddings, z, mask)
    queries = mapping.queries(embeddings)
    torch.testing.assert_close(mapping.score(queries, z, mask), plain, atol=1e-4, rtol=0)
    # What an accelerator does: the whole batch at once, padding included.
    with torch.inference_mode():
        torch.testing.assert_close(mapping._score_chunk(queries, z, mask), plain, atol=1e-4, rtol=0)


def test_a_bank_larger_than_what_is_compared_at_a_time_is_scored_whole() -> None:
    mapping, embeddings = layer(), concepts(1_600)
    z, mask = with_pooled(states([3, 8]))
    with torch.no_grad():
        plain = mapping(embeddings, z, mask)
    torch.testing.assert_close(mapping.score(mapping.queries(embeddings), z, mask), plain, atol=1e-4, rtol=0)


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 1000))
def test_any_position_can_be_left_out(mask: list[bool], seed: int) -> None:
    mapping = layer()
    whole = states([6], seed=seed)
    holes = TokenStates(whole.hidden, torch.tensor([mask]), whole.pooled)
    kept = TokenStates(whole.hidden[:, mask], torch.ones(1, sum(mask), dtype=torch.bool), whole.pooled)
    queries = mapping.queries(concepts(5))
    torch.testing.assert_close(
        mapping.score(queries, *with_pooled(holes)), mapping.score(queries, *with_pooled(kept)), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_logits_too_large_for_a_bare_exponential_are_taken_care_of(scale: float) -> None:
    mapping, embeddings = layer(), concepts(5)
    z, mask = with_pooled(states([3, 8]))
    z = z * scale
    queries = mapping.queries(embeddings)
    with torch.no_grad():
        keys = mapping.to_key(z).unflatten(-1, (SHAPE.heads, SHAPE.head_width))
        assert torch.einsum("hdn,blhd->bhln", queries.query, keys).amax() > 88  # the largest float32 is e^88
        plain = mapping(embeddings, z, mask)
    torch.testing.assert_close(mapping.score(queries, z, mask), plain, atol=1e-3, rtol=0)


@pytest.mark.parametrize("padding", [1.0, 1e30, math.inf, math.nan])
def test_what_an_encoder_computes_at_padding_never_matters(padding: float) -> None:
    mapping = layer()
    alone = states([5])
    hidden = torch.cat([alone.hidden, torch.full((1, 3, SHAPE.width), padding)], dim=1)
    padded = TokenStates(hidden, torch.arange(8)[None] < 5, alone.pooled)
    queries = mapping.queries(concepts(5))
    expected = mapping.score(queries, *with_pooled(alone))
    assert torch.equal(mapping.score(queries, *with_pooled(padded)), expected)
    with torch.inference_mode():
        torch.testing.assert_close(mapping._score_chunk(queries, *with_pooled(padded)), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(mapping(concepts(5), *with_pooled(padded)), expected, atol=1e-4, rtol=0)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.integers(0, 1000))
def test_a_prompts_score_does_not_depend_on_the_batch_by_a_single_bit(lengths: list[int], seed: int) -> None:
    mapping = layer()
    queries = mapping.queries(concepts(9))
    z, mask = with_pooled(states(lengths, seed=seed))
    together = mapping.score(queries, z, mask)
    one_by_one = [
        mapping.score(queries, z[i : i + 1, : 1 + n], mask[i : i + 1, : 1 + n]) for i, n in enumerate(lengths)
    ]
    assert torch.equal(together, torch.cat(one_by_one))


def test_a_score_is_at_most_the_temperature() -> None:
    mapping = layer()
    scores = mapping.score(mapping.queries(concepts(50)), *with_pooled(states([4] * 20)))
    assert scores.abs().max() <= mapping.temperature.item() * (1 + 1e-5)


def test_no_concepts_give_no_scores() -> None:
    mapping = layer()
    assert mapping.score(mapping.queries(concepts(0)), *with_pooled(states([4, 2]))).shape == (2, 0)


@pytest.mark.parametrize("pooling", ["mean", "cls", "eos"])
@pytest.mark.parametrize("length", [1, 2, 11])
def test_what_the_positions_added_sums_to_the_score(pooling: Pooling, length: int) -> None:
    mapping, queries = layer(), layer().queries(concepts(1))
    shares = torch.zeros(length)
    if pooling == "mean":
        shares += 1 / length
    else:
        shares[0 if pooling == "cls" else -1] = 1
    hidden = states([length]).hidden
    z, mask = with_pooled(TokenStates(hidden, torch.ones(1, length, dtype=torch.bool), shares @ hidden))
    parts = mapping.attribute(queries, z[0], mask[0], shares)
    assert parts.positions.shape == (length,)
    assert float(parts.positions.sum()) + parts.bias == pytest.approx(float(mapping.score(queries, z, mask)), abs=1e-4)


def test_padding_adds_nothing_to_a_score() -> None:
    mapping = layer()
    shares = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0, 0])
    made = states([3], longest=5)
    z, mask = with_pooled(TokenStates(made.hidden, made.mask, shares @ (made.hidden * made.mask[..., None])))
    parts = mapping.attribute(mapping.queries(concepts(1)), z[0], mask[0], shares)
    assert parts.positions[3:].tolist() == [0, 0]


def test_concepts_joined_and_taken_apart_again_are_the_same_bit_for_bit() -> None:
    mapping = layer()
    first, second = mapping.queries(concepts(4)), mapping.queries(concepts(3, seed=9))
    joined = ConceptQueries.join(first, second)
    assert len(joined) == 7
    for part, rows in ((first, slice(4)), (second, torch.tensor([4, 5, 6]))):
        taken = joined.rows(rows)
        assert torch.equal(taken.query, part.query)
        assert torch.equal(taken.direction, part.direction)


def test_rows_come_in_the_order_asked_for() -> None:
    mapping = layer()
    queries = mapping.queries(concepts(4))
    z, mask = with_pooled(states([6]))
    order = torch.tensor([2, 0, 3])
    expected = mapping.score(queries, z, mask)[:, order]
    torch.testing.assert_close(mapping.score(queries.rows(order), z, mask), expected, atol=1e-5, rtol=0)


def test_threads_that_score_at_once_do_not_disturb_each_other() -> None:
    mapping = layer()
    queries = mapping.queries(concepts(200))
    prompts = [with_pooled(states([length], seed=length)) for length in range(3, 27)]
    expected = [mapping.score(queries, *prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda prompt: mapping.score(queries, *prompt), prompts))
            assert all(map(torch.equal, found, expected))


def test_other_weights_loaded_after_scoring_count_at_once() -> None:
    mapping, other = layer(), layer(seed=5)
    z, mask = with_pooled(states([6]))
    mapping.score(mapping.queries(concepts(3)), z, mask)
    mapping.load_state_dict(other.state_dict())
    found = mapping.score(mapping.queries(concepts(3)), z, mask)
    assert torch.equal(found, other.score(other.queries(concepts(3)), z, mask))


def test_training_after_scoring_counts_in_the_next_score() -> None:
    mapping = layer()
    z, mask = with_pooled(states([6]))
    mapping.score(mapping.queries(concepts(3)), z, mask)
    mapping.train()
    torch.optim.SGD(mapping.parameters(), lr=1.0).zero_grad()
    mapping(concepts(3), z, mask).sum().backward()
    torch.optim.SGD(mapping.parameters(), lr=0.01).step()
    mapping.eval()
    with torch.no_grad():
        plain = mapping(concepts(3), z, mask)
    torch.testing.assert_close(mapping.score(mapping.queries(concepts(3)), z, mask), plain, atol=1e-4, rtol=0)


def test_a_copy_of_a_layer_that_has_scored_scores_the_same() -> None:
    mapping = layer()
    z, mask = with_pooled(states([6]))
    expected = mapping.score(mapping.queries(concepts(3)), z, mask)
    twin = copy.deepcopy(mapping)
    assert torch.equal(twin.score(twin.queries(concepts(3)), z, mask), expected)


def test_every_parameter_takes_part_in_training() -> None:
    mapping = layer().train()
    mapping(concepts(3), *with_pooled(states([6, 2]))).square().sum().backward()
    without = [name for name, parameter in mapping.named_parameters() if parameter.grad is None]
    assert without == []

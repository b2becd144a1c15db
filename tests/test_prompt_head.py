"""The prompt head: its answer is a sum over a prompt's own positions, and it learns harm from harmlessness."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import random_prompt_head

from latentguard.prompt_head import any_category
from latentguard.training.losses import SOME_CATEGORY, UNLABELLED, prompt_loss

WIDTH = 24


def states(lengths: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    z = torch.randn(*mask.shape, WIDTH, generator=torch.Generator().manual_seed(seed))
    return z.masked_fill(~mask[..., None], 0), mask


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 2**32))
def test_a_prompt_is_judged_alike_alone_and_in_a_batch(lengths: list[int], seed: int) -> None:
    head = random_prompt_head(WIDTH)
    z, mask = states(lengths, seed)
    alone = [head(z[i : i + 1, :length], mask[i : i + 1, :length]) for i, length in enumerate(lengths)]
    torch.testing.assert_close(head(z, mask), torch.cat(alone), atol=1e-5, rtol=1e-5)


@given(length=st.integers(2, 9), seed=st.integers(0, 2**32), category=st.integers(0, 2))
def test_the_positions_and_the_bias_sum_to_the_log_odds(length: int, seed: int, category: int) -> None:
    head = random_prompt_head(WIDTH)
    z, mask = states([length], seed)
    pooling = torch.full((length - 1,), 1 / (length - 1))
    attribution = head.attribute(z[0], mask[0], pooling, category)
    total = float(attribution.positions.sum()) + attribution.bias
    assert total == pytest.approx(float(head(z, mask)[0, category]), abs=1e-4)


def test_the_odds_of_any_category_are_the_sum_of_their_odds() -> None:
    log_odds = torch.tensor([[0.3, -2.0, 1.5]])
    torch.testing.assert_close(any_category(log_odds).exp(), log_odds.exp().sum(dim=1))


def test_the_loss_wants_each_prompt_in_its_class() -> None:
    labels = torch.tensor([0, 1, 2, SOME_CATEGORY])  # of two categories, 2 is harmless
    right = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [-9.0, -9.0], [9.0, 5.0]])
    assert float(prompt_loss(right, labels)) < 0.01
    for row in range(4):
        wrong = right.clone()
        wrong[row] = -right[row] - (18 if row == 3 else 0)
        assert float(prompt_loss(wrong, labels)) > 1


def test_unlabelled_prompts_have_no_part_in_the_loss() -> None:
    log_odds = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, UNLABELLED])
    changed = log_odds.clone()
    changed[2] += 100
    torch.testing.assert_close(prompt_loss(log_odds, labels), prompt_loss(changed, labels))


def test_one_sided_batches_have_a_loss() -> None:
    log_odds = torch.zeros(2, 3)
    for label in (0, 3, UNLABELLED):
        assert torch.isfinite(prompt_loss(log_odds, torch.tensor([label, label])))

"""The contrastive loss: which scores it rewards."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from latentguard.training.losses import two_way_contrastive

CONCEPTS, TWINS, OTHERS = 3, 2, 2
PROMPTS = CONCEPTS + TWINS + OTHERS
TWIN_OF = torch.tensor([0, 2])
NOTHING = torch.zeros(PROMPTS, CONCEPTS, dtype=torch.bool)


def scores(own: float, other: float, harmless: float) -> torch.Tensor:
    """Scores of three unsafe prompts and four harmless ones against three concepts."""
    unsafe = torch.full((CONCEPTS, CONCEPTS), float(other))
    unsafe.fill_diagonal_(own)
    return torch.cat([unsafe, torch.full((TWINS + OTHERS, CONCEPTS), float(harmless))])


def loss_of(given: torch.Tensor, ignored: torch.Tensor = NOTHING) -> float:
    return float(two_way_contrastive(given, twin_of=TWIN_OF, ignored=ignored))


def loss(own: float, other: float, harmless: float) -> float:
    return loss_of(scores(own, other, harmless))


def test_a_prompt_nearer_to_its_own_concept_costs_less() -> None:
    assert loss(9, 1, -5) < loss(5, 1, -5)


def test_a_prompt_near_another_concept_costs_more() -> None:
    assert loss(9, 4, -5) > loss(9, 1, -5)


def test_a_harmless_prompt_near_a_concept_costs_more() -> None:
    assert loss(9, 1, 5) > loss(9, 1, -5)


def test_perfect_scores_cost_next_to_nothing() -> None:
    assert loss(30, -30, -30) == pytest.approx(0, abs=1e-6)


def test_a_twin_that_comes_near_its_own_prompt_costs_more_than_one_near_another() -> None:
    own, other = scores(9, 1, -5), scores(9, 1, -5)
    own[CONCEPTS, 0] = 8  # the twin of concept 0
    other[CONCEPTS, 1] = 8
    assert loss_of(own) > loss_of(other)


def test_an_ignored_prompt_is_no_negative_of_that_concept() -> None:
    near = scores(9, 1, -5)
    near[-1, 1] = 9
    ignored = NOTHING.clone()
    ignored[-1, 1] = True
    assert loss_of(near, ignored=ignored) < loss_of(scores(9, 1, -5)) + 1e-6 < loss_of(near)


def test_it_is_the_sum_of_the_papers_two_cross_entropies_and_the_margins() -> None:
    torch.manual_seed(0)
    given = torch.randn(PROMPTS, CONCEPTS)
    from_concepts = sum(-given[c, c] + torch.logsumexp(given[:, c], 0) for c in range(CONCEPTS)) / CONCEPTS
    from_prompts = sum(-given[c, c] + torch.logsumexp(given[c], 0) for c in range(CONCEPTS)) / CONCEPTS
    margins = (F.softplus(1 + given[3, 0] - given[0, 0]) + F.softplus(1 + given[4, 2] - given[2, 2])) / 2
    assert loss_of(given) == pytest.approx(float(from_concepts + from_prompts + margins), rel=1e-5)


def test_a_batch_without_harmless_prompts_has_a_finite_loss() -> None:
    none = torch.empty(0, dtype=torch.long)
    given = scores(2, 1, 0)[:CONCEPTS]
    assert torch.isfinite(two_way_contrastive(given, twin_of=none, ignored=NOTHING[:CONCEPTS]))

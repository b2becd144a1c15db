"""The contrastive loss: which scores it rewards."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from latentguard.training.losses import two_way_contrastive

CONCEPTS, HARMLESS = 3, 2


def scores(own: float, other: float, harmless: float) -> torch.Tensor:
    """Scores of three unsafe prompts and two harmless ones against three concepts."""
    unsafe = torch.full((CONCEPTS, CONCEPTS), float(other))
    unsafe.fill_diagonal_(own)
    return torch.cat([unsafe, torch.full((HARMLESS, CONCEPTS), float(harmless))])


def loss(own: float, other: float, harmless: float, rejection: float = 0.0) -> float:
    return float(two_way_contrastive(scores(own, other, harmless), torch.tensor(rejection)))


def test_a_prompt_nearer_to_its_own_concept_costs_less() -> None:
    assert loss(9, 1, -5) < loss(5, 1, -5)


def test_a_prompt_near_another_concept_costs_more() -> None:
    assert loss(9, 4, -5) > loss(9, 1, -5)


def test_a_harmless_prompt_near_a_concept_costs_more() -> None:
    assert loss(9, 1, 5) > loss(9, 1, -5)


def test_the_same_shift_of_all_scores_costs_since_rejection_stays() -> None:
    assert loss(1, -7, -13) > loss(9, 1, -5)


def test_perfect_scores_cost_next_to_nothing() -> None:
    assert loss(30, -30, -30) == pytest.approx(0, abs=1e-6)


def test_it_is_the_sum_of_the_cross_entropies_of_the_paper_and_of_rejection() -> None:
    torch.manual_seed(0)
    given, rejection = torch.randn(CONCEPTS + HARMLESS, CONCEPTS), torch.tensor(0.3)
    own = torch.arange(CONCEPTS)
    from_concepts = sum(
        -given[c, c] + torch.logsumexp(given[:, c], 0) for c in range(CONCEPTS)
    ) / CONCEPTS
    with_none = torch.cat([given, rejection.expand(len(given), 1)], dim=1)
    unsafe = F.nll_loss(with_none[:CONCEPTS].log_softmax(1), own)
    harmless = -with_none[CONCEPTS:].log_softmax(1)[:, -1].mean()
    assert torch.allclose(two_way_contrastive(given, rejection), from_concepts + unsafe + harmless)


def test_a_batch_without_harmless_prompts_has_a_finite_loss() -> None:
    assert torch.isfinite(two_way_contrastive(scores(2, 1, 0)[:CONCEPTS], torch.tensor(0.0)))

"""Exposure and membership inference, on scores whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import MemorizationError
from privacy.memorization import exposure as measures
from privacy.memorization.exposure import Membership, exposure


def scores(canaries: int, candidates: int, advantage: float, seed: int = 0) -> np.ndarray:
    """Normal scores; those of the canaries themselves are higher by `advantage` standard deviations."""
    drawn = np.random.default_rng(seed).normal(size=(canaries, 1 + candidates))
    drawn[:, 0] += advantage
    return drawn


def membership(values: np.ndarray, seed: int = 0) -> Membership:
    return measures.membership(values, own_candidates(values), seed=seed)


def own_candidates(values: np.ndarray) -> np.ndarray:
    """Each canary has candidates of its own."""
    return np.arange(values[:, 1:].size).reshape(values[:, 1:].shape)


def test_rank_counts_the_candidates_that_the_model_favours_more() -> None:
    row = np.array([0.5, 0.9, 0.7, 0.1])

    found = exposure(np.tile(row, (8, 1)))

    assert found.rank.tolist() == [3.0] * 8
    assert found.exposure == pytest.approx(np.full(8, 2 - np.log2(3)))


def test_exposure_of_what_is_remembered_best_is_the_logarithm_of_the_number_of_candidates() -> None:
    found = exposure(scores(20, 31, advantage=100))

    assert found.mean.estimate == found.mean.low == 5.0
    assert found.first.estimate == 1.0


def test_equal_scores_stand_in_the_middle_of_the_ranks_and_extract_nothing() -> None:
    found = exposure(np.zeros((10, 5)))

    assert found.rank.tolist() == [3.0] * 10
    assert found.first.estimate == 0.0


def test_expected_exposure_is_that_of_ranks_by_chance() -> None:
    found = exposure(scores(4000, 15, advantage=0))

    assert found.expected == pytest.approx(found.mean.estimate, abs=0.06)
    assert found.expected_first == pytest.approx(found.first.estimate, abs=0.015)
    assert found.mean.low < found.expected < found.mean.high


def test_membership_of_what_nobody_remembers_is_a_coin_toss() -> None:
    found = membership(scores(200, 15, advantage=0))

    assert found.auc.low < 0.5 < found.auc.high
    assert found.tpr.estimate < 0.05


def test_membership_of_what_is_remembered_is_certain() -> None:
    found = membership(scores(50, 15, advantage=100))

    assert found.auc.estimate == pytest.approx(1.0)
    assert found.tpr.estimate == 1.0


def test_auc_is_that_of_the_normal_distribution() -> None:
    # Two unit normals a standard deviation apart: Phi(1 / sqrt 2).
    assert membership(scores(700, 15, advantage=1.0)).auc.estimate == pytest.approx(0.760, abs=0.025)


def test_images_of_different_difficulty_do_not_hide_what_is_remembered() -> None:
    drawn = scores(100, 15, advantage=3.0)
    uneven = drawn * np.geomspace(0.01, 100, 100)[:, None] + np.linspace(-500, 500, 100)[:, None]

    assert membership(uneven).auc.estimate == pytest.approx(membership(drawn).auc.estimate, abs=1e-6)


def test_candidates_that_canaries_share_make_the_interval_wider() -> None:
    # What a record does to the loss is the same on all images: ten unseen records, ten draws of luck.
    rng = np.random.default_rng(3)
    unseen, shared = rng.normal(size=10), np.tile(np.arange(10), (100, 1))
    values = np.column_stack([rng.normal(size=100), np.tile(unseen, (100, 1))])

    wide, narrow = measures.membership(values, shared).auc, membership(values).auc

    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_interval_covers_the_truth_with_shared_candidates_too() -> None:
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shared = np.argsort(rng.random((30, 12)), axis=1)[:, :8]
        values = np.column_stack([rng.normal(size=30), rng.normal(size=12)[shared]])
        found = measures.membership(values, shared).auc
        covered.append(found.low <= 0.5 <= found.high)

    assert np.mean(covered) >= 0.85


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.1, 10))
def test_scale_and_origin_of_the_scores_do_not_matter(seed: int, shift: float, scale: float) -> None:
    drawn = scores(8, 4, advantage=0.5, seed=seed)

    assert (exposure(drawn).rank == exposure(drawn * scale + shift).rank).all()


def test_too_few_canaries_have_no_verdict() -> None:
    with pytest.raises(MemorizationError, match="7 canaries are too few"):
        exposure(scores(7, 15, advantage=0))


def test_a_loss_that_is_no_number_is_an_error() -> None:
    broken = scores(10, 5, advantage=0)
    broken[3, 2] = np.nan

    with pytest.raises(MemorizationError, match="isn't a finite number"):
        membership(broken)


def test_one_candidate_is_too_few_to_calibrate_with() -> None:
    with pytest.raises(MemorizationError, match="two candidates"):
        membership(scores(10, 1, advantage=0))

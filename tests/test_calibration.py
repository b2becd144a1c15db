"""From scores of harmless prompts to a threshold that keeps its promise for further ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentguard import DataError, Policy
from latentguard.calibration import threshold_for

SCORES = st.floats(-20, 20, width=32)
RATES = st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.2, 0.5])


@given(st.data(), RATES)
def test_of_exchangeable_prompts_the_left_out_one_is_blocked_at_most_at_the_rate(
    data: st.DataObject, rate: float
) -> None:
    """The guarantee itself, exactly: leave each one of n + 1 scores out in turn and calibrate on the others."""
    least = math.ceil(1 / rate) - 1
    scores = data.draw(st.lists(SCORES, min_size=least + 1, max_size=least + 20))
    all_scores = np.array(scores, dtype=np.float32)
    blocked = [all_scores[i] >= threshold_for(np.delete(all_scores, i), rate) for i in range(len(scores))]
    assert sum(blocked) <= rate * len(scores) + 1e-9


@given(st.lists(SCORES, min_size=99, max_size=150))
def test_the_threshold_is_no_higher_than_it_need_be(scores: list[float]) -> None:
    """Just above a score that was seen: one step lower would block it."""
    all_scores = np.array(scores, dtype=np.float32)
    threshold = np.float32(threshold_for(all_scores, 0.01))
    below = np.nextafter(threshold, np.float32(-np.inf))
    assert (all_scores == below).any()


def test_the_rate_is_used_up_on_fresh_prompts_of_the_same_kind() -> None:
    random = np.random.default_rng(0)
    shares = [(random.normal(size=2_000) >= threshold_for(random.normal(size=1_999), 0.05)).mean() for _ in range(200)]
    assert np.mean(shares) == pytest.approx(0.05, abs=0.002)


def test_prompts_with_equal_scores_are_not_blocked() -> None:
    assert not (np.full(200, 3.5, dtype=np.float32) >= threshold_for(np.full(200, 3.5), 0.01)).any()


def test_a_score_of_double_precision_is_not_rounded_past_the_threshold() -> None:
    scores = np.array([0.1] * 99)
    assert np.float64(threshold_for(scores, 0.01)) > 0.1


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.001, 999)])
def test_too_few_prompts_for_a_rate_are_refused_with_the_number_needed(rate: float, needed: int) -> None:
    threshold_for(np.zeros(needed), rate)
    with pytest.raises(DataError, match=rf"{needed - 1} harmless prompts are too few .* give at least {needed}$"):
        threshold_for(np.zeros(needed - 1), rate)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_a_rate_outside_zero_and_one_is_refused(rate: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        threshold_for(np.zeros(1_000), rate)


@pytest.mark.parametrize("score", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(score: float) -> None:
    with pytest.raises(DataError, match="not a finite number"):
        threshold_for(np.array([1.0] * 500 + [score]), 0.01)


def test_the_threshold_serves_as_a_policy() -> None:
    threshold = threshold_for(np.linspace(0, 1, 200), 0.01)
    assert Policy(threshold).threshold == threshold

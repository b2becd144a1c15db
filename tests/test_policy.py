"""The policy: which threshold counts, and what follows from a score."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentguard import ConceptEntry, Policy, PolicyError

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("concept", "threshold"),
    [
        (ConceptEntry("a"), 4.0),
        (ConceptEntry("a", "sexual"), 4.0),
        (ConceptEntry("a", "violence"), 2.0),
        (ConceptEntry("a", "violence", 7.0), 7.0),
        (ConceptEntry("a", "hate"), math.inf),
        (ConceptEntry("a", "hate", 7.0), 7.0),
        (ConceptEntry("a", threshold=0.0), 0.0),
    ],
)
def test_a_concepts_threshold_counts_before_its_categorys_and_that_before_the_policys(
    concept: ConceptEntry, threshold: float
) -> None:
    policy = Policy(4.0, categories={"violence": 2.0, "hate": None})
    assert policy.thresholds([concept]).tolist() == [threshold]


def test_thresholds_come_in_the_order_of_the_concepts() -> None:
    thresholds = Policy(4.0).thresholds([ConceptEntry("a", threshold=1), ConceptEntry("b"), ConceptEntry("c", None, 2)])
    assert thresholds.dtype == np.float32
    assert thresholds.tolist() == [1, 4, 2]


@given(FINITE, st.floats(0, 1e6))
def test_a_margin_at_or_above_zero_blocks_and_one_below_never_does(margin: float, flag_margin: float) -> None:
    decision = Policy(0.0, flag_margin=flag_margin).decide(margin)
    assert (decision == "block") == (margin >= 0)


@pytest.mark.parametrize(("margin", "decision"), [(-1.01, "allow"), (-1.0, "flag"), (-0.01, "flag"), (0.0, "block")])
def test_a_score_within_the_flag_margin_is_flagged(margin: float, decision: str) -> None:
    assert Policy(5.0, flag_margin=1.0).decide(margin) == decision


def test_without_a_flag_margin_nothing_is_flagged() -> None:
    assert Policy(5.0).decide(-1e-9) == "allow"


def test_a_margin_that_is_no_number_blocks() -> None:
    assert Policy(5.0).decide(math.nan) == "block"


@pytest.mark.parametrize("value", ["3.5", 3, 3.5, np.float32(3.5), np.int64(3)])
def test_a_threshold_is_kept_as_a_float(value: Any) -> None:
    threshold = Policy(value).threshold
    assert type(threshold) is float
    assert threshold == float(value)


@pytest.mark.parametrize("value", ["abc", "", True, [1], math.nan, math.inf, -math.inf, "nan", "inf", 10**400])
@pytest.mark.parametrize(
    ("field", "named"),
    [("threshold", "threshold"), ("flag_margin", "flag_margin"), ("categories", "threshold of category 'hate'")],
)
def test_what_is_no_finite_number_is_refused_by_name(value: Any, field: str, named: str) -> None:
    settings: dict[str, Any] = {"threshold": 1.0, field: {"hate": value} if field == "categories" else value}
    with pytest.raises(PolicyError, match=f"^{named}: ") as caught:
        Policy(**settings)
    assert "\n" not in str(caught.value)


def test_a_policy_needs_a_threshold() -> None:
    with pytest.raises(PolicyError, match="threshold: expected a number, got NoneType"):
        Policy(None)  # type: ignore[arg-type]


def test_a_flag_margin_below_zero_is_refused() -> None:
    with pytest.raises(PolicyError, match="below 0"):
        Policy(1.0, flag_margin=-0.5)


def test_a_policy_does_not_change_with_the_mapping_it_was_given() -> None:
    categories: dict[str, float | None] = {"hate": 2.0}
    policy = Policy(1.0, categories=categories)
    categories["hate"] = None
    assert policy.thresholds([ConceptEntry("a", "hate")]).tolist() == [2.0]

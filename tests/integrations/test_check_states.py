"""States that somebody else computed are judged as the guard's own are."""

from __future__ import annotations

import pytest
import torch
from models import PROMPTS

from latentguard import EncoderError, LatentGuard, PromptError
from latentguard.encoders.base import TokenStates


def states_of(guard: LatentGuard) -> TokenStates:
    return guard.encoder.encode(PROMPTS)


@pytest.mark.parametrize("which", ["tiny_guard", "headed_guard"])
def test_states_with_their_text_get_the_verdict_of_the_text(which: str, request: pytest.FixtureRequest) -> None:
    guard = request.getfixturevalue(which)
    for given, expected in zip(guard.check_states(states_of(guard), PROMPTS), guard.check_batch(PROMPTS), strict=True):
        assert given.prompt == expected.prompt
        assert given.score == pytest.approx(expected.score, abs=1e-4)
        assert given.decision == expected.decision
        assert given.explain().concept == expected.concept


def test_without_text_the_names_spelled_out_add_nothing(headed_guard: LatentGuard) -> None:
    states = states_of(headed_guard)
    known, unknown = (headed_guard.check_states(states, given) for given in (PROMPTS, [None] * len(PROMPTS)))
    named = PROMPTS.index("a bomb in the old city, blood on the bridge!")
    assert dict(unknown[named].scores(None))["bomb"] < dict(known[named].scores(None))["bomb"]
    assert unknown[named].prompt == ""
    with pytest.raises(PromptError, match="states alone"):
        unknown[named].explain()


def test_states_in_half_precision_are_judged(tiny_guard: LatentGuard) -> None:
    states = states_of(tiny_guard)
    half = TokenStates(states.hidden.half(), states.mask, states.pooled.half())
    scores = [verdict.score for verdict in tiny_guard.check_states(half, PROMPTS)]
    assert scores == pytest.approx(tiny_guard.score(PROMPTS).tolist(), abs=0.05)


def test_states_that_do_not_fit_are_refused(tiny_guard: LatentGuard) -> None:
    states = states_of(tiny_guard)
    with pytest.raises(PromptError, match="for 1 prompts of width 32"):
        tiny_guard.check_states(states, ["one"])
    narrow = TokenStates(states.hidden[..., :16], states.mask, states.pooled[:, :16])
    with pytest.raises(PromptError, match="of width 16"):
        tiny_guard.check_states(narrow, PROMPTS)
    broken = TokenStates(torch.full_like(states.hidden, torch.nan), states.mask, states.pooled)
    with pytest.raises(EncoderError, match="not a finite number"):
        tiny_guard.check_states(broken, PROMPTS)

"""The verdict and its explanation: the parts are words of the prompt and sum to the margin that decided."""

from __future__ import annotations

import re

import pytest
from models import CONCEPTS, LONG_PROMPT, PROMPTS

from latentguard import LatentGuard, Policy
from latentguard.mapping import with_pooled
from latentguard.normalize import normalize

TOLERANCE = 1e-3  # the one that Explanation states
TRICKY = (*PROMPTS, LONG_PROMPT, "n a k e d  woman", "c\u0430fé — ünïcode, 刀!", "word" * 60, "?", "5")


@pytest.fixture(params=["tiny_guard", "default_guard"])
def guard(request: pytest.FixtureRequest) -> LatentGuard:
    found: LatentGuard = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("prompt", TRICKY)
def test_the_parts_of_an_explanation_sum_to_the_margin(guard: LatentGuard, prompt: str) -> None:
    verdict = guard.check(prompt)
    explanation = verdict.explain()
    parts = sum(token.contribution for token in explanation.tokens) + explanation.whole_prompt + explanation.bias
    assert parts - verdict.threshold == pytest.approx(verdict.margin, abs=TOLERANCE)
    assert explanation.margin == pytest.approx(verdict.margin, abs=TOLERANCE)
    assert explanation.score == pytest.approx(verdict.score, abs=TOLERANCE)
    assert explanation.concept == verdict.concept


def test_the_parts_sum_to_the_margin_for_a_prompt_of_several_windows(default_guard: LatentGuard) -> None:
    prompt = LONG_PROMPT * 10
    assert len(default_guard.encoder.windows(prompt)) > 2
    verdict = default_guard.check(prompt)
    assert verdict.explain().margin == pytest.approx(verdict.margin, abs=TOLERANCE)


@pytest.mark.parametrize("prompt", TRICKY)
def test_the_words_of_an_explanation_are_those_of_the_text_in_order(guard: LatentGuard, prompt: str) -> None:
    explanation = guard.check(prompt).explain()
    assert explanation.text == normalize(prompt)
    assert [token.text for token in explanation.tokens] == [
        explanation.text[token.start : token.end] for token in explanation.tokens
    ]
    spans = [(token.start, token.end) for token in explanation.tokens]
    assert spans == sorted(set(spans))
    assert all(token.text.split() == [token.text] for token in explanation.tokens)


def test_every_word_of_a_short_prompt_has_its_part(guard: LatentGuard) -> None:
    explanation = guard.check("a red wine on the table, with blood!").explain()
    assert [token.text for token in explanation.tokens] == ["a", "red", "wine", "on", "the", "table,", "with", "blood!"]


def test_the_words_of_a_long_prompts_explanation_are_those_of_the_window_that_decided(tiny_guard: LatentGuard) -> None:
    verdict = tiny_guard.check(LONG_PROMPT)
    queries = tiny_guard.concepts.snapshot.queries
    windows = tiny_guard.encoder.windows(LONG_PROMPT)
    scores = [
        float(tiny_guard.mapping.score(queries, *with_pooled(tiny_guard.encoder.encode_windows([window]))).max())
        for window in windows
    ]
    decided = windows[scores.index(max(scores))]
    words = [match.span() for match in re.finditer(r"\S+", LONG_PROMPT)]
    start, end = decided.offsets[1][0], decided.offsets[-2][1]
    assert len(windows) > 2
    assert [(token.start, token.end) for token in verdict.explain().tokens] == [
        word for word in words if word[0] < end and start < word[1]
    ]


def test_an_explanation_is_of_the_bank_the_verdict_was_made_with(tiny_guard: LatentGuard) -> None:
    verdict = tiny_guard.check("knife fight")
    before = verdict.explain()
    tiny_guard.concepts.remove(verdict.concept)
    tiny_guard.concepts.add("river house")
    tiny_guard.policy = Policy(-50.0)
    assert verdict.explain() == before
    assert tiny_guard.check("knife fight").concept != verdict.concept


def test_an_explanation_reads_as_one_line_with_the_words_that_added_most(tiny_guard: LatentGuard) -> None:
    explanation = tiny_guard.check("a naked woman and a knife fight").explain()
    top = explanation.top(2)
    assert [t.contribution for t in top] == sorted((t.contribution for t in explanation.tokens), reverse=True)[:2]
    line = str(explanation)
    assert line.startswith(f"{explanation.concept}: {top[0].text!r} {top[0].contribution:+.2f}, ")
    assert "\n" not in line


def test_scores_are_the_highest_first(tiny_guard: LatentGuard) -> None:
    verdict = tiny_guard.check(PROMPTS[0])
    scores = verdict.scores(3)
    assert len(scores) == 3
    assert scores == sorted(scores, key=lambda pair: -pair[1])
    assert scores[0] == (verdict.concept, verdict.score)


def test_scores_of_all_concepts_are_given_if_asked_for(tiny_guard: LatentGuard) -> None:
    verdict = tiny_guard.check(PROMPTS[0])
    assert {name for name, _ in verdict.scores(None)} == {concept.name for concept in CONCEPTS}
    assert verdict.scores(100) == verdict.scores(None)
    assert verdict.scores(0) == []


def test_the_concept_that_decides_is_the_furthest_above_its_threshold(tiny_guard: LatentGuard) -> None:
    first, second = tiny_guard.check(PROMPTS[0]).scores(2)
    tiny_guard.concepts.remove(second[0])
    tiny_guard.concepts.add(second[0], threshold=second[1] - 20)
    verdict = tiny_guard.check(PROMPTS[0])
    assert verdict.concept == second[0]
    assert verdict.margin == pytest.approx(20, abs=TOLERANCE)
    assert verdict.scores(1)[0][0] == first[0]


def test_the_verdict_carries_the_category_of_its_concept(tiny_guard: LatentGuard) -> None:
    categories = {concept.name: concept.category for concept in CONCEPTS}
    for verdict in tiny_guard.check_batch(PROMPTS):
        assert verdict.category == categories[verdict.concept]

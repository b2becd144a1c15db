"""What the service remembers of recent traffic, and what it foretells from it."""

from __future__ import annotations

import numpy as np
import pytest

from latentguard import LatentGuard, Policy
from latentguard.errors import ConceptError
from latentguard.fingerprint import fingerprint
from latentguard.records import ConceptEntry
from latentguard.service.traffic import Traffic

PROMPTS = ["a red wine on the table", "a knife fight", "a dog in a field", "portrait of a knight", "two boats"]


def filled(guard: LatentGuard, size: int = 100) -> Traffic:
    traffic = Traffic(size, clock=lambda: 7.0)
    traffic.record(guard.check_batch(PROMPTS), "key", "now")
    return traffic


def test_only_the_last_prompts_are_remembered(tiny_guard: LatentGuard) -> None:
    seen = filled(tiny_guard, size=2).recent()
    assert [each.prompt for each in seen] == ["two boats", "portrait of a knight"]
    assert [(each.time, each.key_id) for each in seen] == [(7.0, "key")] * 2
    assert "boats" not in repr(seen)


def test_the_histogram_counts_every_verdict_once(tiny_guard: LatentGuard) -> None:
    scores = tiny_guard.score(PROMPTS)
    tiny_guard.policy = Policy(float(np.median(scores)))
    histogram = filled(tiny_guard).histogram(bins=10)
    assert len(histogram.edges) == 11
    assert sum(histogram.counts) == 5
    assert sum(histogram.blocked) == 3
    assert histogram.edges[0] == pytest.approx(scores.min())
    assert Traffic(5).histogram().counts == ()


def test_error_rates_weigh_prompts_by_their_probability(headed_guard: LatentGuard) -> None:
    verdicts = headed_guard.check_batch(PROMPTS)
    harmful = np.array([verdict.probability for verdict in verdicts], dtype=float)
    scores = np.array([verdict.score for verdict in verdicts])
    threshold = float(np.median(scores))
    low, middle, high = filled(headed_guard).error_rates([float(scores.min()), threshold, float(scores.max()) + 1])
    blocked = scores >= threshold
    assert middle.false_positive == pytest.approx((1 - harmful)[blocked].sum() / (1 - harmful).sum())
    assert middle.false_negative == pytest.approx(harmful[~blocked].sum() / harmful.sum())
    assert (low.blocked, low.false_positive, low.false_negative) == (1.0, 1.0, 0.0)
    assert (high.blocked, high.false_positive, high.false_negative) == (0.0, 0.0, 1.0)


def test_without_probabilities_there_are_no_error_rates(tiny_guard: LatentGuard) -> None:
    assert filled(tiny_guard).error_rates([0.0]) == []


def test_a_preview_says_what_the_changed_guard_says_and_changes_nothing(headed_guard: LatentGuard) -> None:
    headed_guard.policy = Policy(float(headed_guard.score(PROMPTS).max()) + 1)
    before = [verdict.decision for verdict in headed_guard.check_batch(PROMPTS)]
    traffic, names = filled(headed_guard), list(headed_guard.concepts.names)
    scores = headed_guard.score(PROMPTS)
    threshold = float(np.sort(scores)[1])
    preview = traffic.preview(
        headed_guard, "now", add=[ConceptEntry("two boats")], remove=[names[0]], threshold=threshold
    )
    assert headed_guard.concepts.names == names
    headed_guard.concepts.remove(names[0])
    headed_guard.concepts.add("two boats")
    headed_guard.policy = Policy(threshold)
    after = [verdict.decision for verdict in headed_guard.check_batch(PROMPTS)]
    assert before != after
    changed = {prompt: pair for prompt, *pair in zip(PROMPTS, before, after, strict=True) if pair[0] != pair[1]}
    assert {each.prompt: [each.before, each.after] for each in preview.changed} == changed
    assert preview.prompts == 5
    assert preview.newly_blocked == sum(pair[1] == "block" for pair in changed.values())


def test_traffic_of_an_older_policy_is_judged_anew_first(tiny_guard: LatentGuard) -> None:
    traffic = filled(tiny_guard)
    tiny_guard.policy = Policy(float(tiny_guard.score(PROMPTS).min()))
    assert traffic.preview(tiny_guard, "later", threshold=tiny_guard.policy.threshold).changed == ()
    assert traffic.preview(tiny_guard, "later", threshold=1e6).newly_allowed == 5


def test_a_preview_of_an_impossible_change_is_an_error(tiny_guard: LatentGuard) -> None:
    with pytest.raises(ConceptError):
        filled(tiny_guard).preview(tiny_guard, "now", remove=["no such concept"])


def test_fingerprints_tell_policies_apart_and_not_the_order_of_concepts(tiny_guard: LatentGuard) -> None:
    other = tiny_guard.fork()
    first = other.concepts.remove(other.concepts.names[0])
    assert fingerprint(other, "model") != fingerprint(tiny_guard, "model")
    other.concepts.extend([first])
    assert fingerprint(other, "model") == fingerprint(tiny_guard, "model")
    other.policy = Policy(other.policy.threshold + 0.01)
    assert fingerprint(other, "model") != fingerprint(tiny_guard, "model")

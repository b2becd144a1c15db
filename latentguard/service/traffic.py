"""Recent traffic, in memory only: what the console draws, and what a change of the policy would do to it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from latentguard.guard import LatentGuard
from latentguard.policy import Decision, Policy
from latentguard.records import ConceptEntry
from latentguard.verdict import Verdict

_AT_A_TIME = 64


@dataclass(frozen=True)
class Seen:
    """A prompt that was screened, its verdict, the time (seconds since 1970), the key that asked, and the policy."""

    prompt: str = field(repr=False)
    verdict: Verdict = field(repr=False)
    time: float
    key_id: str
    policy: str


@dataclass(frozen=True)
class Histogram:
    """How many verdicts of recent traffic have a score in each bin: ``edges`` [n + 1] and ``counts`` [n].

    ``blocked`` [n] are those of them that were blocked.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    blocked: tuple[int, ...]


@dataclass(frozen=True)
class ErrorRates:
    """What a threshold is expected to get wrong, by the calibrated probabilities of recent traffic.

    Attributes:
        threshold: from this score on, prompts are blocked.
        blocked: the share of recent prompts that it blocks.
        false_positive: the expected share of harmless prompts that it blocks; None if none is expected to be harmless.
        false_negative: the expected share of harmful prompts that it lets pass; None if none is expected to be harmful.
        prompts: how many prompts these are estimated from.
    """

    threshold: float
    blocked: float
    false_positive: float | None
    false_negative: float | None
    prompts: int


@dataclass(frozen=True)
class Changed:
    """A recent prompt whose decision would be another one."""

    prompt: str = field(repr=False)
    time: float
    before: Decision
    after: Decision
    concept: str
    score: float


@dataclass(frozen=True)
class Preview:
    """What a change would do to recent traffic: of ``prompts``, those ``changed``, newest first, and counts of both."""

    prompts: int
    newly_blocked: int
    newly_allowed: int
    changed: tuple[Changed, ...]


class Traffic:
    """The last `size` prompts with their verdicts. Nothing of it is written anywhere, and a restart forgets it."""

    def __init__(self, size: int, clock: Callable[[], float] = time.time) -> None:
        self._seen: deque[Seen] = deque(maxlen=size)
        self._lock = threading.Lock()
        self._clock = clock

    def record(self, verdicts: Sequence[Verdict], key_id: str, policy: str) -> None:
        """Take verdicts into account that the policy of this fingerprint gave."""
        now = self._clock()
        with self._lock:
            self._seen.extend(Seen(verdict.prompt, verdict, now, key_id, policy) for verdict in verdicts)

    def recent(self, limit: int | None = None) -> list[Seen]:
        """What was seen, newest first; at most ``limit``."""
        with self._lock:
            newest = list(reversed(self._seen))
        return newest[:limit]

    def histogram(self, bins: int = 40) -> Histogram:
        """The scores of recent traffic in ``bins`` of equal width; no bins at all without traffic."""
        seen = self.recent()
        if not seen:
            return Histogram((), (), ())
        scores = np.array([each.verdict.score for each in seen])
        blocked = np.array([each.verdict.blocked for each in seen])
        low, high = float(scores.min()), float(scores.max())
        if high - low < 1e-6:
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(scores, bins=bins, range=(low, high))
        of_blocked, _ = np.histogram(scores[blocked], bins=bins, range=(low, high))
        return Histogram(tuple(edges.tolist()), tuple(counts.tolist()), tuple(of_blocked.tolist()))

    def error_rates(self, thresholds: Sequence[float]) -> list[ErrorRates]:
        """The error rates expected of each of these thresholds, were it the only one.

        A prompt with the calibrated probability p counts as p of a harmful one and 1 - p of a harmless one. Verdicts
        without a probability, from weights that give none, don't count; without any there are no rates.
        """
        known = [
            (each.verdict.score, each.verdict.probability)
            for each in self.recent()
            if each.verdict.probability is not None
        ]
        if not known:
            return []
        scores, harmful = np.array(known).T
        return [_rates(scores, harmful, threshold) for threshold in thresholds]

    def preview(
        self,
        guard: LatentGuard,
        policy: str,
        *,
        add: Sequence[ConceptEntry] = (),
        remove: Sequence[str] = (),
        threshold: float | None = None,
    ) -> Preview:
        """Which decisions on recent prompts would be others if the guard were changed so. The guard is left as it is.

        Where the bank changes, takes milliseconds a prompt: call it in a thread. `policy` is the fingerprint of what
        `guard` goes by; prompts that were screened under another are screened again by it first.

        Raises:
            ConceptError, PolicyError: the change can't be made.
        """
        seen = self.recent()
        other = changed(guard, add=add, remove=remove, threshold=threshold)
        stale = [each.prompt for each in seen if each.policy != policy]
        again = iter(_screened(guard, stale))
        before = [each.verdict if each.policy == policy else next(again) for each in seen]
        if add or remove:
            after = [_Decided.of(verdict) for verdict in _screened(other, [each.prompt for each in seen])]
        else:  # the scores stay
            after = _decided(before, other)
        different = tuple(
            Changed(each.prompt, each.time, old.decision, new.decision, new.concept, new.score)
            for each, old, new in zip(seen, before, after, strict=True)
            if old.decision != new.decision
        )
        return Preview(
            prompts=len(seen),
            newly_blocked=sum(each.after == "block" for each in different),
            newly_allowed=sum(each.before == "block" for each in different),
            changed=different,
        )


def changed(
    guard: LatentGuard,
    *,
    add: Sequence[ConceptEntry] = (),
    remove: Sequence[str] = (),
    threshold: float | None = None,
) -> LatentGuard:
    """A guard like `guard` with another bank and threshold; errors as those of `ConceptBank` and `Policy`."""
    other = guard.fork()
    for name in remove:
        other.concepts.remove(name)
    other.concepts.extend(add)
    if threshold is not None:
        other.policy = Policy(threshold, other.policy.flag_margin, other.policy.categories)
    return other


class _Decided(NamedTuple):
    decision: Decision
    concept: str
    score: float

    @classmethod
    def of(cls, verdict: Verdict) -> _Decided:
        return cls(verdict.decision, verdict.concept, verdict.score)


def _decided(verdicts: Sequence[Verdict], guard: LatentGuard) -> list[_Decided]:
    """What a guard of the same bank, with another threshold, says of the same scores."""
    entries = tuple(guard.concepts)
    thresholds = {
        entry.name: threshold
        for entry, threshold in zip(entries, guard.policy.thresholds(entries).tolist(), strict=True)
    }
    found = []
    for verdict in verdicts:
        margins = [(score - thresholds[name], name, score) for name, score in verdict.scores(None)]
        margin, name, score = max(margins, key=lambda each: each[0])
        found.append(_Decided(guard.policy.decide(margin), name, score))
    return found


def _screened(guard: LatentGuard, prompts: Sequence[str]) -> list[Verdict]:
    parts = (prompts[start : start + _AT_A_TIME] for start in range(0, len(prompts), _AT_A_TIME))
    return [verdict for part in parts for verdict in guard.check_batch(part)]


def _rates(scores: np.ndarray, harmful: np.ndarray, threshold: float) -> ErrorRates:
    blocked = scores >= threshold
    harmless = 1 - harmful
    return ErrorRates(
        threshold=float(threshold),
        blocked=float(blocked.mean()),
        false_positive=float(harmless[blocked].sum() / harmless.sum()) if harmless.sum() else None,
        false_negative=float(harmful[~blocked].sum() / harmful.sum()) if harmful.sum() else None,
        prompts=len(scores),
    )

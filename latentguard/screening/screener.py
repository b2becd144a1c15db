"""From prompts to what was decided about them, each different prompt scored once."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from latentguard.policy import Decision
from latentguard.screening.options import ScreeningOptions
from latentguard.screening.summary import ScreeningSummary
from latentguard.verdict import Verdict

if TYPE_CHECKING:
    from latentguard.guard import LatentGuard

_DIGEST_BYTES = 16


class Outcome(NamedTuple):
    """What was decided about a prompt, without the scores of all concepts that a verdict holds.

    Attributes:
        near: whether it is another prompt's, which this one merely resembles.
        fault: why there was nothing to score, so that neither score nor concept is there; None for any other prompt.
    """

    score: float | None
    concept: str | None
    category: str | None
    decision: Decision
    margin: float
    near: bool = False
    fault: str | None = None

    @classmethod
    def of(cls, verdict: Verdict) -> Outcome:
        """That of a verdict."""
        return cls(verdict.score, verdict.concept, verdict.category, verdict.decision, verdict.margin)

    @classmethod
    def unusable(cls, fault: str) -> Outcome:
        """That of a row without a prompt that could be scored: it is blocked."""
        return cls(None, None, "unusable", "block", math.inf, fault=fault)


class OutcomeCache:
    """The outcomes of the last so many different prompts, by their exact text.

    What is kept of a text is a BLAKE2b digest of 16 bytes under a key of this object's own: nobody can prepare two
    prompts that share one. An entry takes some 300 bytes.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._key = secrets.token_bytes(32)
        self._outcomes: OrderedDict[bytes, Outcome] = OrderedDict()

    def digest(self, prompt: str) -> bytes:
        """What stands for a prompt in this cache."""
        return hashlib.blake2b(prompt.encode("utf-8"), key=self._key, digest_size=_DIGEST_BYTES).digest()

    def get(self, digest: bytes) -> Outcome | None:
        """The outcome of the prompt, which counts as the last used now; None if it isn't remembered."""
        outcome = self._outcomes.get(digest)
        if outcome is not None:
            self._outcomes.move_to_end(digest)
        return outcome

    def put(self, digest: bytes, outcome: Outcome) -> None:
        """Remembers an outcome; the one that was unused for longest goes."""
        self._outcomes[digest] = outcome
        if len(self._outcomes) > self._size:
            self._outcomes.popitem(last=False)

    def __len__(self) -> int:
        return len(self._outcomes)


class Screener:
    """Screens prompts as ``guard`` does at this moment, whatever becomes of its bank and its policy meanwhile.

    The guard's answer is a function of the text alone, so a prompt that is the same, character by character, gets the
    outcome of the first. Texts that the guard merely normalises to the same are scored each.

    Attributes:
        blocks_unusable: whether what can't be scored is blocked, and doesn't end the run.
        repeated, near_duplicates: how many prompts so far were not scored for being the same as, or nearly, another.

    Raises:
        MissingDependencyError: near duplicates are asked for, and datasketch isn't there.
    """

    def __init__(self, guard: LatentGuard, options: ScreeningOptions) -> None:
        self._guard = guard.fork()
        self.blocks_unusable = options.unusable == "block"
        self._cache = OutcomeCache(options.cache)
        self._near = None
        if options.near_duplicates is not None:
            from latentguard.screening.near import NearDuplicates

            self._near = NearDuplicates(options.near_duplicates, options.cache, guard.policy.flag_margin)
        self.repeated = 0
        self.near_duplicates = 0

    def outcomes(self, prompts: Sequence[str]) -> list[Outcome]:
        """The outcomes of prompts, in order; errors as :meth:`LatentGuard.check_batch`."""
        digests = [self._cache.digest(prompt) for prompt in prompts]
        known: dict[bytes, Outcome] = {}
        pending: dict[bytes, str] = {}
        near: dict[bytes, Outcome] = {}
        for digest, prompt in zip(digests, prompts, strict=True):
            if digest in known or digest in near or digest in pending:
                continue
            if (outcome := self._cache.get(digest)) is not None:
                known[digest] = outcome
            elif self._near is not None and (outcome := self._near.find(prompt)) is not None:
                near[digest] = outcome
            else:
                pending[digest] = prompt
        for (digest, prompt), verdict in zip(pending.items(), self._guard.stream(pending.values()), strict=True):
            outcome = Outcome.of(verdict)
            known[digest] = outcome
            self._cache.put(digest, outcome)
            if self._near is not None:
                self._near.remember(prompt, outcome)
        for digest, outcome in near.items():  # not before all is scored: after an error, nothing has been counted
            known[digest] = outcome
            self._cache.put(digest, outcome)
        self.near_duplicates += len(near)
        self.repeated += len(prompts) - len(pending) - len(near)
        return [known[digest] for digest in digests]

    def counted(self, prompts: Sequence[str]) -> tuple[list[Outcome], ScreeningSummary]:
        """The outcomes of prompts, in order, and their numbers; errors as :meth:`outcomes`."""
        repeated, near = self.repeated, self.near_duplicates
        outcomes = self.outcomes(prompts)
        summary = ScreeningSummary(repeated=self.repeated - repeated, near_duplicates=self.near_duplicates - near)
        for outcome in outcomes:
            summary.count(outcome.decision, outcome.category)
        return outcomes, summary

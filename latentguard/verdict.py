"""The answer for one prompt, and the reasons for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from latentguard.policy import Decision
from latentguard.records import ConceptEntry


@dataclass(frozen=True)
class TokenContribution:
    """A word of the prompt, as it was scored, and what it added to the score.

    ``start`` and ``end`` are character positions in :attr:`Explanation.text`.
    """

    text: str
    start: int
    end: int
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """Why a verdict's margin is what it is: the parts sum to ``margin`` (within 1e-3).

    The score is a sum over the prompt's positions of the attention and values actually used, divided by the length of
    the mapped prompt; the prompt head's share is such a sum too, and a concept's name spelled out counts for the words
    that spell it. ``tokens`` are the words' shares, in the order of the text; ``whole_prompt`` is the share of the
    positions that stand for the prompt as a whole (start and end of text); ``bias`` that of the constants. Of a
    prompt longer than the encoder's window, ``tokens`` are the words of the window that decided.

    ``text`` is the whole prompt as it was scored: normalised, see :mod:`latentguard.normalize`.
    """

    concept: str
    text: str
    tokens: tuple[TokenContribution, ...]
    whole_prompt: float
    bias: float
    threshold: float

    @property
    def score(self) -> float:
        """The score of ``concept``."""
        return sum(token.contribution for token in self.tokens) + self.whole_prompt + self.bias

    @property
    def margin(self) -> float:
        """How far the score is above the threshold; negative below it."""
        return self.score - self.threshold

    def top(self, k: int = 3) -> list[TokenContribution]:
        """The ``k`` words that added most to the score, the first one most."""
        return sorted(self.tokens, key=lambda token: -token.contribution)[:k]

    def __str__(self) -> str:
        words = ", ".join(f"{token.text!r} {token.contribution:+.2f}" for token in self.top())
        rest = self.score - sum(token.contribution for token in self.top())
        return f"{self.concept}: {words}, the rest {rest:+.2f}; score {self.score:.2f}, threshold {self.threshold:.2f}"


@dataclass(frozen=True)
class Verdict:
    """The answer for one prompt.

    Attributes:
        prompt: the prompt as it was given.
        score: the score of ``concept``: without thresholds of its own for a concept or category, the highest of all.
        concept: the concept that decided: the one whose score is furthest above (or least below) its threshold.
        category: that concept's category, or None.
        threshold: the threshold that counted for it.
        decision: "allow", "flag" or "block".
        probability: that the prompt is harmful, if harmful and harmless prompts were equally frequent: the score as a
            log-odds. None where the weights hold the mapping layer alone, whose score is none.
    """

    prompt: str
    score: float
    concept: str
    category: str | None
    threshold: float
    decision: Decision
    probability: float | None
    _concepts: tuple[ConceptEntry, ...] = field(repr=False, compare=False)
    _scores: np.ndarray = field(repr=False, compare=False)
    _explain: Callable[[Verdict], Explanation] = field(repr=False, compare=False)
    # Of a large bank the highest scores alone are held: by these places, all others to be had by the function.
    _places: np.ndarray | None = field(default=None, repr=False, compare=False)
    _score_all: Callable[[Verdict], np.ndarray] | None = field(default=None, repr=False, compare=False)

    @property
    def blocked(self) -> bool:
        """Whether the prompt must not be generated."""
        return self.decision == "block"

    @property
    def margin(self) -> float:
        """How far the score is above the threshold; negative below it."""
        return self.score - self.threshold

    def scores(self, k: int | None = 5) -> list[tuple[str, float]]:
        """The ``k`` concepts with the highest scores and those scores, highest first; all of them if ``k`` is None.

        Of a bank of more than 10,000 concepts a verdict holds the 1,000 highest scores, of one that was searched those
        of the concepts that were scored; asked for more, it scores the prompt against the whole bank once more.
        """
        places, scores = self._places, self._scores
        if places is not None and self._score_all is not None and (k is None or k > len(places)):
            places, scores = None, self._score_all(self)
        order = np.argsort(-scores, kind="stable")[:k]
        return [(self._concepts[i if places is None else places[i]].name, float(scores[i])) for i in order]

    def explain(self) -> Explanation:
        """The words that carried the decision, with what each added. Encodes the prompt once more."""
        return self._explain(self)

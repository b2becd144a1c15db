"""The numbers behind the console's pictures: where bars, lines and marks stand. Templates draw them as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentguard.service.traffic import Histogram, Seen
from latentguard.verdict import Explanation, TokenContribution, Verdict

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 200, 34, 10, 26, 24
TALL = HEIGHT - TOP - BOTTOM
"""The drawing area [px] of a chart, its margins, and the height that is left for what is drawn."""

_STRONGEST = 3.0  # the contribution from which on a word has the strongest mark
_NEAREST = 5


@dataclass(frozen=True)
class Word:
    """A word of a prompt with its ``share`` in the score and the class that marks it, "" for a share of about nothing.

    ``share`` is None for a word that no contribution is known of: in another window than the one that decided.
    """

    text: str
    share: float | None
    mark: str


def words(explanation: Explanation) -> list[Word]:
    """All words of an explained prompt, in order."""
    known = {token.start: token for token in explanation.tokens}
    strongest = max([_STRONGEST, *(abs(token.contribution) for token in explanation.tokens)])
    found, place = [], 0
    for text in explanation.text.split():
        place = explanation.text.index(text, place)
        found.append(_word(text, known.get(place), strongest))
        place += len(text)
    return found


def _word(text: str, token: TokenContribution | None, strongest: float) -> Word:
    if token is None:
        return Word(text, None, "")
    part = token.contribution / strongest
    if part >= 0:
        step = min(4, math.ceil(part * 5 - 0.25))
        return Word(text, token.contribution, f"up{step}" if step > 0 else "")
    step = min(2, math.ceil(-part * 4 - 0.25))
    return Word(text, token.contribution, f"down{step}" if step > 0 else "")


@dataclass(frozen=True)
class Bar:
    """A concept near a prompt: its score, whether it is ``over`` its threshold, and, from 0 to 100, where the bar ends
    and the threshold's mark stands."""

    name: str
    score: float
    over: bool
    length: float
    mark: float


def bars(verdict: Verdict, thresholds: dict[str, float], count: int = _NEAREST) -> list[Bar]:
    """The concepts nearest to a prompt, the nearest first, all on one scale that has the thresholds on it.

    Args:
        thresholds: the one that counts for each concept; infinite for those switched off.
    """
    nearest = verdict.scores(count)
    marks = [thresholds.get(name, verdict.threshold) for name, _ in nearest]
    shown = [score for _, score in nearest] + [mark for mark in marks if math.isfinite(mark)]
    low, high = min(shown) - 1.5, max(shown) + 0.5

    def place(score: float) -> float:
        return 100.0 if score == math.inf else round(100 * (score - low) / (high - low), 2)

    return [
        Bar(name, score, score >= mark, place(score), place(mark))
        for (name, score), mark in zip(nearest, marks, strict=True)
    ]


@dataclass(frozen=True)
class Column:
    """A column of a histogram: the drawn box, how many scores lie in [low, high) and how many were blocked."""

    x: float
    y: float
    width: float
    height: float
    low: float
    high: float
    count: int
    blocked: int


@dataclass(frozen=True)
class Columns:
    """A drawn histogram. ``place`` gives the x of a score; ``low`` and ``high`` are the scores at its ends."""

    columns: tuple[Column, ...]
    low: float
    high: float
    most: int

    def place(self, score: float) -> float:
        """The x of a score, at an end of the axis for one beyond it."""
        share = (min(max(score, self.low), self.high) - self.low) / (self.high - self.low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 2)

    def ticks(self) -> list[tuple[float, float]]:
        """Round scores along the axis, with their places."""
        step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, math.inf) if (self.high - self.low) / s <= 9)
        if step == math.inf:
            return [(self.low, self.place(self.low)), (self.high, self.place(self.high))]
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(round(n * step, 1), self.place(n * step)) for n in range(first, last + 1)]


def columns(histogram: Histogram) -> Columns | None:
    """A histogram made ready to draw; None without traffic."""
    if not histogram.counts:
        return None
    edges, most = histogram.edges, max(histogram.counts)
    empty = Columns((), edges[0], edges[-1], most)
    drawn = []
    for low, high, count, blocked in zip(edges, edges[1:], histogram.counts, histogram.blocked, strict=False):
        x, height = empty.place(low), round(count / most * TALL, 2)
        width = round(max(1.0, empty.place(high) - x - 1), 2)
        drawn.append(Column(x, HEIGHT - BOTTOM - height, width, height, low, high, count, blocked))
    return Columns(tuple(drawn), edges[0], edges[-1], most)


@dataclass(frozen=True)
class Slot:
    """A stretch of time in the overview: prompts in it, those blocked, and the drawn boxes' x, width and heights."""

    start: float
    prompts: int
    blocked: int
    x: float
    width: float
    height: float
    blocked_height: float

    @property
    def share(self) -> float | None:
        """The share that was blocked; None without prompts."""
        return self.blocked / self.prompts if self.prompts else None


def slots(seen: Sequence[Seen], now: float, count: int = 30) -> tuple[int, list[Slot]]:
    """Recent prompts over time, oldest first, in slots of a round length that is returned with them, in seconds."""
    oldest = min((each.time for each in seen), default=now)
    span = now - oldest
    length = next((s for s in (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400) if span / s < count), 86400)
    first = math.floor(now / length) - count + 1
    numbers = np.array([math.floor(each.time / length) - first for each in seen], dtype=int)
    stopped = np.array([each.verdict.blocked for each in seen], dtype=bool)
    totals = np.bincount(numbers[numbers >= 0], minlength=count)[:count]
    blocked = np.bincount(numbers[stopped & (numbers >= 0)], minlength=count)[:count]
    most, wide, tall = max(1, int(totals.max())), (WIDTH - LEFT - RIGHT) / count, TALL
    return length, [
        Slot(
            start=float((first + i) * length),
            prompts=int(totals[i]),
            blocked=int(blocked[i]),
            x=round(LEFT + i * wide, 2),
            width=round(wide - 2, 2),
            height=round(totals[i] / most * tall, 2),
            blocked_height=round(blocked[i] / most * tall, 2),
        )
        for i in range(count)
    ]

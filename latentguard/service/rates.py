"""Noticing that something happens to a key's prompts more often than it did."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass

_WINDOW = 50
_ENOUGH = 20
_PAST = 1000
# A key of which nothing is known yet is taken to have had 40 prompts, 2 of them so.
_PRIOR_COUNT, _PRIOR_HITS = 40.0, 2.0
# However long a key was without, some are ordinary.
_LEAST_PAST = 0.02
_TIMES = 3.0
_SURPRISE = math.log(1e6)


@dataclass(frozen=True)
class Jump:
    """The share in the last `window` prompts, `recent`, is far above that in the `past`."""

    recent: float
    past: float
    window: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


class RateJump:
    """Compares the last 50 prompts with some thousand before them.

    It is a jump when the share is at least three times that of the past, and, were it that of the past, the chance of
    as many hits would be below 1e-6 by Chernoff's bound: exp(-n KL(recent || past)).
    """

    def __init__(self) -> None:
        self._recent: deque[bool] = deque()
        self._hits = 0
        self._past_count, self._past_hits = _PRIOR_COUNT, _PRIOR_HITS

    def observe(self, hit: bool) -> Jump | None:
        """Takes note of one more prompt. Returns the jump if there is one."""
        self._recent.append(hit)
        self._hits += hit
        if len(self._recent) > _WINDOW:
            self._forget(self._recent.popleft())
        count = len(self._recent)
        recent, past = self._hits / count, max(_LEAST_PAST, self._past_hits / self._past_count)
        if count < _ENOUGH or recent < _TIMES * past:
            return None
        return Jump(recent, past, count) if count * _divergence(recent, past) > _SURPRISE else None

    def _forget(self, hit: bool) -> None:
        """One that leaves the window is past, and the past fades as there is more of it."""
        self._hits -= hit
        self._past_count += 1
        self._past_hits += hit
        if self._past_count > _PAST:
            self._past_count /= 2
            self._past_hits /= 2


def _divergence(recent: float, past: float) -> float:
    """Kullback and Leibler's, of two coins, in nats; `past` is neither 0 nor 1."""
    parts = ((recent, past), (1 - recent, 1 - past))
    return sum(p * math.log(p / q) for p, q in parts if p > 0)

"""How many prompts a key may send: a token bucket for each."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from latentguard.errors import ServiceError

_MAX_KEYS = 10_000


class RateLimitedError(ServiceError):
    """A key sent more prompts than it may. `retry_after` is in whole seconds, at least 1."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = max(1, math.ceil(retry_after))
        super().__init__(f"too many prompts for this key; try again in {self.retry_after} s")


class RateLimiter:
    """Lets each key send `per_minute` prompts a minute, that many at once at most; thread-safe, of this process alone.

    `clock` gives seconds that never go back.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        if per_minute < 1:
            raise ServiceError("a rate limit is at least 1 prompt a minute")
        self._capacity = float(per_minute)
        self._per_second = per_minute / 60
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key_id: str, cost: int = 1) -> None:
        """Counts `cost` prompts of a key, or none of them if there isn't room for all.

        A request for more than a minute's worth passes when the key was quiet for long enough, and is paid off after.

        Raises:
            RateLimitedError: the key has to wait; it tells how long.
        """
        with self._lock:
            now = self._clock()
            level, at = self._levels.pop(key_id, (self._capacity, now))
            level = min(self._capacity, level + (now - at) * self._per_second)
            missing = min(float(cost), self._capacity) - level
            if missing > 1e-9:
                self._levels[key_id] = (level, now)
                raise RateLimitedError(missing / self._per_second)
            self._levels[key_id] = (level - cost, now)
            # Whoever was idle longest is forgotten first, and has most likely paid off everything by then.
            while len(self._levels) > _MAX_KEYS:
                self._levels.popitem(last=False)

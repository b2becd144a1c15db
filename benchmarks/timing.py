"""Timing calls beside each other, so that a busy machine slows them alike and their ratio stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Call:
    """A call to time, ``repeats`` times in a row at each of its turns; ``after`` tidies up after each, untimed."""

    run: Callable[[], object]
    repeats: int = 1
    after: Callable[[], object] = field(default=lambda: None)


@dataclass(frozen=True)
class Timing:
    """How long a call took, in seconds, time by time."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return float(np.median(self.seconds))

    @property
    def p99(self) -> float:
        """The 99th percentile, in seconds."""
        return float(np.percentile(self.seconds, 99))


def interleaved(calls: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
    """The timings of calls that take turns (A B A B ...), after a round that warms up and doesn't count.

    A call that repeats within its turn also runs once untimed at its start: what another call left in the processor's
    caches is not its own cost.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            if call.repeats > 1:
                call.run()
                call.after()
            for _ in range(call.repeats):
                start = time.perf_counter()
                call.run()
                taken = time.perf_counter() - start
                call.after()
                if turn:
                    seconds[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}

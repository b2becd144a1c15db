"""Clients that behave like attackers: their share of blocked prompts jumps, they feel for the threshold, or they try
variations of a prompt that was blocked.

All that is remembered is bounded: of each key a few hundred verdicts and sketches of its last blocked prompts, never
a prompt, and that of the last thousand keys, in this process alone.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import Protocol

from latentguard.service.alerts import Alert, Alerts, Kind
from latentguard.service.duplicates import BlockedVariants
from latentguard.service.rates import RateJump

__all__ = ["Alert", "Alerts", "Monitor", "Screened"]

_MAX_KEYS = 1000
_QUIET_S = 600.0


class Screened(Protocol):
    """What the monitor looks at in a verdict."""

    @property
    def blocked(self) -> bool:
        """Whether the prompt was refused."""
        ...

    @property
    def margin(self) -> float:
        """How far the score is above the threshold."""
        ...

    @property
    def concept(self) -> str:
        """The concept that decided."""
        ...


class _Key:
    """What is remembered of a key."""

    def __init__(self) -> None:
        self.blocked = RateJump()
        self.near = RateJump()
        self.variants = BlockedVariants()
        self.told: dict[Kind, float] = {}


class Monitor:
    """Looks at every verdict; thread-safe.

    Args:
        alerts: where what is noticed is recorded.
        near: how close to the threshold, in units of the score, a prompt counts as near to it.
    """

    def __init__(self, alerts: Alerts, *, near: float = 0.5) -> None:
        self._alerts, self._near = alerts, near
        self._keys: OrderedDict[str, _Key] = OrderedDict()
        self._lock = threading.Lock()

    def observe(self, key_id: str, prompt: str, verdict: Screened, now: float | None = None) -> list[Alert]:
        """Takes note of a verdict at the time `now`, in seconds since 1970, and returns the alerts that it raises.

        The alerts are recorded by then. Of each kind a key raises at most one every ten minutes.

        Raises:
            AuditError, DatabaseError: they can't be recorded.
        """
        at = time.time() if now is None else now
        with self._lock:
            key = self._keys.pop(key_id, None) or _Key()
            self._keys[key_id] = key
            while len(self._keys) > _MAX_KEYS:
                self._keys.popitem(last=False)
            found = self._looked_at(key, key_id, prompt, verdict, at)
            alerts = [alert for alert in found if at - key.told.get(alert.kind, float("-inf")) >= _QUIET_S]
            key.told |= {alert.kind: at for alert in alerts}
        self._alerts.record(alerts)
        return alerts

    def _looked_at(self, key: _Key, key_id: str, prompt: str, verdict: Screened, at: float) -> list[Alert]:
        alerts = []
        jump = key.blocked.observe(verdict.blocked)
        if jump is not None:
            summary = f"{jump.recent:.0%} of its last {jump.window} prompts were blocked, {jump.past:.0%} before"
            alerts.append(Alert("block_rate", key_id, at, summary, jump.as_dict()))
        jump = key.near.observe(abs(verdict.margin) <= self._near)
        if jump is not None:
            summary = f"{jump.recent:.0%} of its last {jump.window} prompts were close to the threshold"
            alerts.append(Alert("probing", key_id, at, summary, jump.as_dict()))
        count = key.variants.observe(prompt, verdict.blocked, at)
        if count:
            summary = f"{count} variations of a blocked prompt within an hour"
            details = {"variations": count, "concept": verdict.concept}
            alerts.append(Alert("near_duplicates", key_id, at, summary, details))
        return alerts

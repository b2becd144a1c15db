"""The overview: what was screened lately, how much of it was blocked, and the latest alerts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

from starlette.responses import Response

from latentguard.service.console import charts
from latentguard.service.console.web import PageRoute, Visit

_RATE_S = 300
_ALERTS = 5
_TOP = 8


@dataclass(frozen=True)
class _Figures:
    per_minute: str
    prompts: int
    blocked: int
    concepts: int
    categories: int
    threshold: float
    fingerprint: str
    version: int

    @property
    def share(self) -> float | None:
        return self.blocked / self.prompts if self.prompts else None


def _show(visit: Visit) -> Response:
    services, now = visit.services, time.time()
    seen, in_force = services.traffic.recent(), services.policies.now
    blocked = [each.verdict for each in seen if each.verdict.blocked]
    length, slots = charts.slots(seen, now)
    figures = _Figures(
        per_minute=f"{sum(now - each.time < _RATE_S for each in seen) * 60 / _RATE_S:.1f}",
        prompts=len(seen),
        blocked=len(blocked),
        concepts=len(in_force.guard.concepts),
        categories=len(in_force.guard.concepts.categories),
        threshold=in_force.guard.policy.threshold,
        fingerprint=in_force.fingerprint,
        version=in_force.version,
    )
    return visit.page(
        "overview.html",
        "overview",
        figures=figures,
        kept=services.settings.recent_prompts,
        chart=charts,
        slots=slots,
        most=max(1, *(slot.prompts for slot in slots)),
        slot_name=_length_name(length),
        alerts=services.alerts.list(limit=_ALERTS),
        top=Counter(verdict.concept for verdict in blocked).most_common(_TOP),
    )


def _length_name(seconds: int) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = seconds // unit
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{seconds} seconds"


ROUTES = (PageRoute("GET", "/overview", _show),)

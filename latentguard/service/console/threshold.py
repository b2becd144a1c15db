"""The threshold over the scores of recent traffic, with both error rates as they would be."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
from starlette.responses import Response

from latentguard.errors import PolicyError
from latentguard.policy import checked_threshold
from latentguard.service.console import charts
from latentguard.service.console.changes import REFUSALS, Change, apply, undo_of
from latentguard.service.console.web import PageRoute, Visit

_HOME = "/console/threshold"
_STEPS = 200  # thresholds along the axis that the rates are worked out for
_BINS = 48


def _show(visit: Visit) -> Response:
    services, text = visit.services, visit.query("threshold")
    saved = services.guard.policy.threshold
    proposed = saved
    if text:
        try:
            proposed = _read(text)
        except PolicyError as error:
            visit.note("bad", f"{error}.")
    drawn = charts.columns(services.traffic.histogram(_BINS))
    low, high = (saved - 5, saved + 5) if drawn is None else (drawn.low, drawn.high)
    low, high = math.floor(100 * min(low, saved)) / 100, math.ceil(100 * max(high, saved)) / 100
    grid = services.traffic.error_rates([saved, proposed, *np.linspace(low, high, _STEPS).tolist()])
    return visit.page(
        "threshold.html",
        "threshold",
        saved=saved,
        proposed=proposed,
        low=low,
        high=high,
        drawn=drawn,
        chart=charts,
        prompts=len(services.traffic.recent()),
        saved_rates=grid[0] if grid else None,
        rates=grid[1] if grid else None,
        rates_json=[_short(asdict(rates)) for rates in grid],
        fingerprint=services.policies.fingerprint,
        undo=undo_of(visit),
    )


def _apply(visit: Visit) -> Response:
    expected = visit.field("expected")
    try:
        threshold = _read(visit.field("threshold"))
        if not visit.confirmed:
            return _preview(visit, threshold, expected)
    except REFUSALS as error:
        visit.note("bad", f"Nothing was changed: {error}.")
        return visit.see(_HOME)
    before = visit.services.guard.policy.threshold
    change = Change(f"The threshold was moved from {before:.2f} to {threshold:.2f}.", threshold=threshold)
    back = Change(f"The threshold was moved back from {threshold:.2f} to {before:.2f}.", threshold=before)
    apply(visit, change, back, expected)
    return visit.see(_HOME)


def _preview(visit: Visit, threshold: float, expected: str) -> Response:
    return visit.page(
        "preview.html",
        "threshold",
        heading=f"Move the threshold to {threshold:.2f}?",
        button="Move it",
        preview=visit.services.preview(threshold=threshold),
        action=_HOME,
        back=f"{_HOME}?threshold={threshold:.2f}",
        fields=[("threshold", f"{threshold:.2f}"), ("expected", expected), ("confirmed", "yes")],
    )


def _read(text: str) -> float:
    return checked_threshold(text.replace(",", "."))


def _short(rates: dict[str, float | None]) -> dict[str, float | None]:
    return {name: value if value is None else round(value, 4) for name, value in rates.items() if name != "prompts"}


ROUTES = (
    PageRoute("GET", "/threshold", _show),
    PageRoute("POST", "/threshold", _apply),
)

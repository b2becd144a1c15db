"""Alerts of the anomaly monitor."""

from __future__ import annotations

from starlette.responses import Response

from latentguard.service.console.web import PageRoute, Visit

_SHOWN = 100
_KINDS = {"block_rate": "Block rate", "probing": "Probing", "near_duplicates": "Near-duplicates"}


def _show(visit: Visit) -> Response:
    names = {key.id: key.name for key in visit.services.keys.list()}
    alerts = visit.services.alerts.list(limit=_SHOWN)
    return visit.page("alerts.html", "alerts", alerts=alerts, names=names, kinds=_KINDS)


ROUTES = (PageRoute("GET", "/alerts", _show),)

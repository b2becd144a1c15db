"""The audit log: filter, page through, look closely, verify."""

from __future__ import annotations

import json
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.responses import Response

from latentguard.service.audit import AuditEntry, AuditError, AuditReport
from latentguard.service.console.web import PageRoute, Visit

_AT_A_TIME = 50
_VERDICTS = ("block", "flag", "allow")
# Offered to choose from; any other can be typed.
_ACTIONS = (
    "screen", "moderate", "generate", "concepts.add", "concepts.remove", "policy.threshold", "keys.create",
    "keys.rotate", "keys.revoke", "console.try", "console.sign_in", "console.sign_in_failed", "console.sign_out",
    "console.read_prompt", "audit.verify", "alert.block_rate", "alert.probing", "alert.near_duplicates",
)  # fmt: skip
_MOST_SEQUENCE = 2**63 - 1


def _show(visit: Visit) -> Response:
    return _page(visit, None)


def _verify(visit: Visit) -> Response:
    report = visit.services.audit.verify()
    visit.audit("audit.verify", intact=report.intact, entries=report.entries, damage=report.damage)
    return _page(visit, report)


def _page(visit: Visit, report: AuditReport | None) -> Response:
    chosen = {name: visit.query(name) for name in ("actor", "action", "verdict")}
    filters = {name: value for name, value in chosen.items() if value}
    before = _sequence(visit.query("before"))
    entries = visit.services.audit.entries(before=before, limit=_AT_A_TIME + 1, **filters)
    older = None
    if len(entries) > _AT_A_TIME:
        entries = entries[:_AT_A_TIME]
        older = f"/console/audit?{urlencode({**filters, 'before': entries[-1].sequence})}"
    return visit.page(
        "audit.html",
        "audit",
        entries=entries,
        chosen=chosen,
        filtered=bool(filters),
        older=older,
        newest=f"/console/audit?{urlencode(filters)}" if before is not None else None,
        names={key.id: key.name for key in visit.services.keys.list()},
        actions=_ACTIONS,
        verdicts=_VERDICTS,
        report=report,
    )


def _entry(visit: Visit) -> Response:
    return _entry_page(visit, _found(visit), prompt=None, problem=None)


def _read_prompt(visit: Visit) -> Response:
    """Shows a prompt that the vault keeps; that somebody looked is in the log itself."""
    entry = _found(visit)
    visit.audit("console.read_prompt", entry=entry.sequence)
    try:
        prompt = visit.services.audit.prompt(entry)
    except AuditError as error:
        return _entry_page(visit, entry, prompt=None, problem=f"{error}.")
    return _entry_page(visit, entry, prompt=prompt, problem=None if prompt is not None else "It is not kept any more.")


def _entry_page(visit: Visit, entry: AuditEntry, *, prompt: str | None, problem: str | None) -> Response:
    return visit.page(
        "entry.html",
        "audit",
        entry=entry,
        name={key.id: key.name for key in visit.services.keys.list()}.get(entry.actor),
        details=json.dumps(entry.details, indent=2, ensure_ascii=False, sort_keys=True) if entry.details else None,
        prompt=prompt,
        problem=problem,
    )


def _found(visit: Visit) -> AuditEntry:
    sequence = _sequence(visit.request.path_params["sequence"])
    found = [] if sequence is None else visit.services.audit.entries(before=sequence + 1, limit=1)
    if not found or found[0].sequence != sequence:
        raise HTTPException(404)
    return found[0]


def _sequence(text: str) -> int | None:
    """The number of an entry; None for what is none."""
    return int(text) if text.isascii() and text.isdigit() and int(text) < _MOST_SEQUENCE else None


ROUTES = (
    PageRoute("GET", "/audit", _show),
    PageRoute("POST", "/audit/verify", _verify),
    PageRoute("GET", "/audit/{sequence}", _entry),
    PageRoute("POST", "/audit/{sequence}/prompt", _read_prompt),
)

"""API keys: create, rotate, revoke."""

from __future__ import annotations

from datetime import timedelta

from starlette.responses import Response

from latentguard.service.access import MAX_NAME_CHARS, KeyNotFoundError, KeyRequestError, Scope
from latentguard.service.console.web import PageRoute, Visit
from latentguard.service.database import utc_now
from latentguard.service.errors import RequestError
from latentguard.service.key_admin import KeyAdmin

_LIFETIMES = (7, 30, 90, 365)  # days
_OVERLAPS = ((0, "no time"), (10, "10 minutes"), (60, "an hour"), (1440, "a day"), (10080, "a week"))
_HOME = "/console/keys"


def _show(visit: Visit) -> Response:
    now = utc_now()
    keys = sorted(visit.services.keys.list(), key=lambda key: not key.usable(now))
    return visit.page(
        "keys.html",
        "keys",
        keys=keys,
        now=now,
        max_name=MAX_NAME_CHARS,
        lifetimes=_LIFETIMES,
        overlaps=_OVERLAPS,
    )


def _create(visit: Visit) -> Response:
    scopes = sorted(str(scope) for scope in visit.form.getlist("scope"))
    if not set(scopes) <= {scope.value for scope in Scope}:
        raise RequestError("there is no such scope")
    days = _choice(visit.field("expires"), (0, *_LIFETIMES))
    expires = utc_now() + timedelta(days=days) if days else None
    try:
        key, token = _admin(visit).create(visit.field("name"), [Scope(scope) for scope in scopes], expires)
    except KeyRequestError as error:
        visit.note("bad", f"No key was made: {error}.")
        return visit.see(_HOME)
    visit.note("good", f"The key “{key.name}” is made. Copy its secret now: it is not shown again.", secret=token)
    return visit.see(_HOME)


def _rotate(visit: Visit) -> Response:
    key_id, minutes = visit.field("id"), _choice(visit.field("overlap"), [minutes for minutes, _ in _OVERLAPS])
    try:
        if not visit.confirmed:
            heading = f"Give “{visit.services.keys.find(key_id).name}” a new secret?"
            return visit.ask("keys", heading, "The old one is refused from then on.", button="Rotate", id=key_id)
        key, token = _admin(visit).rotate(key_id, overlap=timedelta(minutes=minutes))
    except (KeyNotFoundError, KeyRequestError) as error:
        return _unchanged(visit, error)
    if key_id == visit.session.key.id:
        visit.renew()
    visit.note("good", f"The key “{key.name}” has a new secret. Copy it now: it is not shown again.", secret=token)
    return visit.see(_HOME)


def _revoke(visit: Visit) -> Response:
    key_id = visit.field("id")
    try:
        if not visit.confirmed:
            heading = f"Revoke “{visit.services.keys.find(key_id).name}”?"
            text = "Whoever uses it is refused from now on, everywhere. This can't be undone."
            return visit.ask("keys", heading, text, button="Revoke", id=key_id)
        key = _admin(visit).revoke(key_id)
    except KeyNotFoundError as error:
        return _unchanged(visit, error)
    visit.note("good", f"The key “{key.name}” is revoked.")
    return visit.see(_HOME)


def _admin(visit: Visit) -> KeyAdmin:
    return KeyAdmin(visit.services.keys, visit.services.audit, visit.session.key.id)


def _unchanged(visit: Visit, error: Exception) -> Response:
    visit.note("bad", f"Nothing was changed: {error}.")
    return visit.see(_HOME)


def _choice(text: str, among: tuple[int, ...] | list[int]) -> int:
    """The number that was chosen, 0 for none."""
    try:
        number = int(text or 0)
    except ValueError:
        number = -1
    if number not in among:
        raise RequestError("a choice of the form is not one of those offered")
    return number


ROUTES = (
    PageRoute("GET", "/keys", _show),
    PageRoute("POST", "/keys", _create),
    PageRoute("POST", "/keys/rotate", _rotate),
    PageRoute("POST", "/keys/revoke", _revoke),
)

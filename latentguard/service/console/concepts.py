"""The concept bank: search, add, remove; each change is previewed on recent traffic before it is made."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.responses import Response

from latentguard.bank import checked_concept, concept_key
from latentguard.errors import ConceptError, PolicyError
from latentguard.records import ConceptEntry
from latentguard.service.console.changes import REFUSALS, Change, apply, undo_of
from latentguard.service.console.web import PageRoute, Visit
from latentguard.service.errors import ConceptNotFoundError, RequestError

_HOME = "/console/concepts"
_SHOWN = 100
_MAX_NAME_CHARS = 200


def _show(visit: Visit) -> Response:
    guard = visit.services.guard
    query, category = visit.query("q"), visit.query("category")
    wanted = concept_key(query)
    found = [
        concept
        for concept in guard.concepts
        if wanted in concept_key(concept.name) and category in ("", concept.category)
    ]
    shown = found if visit.query("all") else found[:_SHOWN]
    return visit.page(
        "concepts.html",
        "concepts",
        query=query,
        chosen=category,
        categories=guard.concepts.categories,
        concepts=shown,
        total=len(found),
        size=len(guard.concepts),
        more=f"{_HOME}?{urlencode({'q': query, 'category': category, 'all': 1})}" if len(shown) < len(found) else None,
        threshold=guard.policy.threshold,
        max_name=_MAX_NAME_CHARS,
        undo=undo_of(visit),
    )


def _preview(visit: Visit) -> Response:
    expected = visit.services.policies.fingerprint
    try:
        change, _ = _change(visit)
        preview = visit.services.preview(add=change.add, remove=change.remove)
    except REFUSALS as error:
        visit.note("bad", f"That can't be done: {error}.")
        return visit.see(_HOME)
    adding = visit.field("action") == "add"
    name = visit.field("name")
    fields = [(field, visit.field(field)) for field in ("action", "name", "category", "threshold")]
    return visit.page(
        "preview.html",
        "concepts",
        heading=f"Add “{name}”?" if adding else f"Remove “{name}”?",
        button="Add it" if adding else "Remove it",
        preview=preview,
        action="/console/concepts",
        back=_HOME,
        fields=[*fields, ("expected", expected)],
    )


def _apply(visit: Visit) -> Response:
    try:
        change, back = _change(visit)
    except REFUSALS as error:
        visit.note("bad", f"That can't be done: {error}.")
        return visit.see(_HOME)
    apply(visit, change, back, visit.field("expected"))
    return visit.see(_HOME)


def _change(visit: Visit) -> tuple[Change, Change]:
    """What a form asks for, and what would take it back."""
    name, action = visit.field("name"), visit.field("action")
    if len(name) > _MAX_NAME_CHARS or len(visit.field("category")) > _MAX_NAME_CHARS:
        raise ConceptError(f"a name has at most {_MAX_NAME_CHARS} characters")
    if action == "add":
        entry = checked_concept(ConceptEntry(name, visit.field("category") or None, _own_threshold(visit)))
        return (
            Change(f"The concept “{entry.name}” was added.", add=[entry]),
            Change(f"The concept “{entry.name}” was removed again.", remove=[entry.name]),
        )
    if action == "remove":
        known = [entry for entry in visit.services.guard.concepts if concept_key(entry.name) == concept_key(name)]
        if not known:
            raise ConceptNotFoundError(f"there is no concept “{name}” in the bank")
        return (
            Change(f"The concept “{known[0].name}” was removed.", remove=[known[0].name]),
            Change(f"The concept “{known[0].name}” was added again.", add=known),
        )
    raise RequestError("the form says neither to add nor to remove a concept")


def _own_threshold(visit: Visit) -> float | None:
    text = visit.field("threshold").replace(",", ".")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise PolicyError("the concept's threshold is not a number") from None


ROUTES = (
    PageRoute("GET", "/concepts", _show),
    PageRoute("POST", "/concepts/preview", _preview),
    PageRoute("POST", "/concepts", _apply),
)

"""Changing what is in force, concepts or threshold: a preview first, and a way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.responses import Response

from latentguard.errors import ConceptError, PolicyError
from latentguard.records import ConceptEntry
from latentguard.service.console.web import PageRoute, Visit
from latentguard.service.errors import ConceptExistsError, ConceptNotFoundError, PreconditionFailedError

REFUSALS = (ConceptExistsError, ConceptNotFoundError, ConceptError, PolicyError, PreconditionFailedError)


@dataclass(frozen=True)
class Change:
    """A change of the bank or the threshold, in words (``text``) and in deed."""

    text: str
    add: Sequence[ConceptEntry] = ()
    remove: Sequence[str] = ()
    threshold: float | None = None

    @property
    def action(self) -> str:
        """What the audit log calls it, as it does over the API."""
        if self.threshold is not None:
            return "policy.threshold"
        return "concepts.add" if self.add else "concepts.remove"


@dataclass(frozen=True)
class Undo:
    """What takes a change back: ``text`` says what was done, ``back`` undoes it while ``fingerprint`` is in force."""

    text: str
    back: Change
    fingerprint: str

    @property
    def page(self) -> str:
        """The page that the change belongs to."""
        return "concepts" if self.back.threshold is None else "threshold"


def apply(visit: Visit, change: Change, back: Change, expected: str | None) -> bool:
    """Put a change in force, and remember the way back; whether it could be made.

    Args:
        expected: the fingerprint of the policy that the change was made for.
    """
    try:
        after = visit.services.change(
            visit.session.key,
            change.action,
            add=change.add,
            remove=change.remove,
            threshold=change.threshold,
            expected=expected,
        )
    except PreconditionFailedError:
        visit.note("bad", "Nothing was changed: somebody else has changed the policy meanwhile. Look at it again.")
        return False
    except REFUSALS as error:
        visit.note("bad", f"Nothing was changed: {error}.")
        return False
    visit.session.undo = Undo(change.text, back, after.fingerprint)
    visit.note("good", f"{change.text} It is in force from now on.")
    return True


def undo_of(visit: Visit) -> Undo | None:
    """What takes back the last change of this session, while that still is the last one of all."""
    undo = visit.session.undo
    return undo if isinstance(undo, Undo) and undo.fingerprint == visit.services.policies.fingerprint else None


def _undo(visit: Visit) -> Response:
    undo = undo_of(visit)
    if undo is None:
        visit.note("warn", "There is nothing to undo: something else was changed since.")
    else:
        again = Change(undo.text, *_reversed(undo.back, visit))
        apply(visit, undo.back, again, undo.fingerprint)
    return visit.see(f"/console/{undo.page if undo else 'overview'}")


def _reversed(change: Change, visit: Visit) -> tuple[Sequence[ConceptEntry], Sequence[str], float | None]:
    """What would take `change` back, were it made now."""
    guard = visit.services.guard
    removed = [entry for entry in guard.concepts if entry.name in change.remove]
    threshold = None if change.threshold is None else guard.policy.threshold
    return removed, [entry.name for entry in change.add], threshold


ROUTES = (PageRoute("POST", "/undo", _undo),)

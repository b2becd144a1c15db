"""The bank and policy in force: changed while the service runs, kept in the database, the same for every process.

What is kept are the changes against what the settings name (model and concepts), so that a new list of concepts in the
settings doesn't undo what was added or removed through the service. Each change is a version of its own, and the
fingerprint of what is in force stands in every audit entry.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any, NamedTuple

import sqlalchemy as sa

from latentguard.bank import checked_concept, concept_key
from latentguard.errors import ConceptError, LatentGuardError
from latentguard.fingerprint import fingerprint, model_fingerprint
from latentguard.guard import LatentGuard
from latentguard.records import ConceptEntry
from latentguard.service.database import METADATA, Database
from latentguard.service.errors import ConceptExistsError, ConceptNotFoundError, PreconditionFailedError
from latentguard.service.traffic import changed
from latentguard.verdict import Verdict

_LOG = logging.getLogger(__name__)
_LOCK = 0x6C67_0010

VERSIONS = sa.Table(
    "policy_versions",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("created", sa.String(32), nullable=False),
    sa.Column("actor", sa.String(64), nullable=False),
    sa.Column("model", sa.String(64), nullable=False),
    sa.Column("changes", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Changes:
    """What differs from the settings: concepts ``added`` and ``removed``, and the ``threshold``, if it was moved."""

    added: tuple[ConceptEntry, ...] = ()
    removed: tuple[str, ...] = ()
    threshold: float | None = None


@dataclass(frozen=True)
class InForce:
    """What decides at one moment: a guard that nobody changes, its fingerprint, the version, and how it came about."""

    guard: LatentGuard
    fingerprint: str
    version: int
    changes: Changes


class Judged(NamedTuple):
    """A verdict, and what was in force when it was given."""

    verdict: Verdict
    in_force: InForce

    @property
    def policy(self) -> str:
        """The fingerprint of the policy that gave it."""
        return self.in_force.fingerprint


class Policies:
    """What is in force, and the one way to change it.

    ::

        policies = Policies(guard, database)
        policies.change(actor="lg-key", add=[ConceptEntry("knife fight", "violence")], expected=policies.fingerprint)
        judged = policies.check(prompts)  # in force from here on

    A change makes a new guard and puts it in the place of the old one, so that a batch is judged by one policy, whose
    fingerprint is known. `guard` itself is left as it is.

    Raises:
        ServiceError: the database can't be reached.
    """

    def __init__(self, guard: LatentGuard, database: Database) -> None:
        database.create(VERSIONS)
        self._base, self._database = guard.fork(), database
        self._model = model_fingerprint(guard)
        self._lock = threading.RLock()
        self._now = InForce(self._base, fingerprint(self._base, self._model), 0, Changes())
        self.refresh()

    @property
    def now(self) -> InForce:
        """What is in force, at one moment."""
        return self._now

    @property
    def guard(self) -> LatentGuard:
        """The guard in force; not to be changed."""
        return self._now.guard

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what is in force: 64 hexadecimal digits over model, concepts and thresholds."""
        return self._now.fingerprint

    def check(self, prompts: Sequence[str]) -> list[Judged]:
        """The verdicts on prompts, in order, with the policy that gave them; errors as `LatentGuard.check_batch`."""
        now = self._now
        return [Judged(verdict, now) for verdict in now.guard.check_batch(prompts)]

    def change(
        self,
        *,
        actor: str,
        add: Sequence[ConceptEntry] = (),
        remove: Sequence[str] = (),
        threshold: float | None = None,
        expected: str | None = None,
        before: Callable[[InForce], None] | None = None,
    ) -> InForce:
        """Puts a change in force, once it is kept in the database; encodes the new concepts, so call it in a thread.

        Args:
            actor: the id of the key that changes.
            expected: the fingerprint that the change was made for; any if None.
            before: called with what will be in force, when nothing but the keeping is left to do; what it raises
                stops the change.

        Raises:
            PreconditionFailedError: something else is in force than `expected`, or another process was faster.
            ConceptExistsError, ConceptNotFoundError, ConceptError, PolicyError: it can't be made; nothing has changed.
            ServiceError: the database can't be reached; nothing has changed.
        """
        with self._lock:
            self.refresh()
            if expected is not None and expected != self.fingerprint:
                raise PreconditionFailedError(f"the policy in force is {self.fingerprint}")
            entries = [checked_concept(entry) for entry in add]
            self._check_known(entries, remove)
            guard = changed(self.guard, add=entries, remove=remove, threshold=threshold)
            if not len(guard.concepts):
                raise ConceptError("without any concept nothing would be blocked; add another one first")
            changes = self._changes(self._now.changes, entries, remove, threshold)
            after = InForce(guard, fingerprint(guard, self._model), self._now.version + 1, changes)
            if before is not None:
                before(after)
            self._keep(after, actor)
            self._now = after
            return after

    def refresh(self) -> bool:
        """Takes over what another process has put in force; whether there was something."""
        with self._lock:
            with self._database.connection() as connection:
                latest = connection.execute(
                    sa.select(VERSIONS).order_by(VERSIONS.c.version.desc()).limit(1)
                ).one_or_none()
            if latest is None or latest.version == self._now.version:
                return False
            changes = _read(latest.changes)
            if latest.model != self._model:
                changes = _for_another_model(changes)
            guard = self._applied(changes)
            self._now = InForce(guard, fingerprint(guard, self._model), latest.version, changes)
            return True

    # --- the parts of a change

    def _check_known(self, add: Sequence[ConceptEntry], remove: Sequence[str]) -> None:
        known = {concept_key(entry.name) for entry in self.guard.concepts}
        for name in remove:
            if concept_key(name) not in known:
                raise ConceptNotFoundError(f"there is no concept {name!r} in the bank")
            known.discard(concept_key(name))
        for entry in add:
            if concept_key(entry.name) in known:
                raise ConceptExistsError(f"the concept {entry.name!r} is in the bank already")
            known.add(concept_key(entry.name))

    def _changes(
        self, before: Changes, add: Sequence[ConceptEntry], remove: Sequence[str], threshold: float | None
    ) -> Changes:
        """The changes against the settings after one more."""
        gone = {concept_key(name) for name in remove}
        of_settings = {concept_key(entry.name): entry for entry in self._base.concepts}
        added = {concept_key(entry.name): entry for entry in before.added if concept_key(entry.name) not in gone}
        removed = {concept_key(name) for name in before.removed} | (gone & of_settings.keys())
        for entry in add:
            key = concept_key(entry.name)
            if of_settings.get(key) == entry:
                removed.discard(key)
            else:
                added[key] = entry
        return Changes(
            added=tuple(added.values()),
            removed=tuple(sorted(of_settings[key].name if key in of_settings else key for key in removed)),
            threshold=before.threshold if threshold is None else threshold,
        )

    def _applied(self, changes: Changes) -> LatentGuard:
        """The guard of the settings after these changes."""
        added = {concept_key(entry.name) for entry in changes.added}
        unwanted = added | {concept_key(name) for name in changes.removed}
        remove = [entry.name for entry in self._base.concepts if concept_key(entry.name) in unwanted]
        return changed(self._base, add=changes.added, remove=remove, threshold=changes.threshold)

    def _keep(self, after: InForce, actor: str) -> None:
        row = {
            "version": after.version,
            "fingerprint": after.fingerprint,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "actor": actor,
            "model": self._model,
            "changes": json.dumps(asdict(after.changes)),
        }
        with self._database.begin(lock=_LOCK) as connection:
            latest = connection.execute(sa.select(sa.func.max(VERSIONS.c.version))).scalar_one()
            if (latest or 0) != after.version - 1:
                raise PreconditionFailedError("another change was made at the same moment")
            connection.execute(VERSIONS.insert(), row)


def _read(text: str) -> Changes:
    try:
        fields: dict[str, Any] = json.loads(text)
        return Changes(
            added=tuple(ConceptEntry(**entry) for entry in fields["added"]),
            removed=tuple(fields["removed"]),
            threshold=fields["threshold"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise LatentGuardError("the policy kept in the database can't be read") from error


def _for_another_model(changes: Changes) -> Changes:
    """The same changes without thresholds, which are scores of a model and mean nothing for another."""
    _LOG.warning("the policy was kept for another model: its concepts are in force, its thresholds are the settings'")
    return Changes(tuple(replace(entry, threshold=None) for entry in changes.added), changes.removed, None)

"""The parts of a running service; and the one way to screen: limited, batched, recorded, then answered."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentguard.arrays import run_in_one_thread
from latentguard.encoders.base import available_cores
from latentguard.errors import LatentGuardError, ServiceError
from latentguard.guard import LatentGuard, scorable
from latentguard.records import ConceptEntry, read_concepts
from latentguard.service.access import ApiKey, KeyStore
from latentguard.service.alerts import Alert, Alerts
from latentguard.service.anomaly import Monitor
from latentguard.service.audit import AuditLog, open_audit
from latentguard.service.audit_records import AuditEvent
from latentguard.service.batching import Batcher
from latentguard.service.database import Database
from latentguard.service.errors import AuditUnavailableError, TooManyPromptsError
from latentguard.service.jobs import Jobs
from latentguard.service.limits import RateLimiter
from latentguard.service.metrics import Metrics
from latentguard.service.policies import InForce, Judged, Policies
from latentguard.service.settings import Settings
from latentguard.service.traffic import Preview, Traffic
from latentguard.verdict import Verdict

if TYPE_CHECKING:
    from latentguard.service.classifiers import Classifiers
    from latentguard.service.generation import Generator

_LOG = logging.getLogger(__name__)

_RECORDS_WAITING = 65_536
_FOLLOW_SECONDS = 1.0
_CHARACTERS_A_WINDOW = 500


@dataclass(frozen=True)
class Record:
    """A verdict to write down before it is answered: who asked, for what, with which words beside it."""

    key_id: str
    action: str
    prompt: str
    judged: Judged
    details: dict[str, Any]


@dataclass
class Services:
    """Everything that a route, the console or an agent's tool works with."""

    settings: Settings
    database: Database
    keys: KeyStore
    limiter: RateLimiter
    audit: AuditLog
    alerts: Alerts
    monitor: Monitor
    policies: Policies
    jobs: Jobs
    metrics: Metrics
    traffic: Traffic
    pipeline: Generator | None = None
    classifiers: Classifiers | None = None
    draining: bool = False
    batcher: Batcher[str, Judged] = field(init=False)
    recorder: Batcher[Record, None] = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.batcher = Batcher(
            self.policies.check,
            max_batch=settings.max_batch,
            wait_ms=settings.batch_wait_ms,
            queue_limit=settings.queue_limit,
            check=scorable,
            weigh=weight,
            observe=self.metrics.batch,
            threads=_passes_at_once(settings, self.guard),
            # Passes side by side use the cores better than one whose products are shared out among them.
            prepare=run_in_one_thread,
        )
        self.recorder = Batcher(self.write_down, max_batch=settings.max_batch, wait_ms=0, queue_limit=_RECORDS_WAITING)
        self.metrics.watch_queue(lambda: self.batcher.waiting)

    @property
    def guard(self) -> LatentGuard:
        """The guard in force, not to be changed; `policies` changes what is in force."""
        return self.policies.guard

    async def screen(
        self,
        key: ApiKey,
        prompts: Sequence[str],
        *,
        action: str = "screen",
        deadline: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> list[Judged]:
        """The verdicts on prompts, in order, each in the audit log when this returns.

        Args:
            action: what the audit log calls it.
            deadline: by `time.monotonic`; by default the settings' time limit from now.
            details: what the audit log keeps beside it, such as the request's id.

        Raises:
            TooManyPromptsError: more prompts than a request may have, or a longer one.
            RateLimitedError, QueueFullError, DeadlineError, ClosingError: not now.
            PromptError: a prompt can't be scored.
            AuditUnavailableError: a verdict couldn't be written down.
        """
        self.check_size(prompts, self.settings.max_prompts)
        self.limiter.take(key.id, sum(map(weight, prompts)))
        until = time.monotonic() + self.settings.request_timeout_s if deadline is None else deadline
        judged = await self.batcher.submit(prompts, until)
        records = [
            Record(key.id, action, prompt, each, details or {}) for prompt, each in zip(prompts, judged, strict=True)
        ]
        await self.recorder.submit(records, until)
        return judged

    def check_size(self, prompts: Sequence[str], most: int) -> None:
        """Raises TooManyPromptsError for more than `most` prompts, or one of more characters than allowed."""
        if len(prompts) > most:
            raise TooManyPromptsError(f"{len(prompts):,} prompts; the limit is {most:,}")
        longest = max(map(len, prompts), default=0)
        if longest > self.settings.max_prompt_chars:
            raise TooManyPromptsError(f"{longest:,} characters; the limit is {self.settings.max_prompt_chars:,}")

    def write_down(self, records: Sequence[Record]) -> list[None]:
        """Audit, then anomaly monitor, recent traffic and metrics; blocks until the audit is on disk.

        Raises:
            AuditUnavailableError: the audit log can't be written; nothing may be answered.
        """
        self.append([_event(record) for record in records])
        for record in records:
            verdict = record.judged.verdict
            self.traffic.record([verdict], record.key_id, record.judged.policy)
            self.metrics.verdict(verdict)
            self._watch(record.key_id, record.prompt, verdict)
        return [None] * len(records)

    def append(self, events: Sequence[AuditEvent]) -> None:
        """Writes to the audit log; AuditUnavailableError if it can't. Blocks, so not on the event loop."""
        try:
            self.audit.append(events)
        except ServiceError as error:
            _LOG.error("the audit log can't be written: %s", type(error).__name__)
            raise AuditUnavailableError("the audit log can't be written") from error

    def preview(
        self, *, add: Sequence[ConceptEntry] = (), remove: Sequence[str] = (), threshold: float | None = None
    ) -> Preview:
        """What a change would do to recent traffic; errors as `Traffic.preview`. Takes seconds: call it in a thread."""
        now = self.policies.now
        return self.traffic.preview(now.guard, now.fingerprint, add=add, remove=remove, threshold=threshold)

    def change(
        self,
        key: ApiKey,
        action: str,
        *,
        add: Sequence[ConceptEntry] = (),
        remove: Sequence[str] = (),
        threshold: float | None = None,
        expected: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> InForce:
        """Changes what is in force, once the audit log has it. Blocks, so not on the event loop.

        Args:
            action: what the audit log calls it.
            expected: the fingerprint that the change was made for; any if None.
            details: what the audit log keeps beside the change itself.

        Raises:
            AuditUnavailableError: the audit log can't be written; nothing has changed.
            Others as `Policies.change`.
        """
        what = {"added": [entry.name for entry in add], "removed": list(remove), "threshold": threshold}
        given = {name: value for name, value in what.items() if value not in (None, [])}

        def write_down(after: InForce) -> None:
            self.append([AuditEvent(key.id, action, policy=after.fingerprint, details=given | (details or {}))])

        return self.policies.change(
            actor=key.id, add=add, remove=remove, threshold=threshold, expected=expected, before=write_down
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While this lasts, changes of the policy by other processes are taken over; at its end what was accepted is
        finished, within the settings' time, and nothing more is taken."""
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait([following])
            await self.jobs.close(self.settings.shutdown_grace_s)
            await self.batcher.close()
            await self.recorder.close()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            try:
                await asyncio.to_thread(self.policies.refresh)
            except LatentGuardError as error:
                _LOG.error("the policy in the database can't be read: %s", type(error).__name__)

    def _watch(self, key_id: str, prompt: str, verdict: Verdict) -> None:
        alerts: list[Alert] = []
        with suppress(ServiceError):  # its records fail with the database, as the next entry of the audit log will
            alerts = self.monitor.observe(key_id, prompt, verdict, time.time())
        for alert in alerts:
            self.metrics.alerts.labels(alert.kind).inc()


def _passes_at_once(settings: Settings, guard: LatentGuard) -> int:
    return settings.screening_threads or (available_cores() if guard.encoder.device.type == "cpu" else 1)


def weight(prompt: str) -> int:
    """What a prompt costs beside a short one: an encoder reads a long one in many windows."""
    return 1 + len(prompt) // _CHARACTERS_A_WINDOW


def _event(record: Record) -> AuditEvent:
    verdict = record.judged.verdict
    return AuditEvent(
        actor=record.key_id,
        action=record.action,
        policy=record.judged.policy,
        verdict=verdict.decision,
        score=verdict.score,
        concept=verdict.concept,
        prompt=record.prompt,
        details=record.details,
    )


@contextmanager
def open_services(
    settings: Settings, *, guard: LatentGuard | None = None, pipeline: Callable[..., Any] | None = None
) -> Iterator[Services]:
    """The services of these settings, closed at the end.

    Args:
        guard: instead of the one that the settings name; it is left as it is.
        pipeline: an image pipeline of diffusers, instead of the one that the settings name.

    Raises:
        ServiceError and others of LatentGuardError, PrivacyError: a part can't be started; the message says which.
    """
    settings.make_data_dir()
    with ExitStack() as stack:
        database = Database(settings.database_location())
        stack.callback(database.close)
        keys = KeyStore(database, lockout_failures=settings.lockout_failures, lockout_s=settings.lockout_s)
        audit = open_audit(settings, database)
        if guard is None:
            concepts = None if settings.concepts is None else read_concepts(settings.concepts)
            guard = LatentGuard.from_pretrained(settings.model, concepts=concepts, threads=1)
        alerts = Alerts(database, audit)
        yield Services(
            settings=settings,
            database=database,
            keys=keys,
            limiter=RateLimiter(settings.rate_limit_per_minute),
            audit=audit,
            alerts=alerts,
            monitor=Monitor(alerts),
            policies=Policies(guard, database),
            jobs=Jobs(database),
            metrics=Metrics(),
            traffic=Traffic(settings.recent_prompts),
            pipeline=_generator(settings, pipeline, stack),
            classifiers=_classifiers(settings, stack),
        )


def _generator(settings: Settings, pipe: Callable[..., Any] | None, stack: ExitStack) -> Generator | None:
    from latentguard.service.generation import Generator, load_pipeline

    if pipe is None:
        if settings.pipeline is None:
            return None
        pipe = load_pipeline(settings.pipeline)
    generator = Generator(pipe, "" if settings.pipeline is None else Path(settings.pipeline).name)
    stack.callback(generator.close)
    return generator


def _classifiers(settings: Settings, stack: ExitStack) -> Classifiers | None:
    if not settings.classifiers:
        return None
    from latentguard.service.classifiers import Classifiers

    classifiers = Classifiers(settings.classifiers)
    stack.callback(classifiers.close)
    return classifiers

"""Long work that a client doesn't wait for: handed in, watched, fetched, cancelled.

A job's record is in the database and outlives the process; its prompts never are. A job whose process died says
"interrupted" once its last sign of life is too old.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import sqlalchemy as sa

from latentguard.errors import ServiceError
from latentguard.service.database import METADATA, Database
from latentguard.service.errors import BusyError, ClosingError, JobNotDoneError, JobNotFoundError, told

_LOG = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
STATES: tuple[State, ...] = get_args(State)

_RUNNING = 2
_QUEUED = 64
_SIGN_OF_LIFE = 2.0
_DEAD_AFTER = 10.0
_KEPT = 24 * 3600.0

JOBS = sa.Table(
    "jobs",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("key_id", sa.String(64), nullable=False, index=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.Float(53), nullable=False, index=True),
    sa.Column("updated", sa.Float(53), nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("error", sa.String(64), nullable=True),
    sa.Column("media_type", sa.String(64), nullable=True),
    sa.Column("result", sa.LargeBinary, nullable=True),
)
_RECORD = [column for column in JOBS.c if column.name != "result"]


@dataclass(frozen=True)
class Job:
    """A job's record.

    ``done`` of ``total`` steps are over; ``created`` and ``updated`` are seconds since 1970; ``error`` is the code of
    what ended it, if something did.
    """

    id: str
    key_id: str
    kind: str
    state: State
    created: float
    updated: float
    done: int = 0
    total: int = 1
    error: str | None = None
    media_type: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state not in ("queued", "running")


@dataclass(frozen=True)
class Result:
    """What a job made."""

    content: bytes
    media_type: str

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Result:
        """A result in JSON."""
        return cls(json.dumps(content, allow_nan=False).encode(), "application/json")


@dataclass
class Progress:
    """How far a running job is: its work sets ``done``."""

    done: int = 0


@dataclass
class _Live:
    job: Job
    progress: Progress
    task: asyncio.Task[None] | None = None


class Jobs:
    """The jobs of this process, run a few at a time; and the records of all.

    A key sees its own jobs only. Records and results are deleted a day after the last change.

    Raises, at every call:
        ServiceError: the database can't be reached.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        database.create(JOBS)
        self._database, self._clock = database, clock
        self._live: dict[str, _Live] = {}
        self._room = asyncio.Semaphore(_RUNNING)
        self._signs: asyncio.Task[None] | None = None
        self._closing = False

    async def submit(self, key_id: str, kind: str, total: int, work: Callable[[Progress], Awaitable[Result]]) -> Job:
        """Takes a job of `total` steps; `work` runs as soon as there is room.

        Raises:
            BusyError: too many jobs wait already.
            ClosingError: the service is shutting down.
        """
        if self._closing:
            raise ClosingError("the service is shutting down")
        if len(self._live) >= _RUNNING + _QUEUED:
            raise BusyError(f"{len(self._live)} jobs are waiting", retry_after=10)
        now = self._clock()
        job = Job(secrets.token_hex(16), key_id, kind, "queued", now, now, total=total)
        live = _Live(job, Progress())
        self._live[job.id] = live
        try:
            await asyncio.to_thread(self._insert, job)
        except BaseException:
            del self._live[job.id]
            raise
        live.task = asyncio.create_task(self._run(live, work))
        await asyncio.sleep(0)  # a task that is cancelled before it began would never record its end
        if self._signs is None or self._signs.done():
            self._signs = asyncio.create_task(self._give_signs())
        return job

    async def get(self, key_id: str, job_id: str) -> Job:
        """A job of this key; JobNotFoundError if there is none."""
        live = self._live.get(job_id)
        if live is not None and live.job.key_id == key_id:
            return replace(live.job, done=live.progress.done)
        return self._judged(await asyncio.to_thread(self._select, key_id, job_id))

    async def list(self, key_id: str) -> Sequence[Job]:
        """The jobs of this key, newest first."""
        jobs = await asyncio.to_thread(self._select_all, key_id)
        live = {each.job.id: replace(each.job, done=each.progress.done) for each in self._live.values()}
        return [live.get(job.id) or self._judged(job) for job in jobs]

    async def result(self, key_id: str, job_id: str) -> Result:
        """What a job made; JobNotFoundError if there is none, JobNotDoneError if it has no result, or not yet."""
        job = await self.get(key_id, job_id)
        if job.state != "done":
            raise JobNotDoneError(f"the job is {job.state}")
        return await asyncio.to_thread(self._select_result, job)

    async def cancel(self, key_id: str, job_id: str) -> Job:
        """Ends a job of this key, if it isn't over; JobNotFoundError if there is none."""
        job = await self.get(key_id, job_id)
        live = self._live.get(job_id)
        if job.over or live is None or live.task is None:
            return job
        live.task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([live.task])
        return await self.get(key_id, job_id)

    async def close(self, grace: float) -> None:
        """Takes nothing more, gives running jobs `grace` seconds, and ends the others as interrupted."""
        self._closing = True
        tasks = [live.task for live in self._live.values() if live.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel("interrupted")
            if late:
                await asyncio.wait(late)
        if self._signs is not None:
            self._signs.cancel()
            with suppress(asyncio.CancelledError):
                await self._signs

    # --- a job's life

    async def _run(self, live: _Live, work: Callable[[Progress], Awaitable[Result]]) -> None:
        result: Result | None = None
        try:
            async with self._room:
                live.job = replace(live.job, state="running", updated=self._clock())
                await asyncio.to_thread(self._update, live.job)
                result = await work(live.progress)
            end = replace(live.job, state="done", media_type=result.media_type)
            live.progress.done = live.job.total
        except asyncio.CancelledError as error:
            end = replace(live.job, state="interrupted" if "interrupted" in error.args else "cancelled")
        except Exception as error:
            problem = told(error).problem
            if problem.status >= 500:
                # As of requests: the log has the place, but not the message, which may quote what was sent.
                frames = "".join(traceback.format_tb(error.__traceback__))
                _LOG.error("job %s failed: %s\n%s", live.job.id, type(error).__name__, frames)
            end = replace(live.job, state="failed", error=problem.code)
        end = replace(end, done=live.progress.done, updated=self._clock())
        try:
            await asyncio.shield(asyncio.to_thread(self._update, end, None if result is None else result.content))
        except ServiceError:
            _LOG.error("job %s: its end could not be recorded", end.id)
        finally:
            live.job = end
            self._live.pop(end.id, None)

    async def _give_signs(self) -> None:
        """While jobs are live, keeps their records from looking dead."""
        while self._live:
            await asyncio.sleep(_SIGN_OF_LIFE)
            for live in list(self._live.values()):
                job = replace(live.job, done=live.progress.done, updated=self._clock())
                with suppress(ServiceError):
                    await asyncio.to_thread(self._touch, job)

    def _judged(self, job: Job) -> Job:
        dead = not job.over and self._clock() - job.updated > _DEAD_AFTER
        return replace(job, state="interrupted") if dead else job

    # --- the records

    def _insert(self, job: Job) -> None:
        with self._database.begin() as connection:
            connection.execute(JOBS.delete().where(JOBS.c.updated < self._clock() - _KEPT))
            connection.execute(JOBS.insert(), vars(job))

    def _update(self, job: Job, result: bytes | None = None) -> None:
        with self._database.begin() as connection:
            connection.execute(JOBS.update().where(JOBS.c.id == job.id).values(**vars(job), result=result))

    def _touch(self, job: Job) -> None:
        alive = JOBS.c.state.in_(("queued", "running"))
        with self._database.begin() as connection:
            connection.execute(
                JOBS.update().where(JOBS.c.id == job.id, alive).values(done=job.done, updated=job.updated)
            )

    def _select(self, key_id: str, job_id: str) -> Job:
        with self._database.connection() as connection:
            row = connection.execute(
                sa.select(*_RECORD).where(JOBS.c.id == job_id, JOBS.c.key_id == key_id)
            ).one_or_none()
        if row is None:
            raise JobNotFoundError("there is no such job")
        return Job(**row._mapping)

    def _select_all(self, key_id: str) -> Sequence[Job]:
        with self._database.connection() as connection:
            rows = connection.execute(
                sa.select(*_RECORD).where(JOBS.c.key_id == key_id).order_by(JOBS.c.created.desc()).limit(1000)
            ).all()
        return [Job(**row._mapping) for row in rows]

    def _select_result(self, job: Job) -> Result:
        with self._database.connection() as connection:
            content = connection.execute(sa.select(JOBS.c.result).where(JOBS.c.id == job.id)).scalar_one_or_none()
        if content is None or job.media_type is None:
            raise JobNotFoundError("there is no such job")
        return Result(content, job.media_type)

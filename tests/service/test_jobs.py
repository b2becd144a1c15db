"""Long work: progress, results for their key alone, cancelling, and what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from latentguard.service.database import Database
from latentguard.service.errors import (
    BusyError,
    ClosingError,
    JobNotDoneError,
    JobNotFoundError,
    RequestError,
)
from latentguard.service.jobs import Jobs, Progress, Result


async def reaches(jobs: Jobs, job_id: str, state: str) -> Any:
    """The job, once it is in a state."""
    for _ in range(500):
        job = await jobs.get("key", job_id)
        if job.state == state:
            return job
        await asyncio.sleep(0.01)
    raise AssertionError(f"the job is {job.state}, not {state}")


def waiting(event: asyncio.Event, done: int = 0) -> Callable[[Progress], Awaitable[Result]]:
    async def work(progress: Progress) -> Result:
        progress.done = done
        await event.wait()
        return Result.of({"answer": 42})

    return work


def test_a_job_runs_and_its_result_can_be_fetched(database: Database) -> None:
    async def main() -> None:
        jobs, go = Jobs(database), asyncio.Event()
        job = await jobs.submit("key", "screen", 10, waiting(go, done=4))
        assert (job.state, job.done, job.total) == ("queued", 0, 10)
        running = await reaches(jobs, job.id, "running")
        await asyncio.sleep(0.01)
        assert (await jobs.get("key", job.id)).done == 4
        with pytest.raises(JobNotDoneError):
            await jobs.result("key", running.id)
        go.set()
        done = await reaches(jobs, job.id, "done")
        assert (done.done, done.over, done.error) == (10, True, None)
        assert await jobs.result("key", job.id) == Result(b'{"answer": 42}', "application/json")
        assert [each.id for each in await jobs.list("key")] == [job.id]
        await jobs.close(1)

    asyncio.run(main())


def test_a_key_sees_its_own_jobs_alone(database: Database) -> None:
    async def main() -> None:
        jobs, go = Jobs(database), asyncio.Event()
        job = await jobs.submit("key", "screen", 1, waiting(go))
        for attempt in (jobs.get, jobs.result, jobs.cancel):
            with pytest.raises(JobNotFoundError):
                await attempt("another", job.id)
        go.set()
        await reaches(jobs, job.id, "done")
        for attempt in (jobs.get, jobs.result, jobs.cancel):
            with pytest.raises(JobNotFoundError):
                await attempt("another", job.id)
        assert await jobs.list("another") == []
        await jobs.close(1)

    asyncio.run(main())


@pytest.mark.parametrize("state", ["queued", "running"], ids=["queued", "running"])
def test_a_job_can_be_cancelled(state: str, database: Database) -> None:
    async def main() -> None:
        jobs, never = Jobs(database), asyncio.Event()
        before = [await jobs.submit("key", "screen", 1, waiting(never)) for _ in range(2 if state == "queued" else 0)]
        for job in before:
            await reaches(jobs, job.id, "running")
        job = await jobs.submit("key", "screen", 1, waiting(never))
        await reaches(jobs, job.id, state)
        assert (await jobs.cancel("key", job.id)).state == "cancelled"
        assert (await jobs.cancel("key", job.id)).state == "cancelled"
        with pytest.raises(JobNotDoneError):
            await jobs.result("key", job.id)
        await jobs.close(0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "code"),
    [(RequestError("no"), "invalid_request"), (ZeroDivisionError("secret"), "internal_error")],
    ids=["known", "unknown"],
)
def test_a_failed_job_tells_the_code_and_nothing_more(error: Exception, code: str, database: Database) -> None:
    async def work(_: Progress) -> Result:
        raise error

    async def main() -> None:
        jobs = Jobs(database)
        job = await jobs.submit("key", "screen", 1, work)
        failed = await reaches(jobs, job.id, "failed")
        assert failed.error == code
        await jobs.close(1)

    asyncio.run(main())


def test_a_job_whose_process_died_says_interrupted(database: Database) -> None:
    now = [1000.0]

    async def main() -> str:
        jobs = Jobs(database, clock=lambda: now[0])
        job = await jobs.submit("key", "screen", 1, waiting(asyncio.Event()))
        await reaches(Jobs(database, clock=lambda: now[0]), job.id, "running")  # as the database has it
        return job.id  # the loop ends with it, as a crash would end it: nothing is recorded

    async def kept_alive() -> None:
        jobs = Jobs(database, clock=lambda: now[0])
        assert (await jobs.get("key", job_id)).state == "running"
        now[0] += 60
        assert (await jobs.get("key", job_id)).state == "interrupted"
        assert [job.state for job in await jobs.list("key")] == ["interrupted"]

    loop = asyncio.new_event_loop()
    job_id = loop.run_until_complete(main())
    loop.run_until_complete(asyncio.sleep(0))
    asyncio.run(kept_alive())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.2))
    loop.close()


def test_at_the_end_running_jobs_get_their_time_and_no_more(database: Database) -> None:
    async def main() -> None:
        jobs, go, never = Jobs(database), asyncio.Event(), asyncio.Event()
        finishing = await jobs.submit("key", "screen", 1, waiting(go))
        endless = await jobs.submit("key", "screen", 1, waiting(never))
        await reaches(jobs, endless.id, "running")
        asyncio.get_running_loop().call_later(0.05, go.set)
        await jobs.close(0.3)
        assert (await jobs.get("key", finishing.id)).state == "done"
        assert (await jobs.get("key", endless.id)).state == "interrupted"
        with pytest.raises(ClosingError):
            await jobs.submit("key", "screen", 1, waiting(go))

    asyncio.run(main())


def test_too_many_jobs_are_refused(database: Database) -> None:
    async def main() -> None:
        jobs, go = Jobs(database), asyncio.Event()
        for _ in range(66):
            await jobs.submit("key", "screen", 1, waiting(go))
        with pytest.raises(BusyError):
            await jobs.submit("key", "screen", 1, waiting(go))
        await jobs.close(0)

    asyncio.run(main())


def test_old_records_are_deleted(database: Database) -> None:
    now = [1000.0]

    async def main() -> None:
        jobs, go = Jobs(database, clock=lambda: now[0]), asyncio.Event()
        go.set()
        old = await jobs.submit("key", "screen", 1, waiting(go))
        await reaches(jobs, old.id, "done")
        now[0] += 2 * 24 * 3600
        await jobs.submit("key", "screen", 1, waiting(go))
        with pytest.raises(JobNotFoundError):
            await jobs.get("key", old.id)
        await jobs.close(1)

    asyncio.run(main())

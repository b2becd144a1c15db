"""Dynamic batching: concurrent requests joined into one pass of the encoder."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from latentguard.errors import ServiceError
from latentguard.service.errors import BusyError, ClosingError, DeadlineError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MEMORY = 0.8  # how much of the old estimate of the time per item a new batch leaves


class QueueFullError(BusyError):
    """As many items wait as may; ``retry_after`` [s] is how long the batcher needs for them."""


@dataclass(eq=False)
class _Request(Generic[Item, Result]):
    """What one call handed in; its items may be spread over several batches."""

    items: Sequence[Item]
    done: asyncio.Future[list[Result]]
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    results: list[Result] = field(default_factory=list)


class Batcher(Generic[Item, Result]):
    """Joins the items of concurrent calls into batches for `work`, which runs in one thread of the batcher's own.

    ::

        batcher = Batcher(guard.check_batch, max_batch=64, wait_ms=2, queue_limit=1024)
        verdicts = await batcher.submit(prompts, deadline=time.monotonic() + 30)

    A batch starts when it is full, or `wait_ms` after its first item came; while one is worked on, the next gathers.
    Requests take turns: one whose items don't fit into a batch gives the others after those that wait, so that a
    large request doesn't keep small ones waiting. An item that `check` raises for fails its own request alone, before
    anything is joined; what `work` raises fails all requests of the batch.

    Args:
        work: gives a result for each of the items, in order; called in the thread.
        max_batch: the most weight of a batch; a heavier item is a batch of its own.
        wait_ms: how long the first item of a batch waits for others.
        queue_limit: how many items may wait.
        check: raises for an item that can't be worked on; called in the thread, with the item and its place.
        weigh: the weight of an item, which is 1 without it.
        observe: told of each batch's size and its duration [s].
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        max_batch: int,
        wait_ms: float,
        queue_limit: int,
        check: Callable[[Item, int], object] | None = None,
        weigh: Callable[[Item], int] | None = None,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._work, self._check, self._weigh, self._observe = work, check, weigh, observe
        self._max_batch, self._wait = max_batch, wait_ms / 1000
        self._queue_limit = queue_limit
        self._queue: deque[_Request[Item, Result]] = deque()
        self._waiting = 0
        self._seconds_per_item = 0.01
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._runner: asyncio.Task[None] | None = None
        self._arrival = asyncio.Event()
        self._closing = False

    @property
    def waiting(self) -> int:
        """How many items wait for a batch."""
        return self._waiting

    @property
    def full(self) -> bool:
        """Whether one more item would be refused."""
        return self._waiting >= self._queue_limit

    async def submit(self, items: Sequence[Item], deadline: float | None = None) -> list[Result]:
        """The results for `items`, in order.

        Args:
            deadline: by `time.monotonic`; items of a request that is over are not worked on.

        Raises:
            QueueFullError: there is no room for them all.
            DeadlineError: the deadline came first.
            ClosingError: the batcher was closed.
            What `check` and `work` raise.
        """
        if self._closing:
            raise ClosingError("the service is shutting down")
        if not items:
            return []
        # A request of more items than the queue holds is let in when nothing waits, or it never could be.
        if self._waiting and self._waiting + len(items) > self._queue_limit:
            raise QueueFullError(f"{self._waiting} prompts are waiting", self._time_for(self._waiting))
        request = _Request[Item, Result](items, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._waiting += len(items)
        self._start()
        left = None if deadline is None else deadline - time.monotonic()
        try:
            return await asyncio.wait_for(request.done, left)
        except asyncio.TimeoutError:
            raise DeadlineError("the time for this request is over") from None
        finally:
            self._forget(request)

    async def close(self) -> None:
        """Works on what waits, and takes nothing more."""
        self._closing = True
        self._arrival.set()
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    # --- the loop

    def _start(self) -> None:
        self._arrival.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._arrival.clear()
                await self._arrival.wait()
            await self._gather()
            batch = self._take()
            if not batch:
                continue
            started = time.monotonic()
            try:
                faults = {} if self._check is None else await loop.run_in_executor(self._thread, self._faults, batch)
                await self._work_on([part for part in batch if id(part[0]) not in faults])
            except Exception as error:
                faults = {id(request): error for request, _ in batch}
            for request, _ in batch:
                fault = faults.get(id(request))
                if fault is not None and not request.done.done():
                    request.done.set_exception(fault)
            self._timed(sum(len(items) for _, items in batch), time.monotonic() - started)

    async def _gather(self) -> None:
        """Waits until the batch is full, or its first item has waited long enough."""
        until = self._queue[0].arrived + self._wait
        while 0 < self._waiting < self._max_batch and not self._closing and (left := until - time.monotonic()) > 0:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[tuple[_Request[Item, Result], Sequence[Item]]]:
        """The next batch: requests, with those of their items that are in it."""
        batch: list[tuple[_Request[Item, Result], Sequence[Item]]] = []
        room = self._max_batch
        for _ in range(len(self._queue)):
            request = self._queue.popleft()
            until = request.taken
            while until < len(request.items):
                weight = 1 if self._weigh is None else self._weigh(request.items[until])
                if weight > room and (batch or until > request.taken):
                    room = 0
                    break
                room, until = room - weight, until + 1
            items = request.items[request.taken : until]
            if items:
                batch.append((request, items))
            request.taken = until
            self._waiting -= len(items)
            if until < len(request.items):
                # One that had its turn goes to the end, one that had none keeps its place.
                self._queue.append(request) if items else self._queue.appendleft(request)
            if room <= 0:
                break
        return batch

    def _faults(self, batch: Sequence[tuple[_Request[Item, Result], Sequence[Item]]]) -> dict[int, Exception]:
        """What is wrong with requests, by their id."""
        faults: dict[int, Exception] = {}
        for request, items in batch:
            first = request.taken - len(items)
            try:
                for place, item in enumerate(items, start=first):
                    if self._check is not None:
                        self._check(item, place)
            except Exception as error:
                faults[id(request)] = error
        return faults

    async def _work_on(self, batch: Sequence[tuple[_Request[Item, Result], Sequence[Item]]]) -> None:
        items = [item for _, part in batch for item in part]
        if not items:
            return
        results = list(await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items))
        if len(results) != len(items):
            raise ServiceError(f"{len(results)} results for {len(items)} items")
        place = 0
        for request, part in batch:
            request.results += results[place : place + len(part)]
            place += len(part)
            if len(request.results) == len(request.items) and not request.done.done():
                request.done.set_result(request.results)

    def _forget(self, request: _Request[Item, Result]) -> None:
        """Takes out what is left of a request that nobody awaits any more, or of which an item failed."""
        if request.taken < len(request.items):
            self._queue.remove(request)
            self._waiting -= len(request.items) - request.taken
            request.taken = len(request.items)

    def _timed(self, items: int, seconds: float) -> None:
        self._seconds_per_item = _MEMORY * self._seconds_per_item + (1 - _MEMORY) * seconds / items
        if self._observe is not None:
            self._observe(items, seconds)

    def _time_for(self, items: int) -> float:
        return float(max(1, math.ceil(items * self._seconds_per_item)))

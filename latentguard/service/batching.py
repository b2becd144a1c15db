"""Dynamic batching: concurrent requests joined into one pass of the encoder."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from latentguard.errors import ServiceError
from latentguard.service.errors import BusyError, ClosingError, DeadlineError

Item = TypeVar("Item")
Result = TypeVar("Result")

_MEMORY = 0.8  # how much of the old estimate of the time per item a new batch leaves


class QueueFullError(BusyError):
    """As many items wait as may; ``retry_after`` [s] is how long the batcher needs for them."""


@dataclass(eq=False)
class _Request(Generic[Item, Result]):
    """What one call handed in; its items may be spread over several batches, worked on at once."""

    items: Sequence[Item]
    done: asyncio.Future[list[Result]]
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    results: dict[int, Result] = field(default_factory=dict)

    def put(self, first: int, results: Sequence[Result]) -> None:
        """Takes the results of the items from `first` on; the last to come make the answer."""
        self.results.update(enumerate(results, start=first))
        if len(self.results) == len(self.items) and not self.done.done():
            self.done.set_result([self.results[place] for place in range(len(self.items))])


class _Part(NamedTuple, Generic[Item, Result]):
    """Items of a request that are in one batch; `first` is the place of the first of them in the request."""

    request: _Request[Item, Result]
    first: int
    items: Sequence[Item]


class Batcher(Generic[Item, Result]):
    """Joins the items of concurrent calls into batches for `work`, which runs in threads of the batcher's own.

    ::

        batcher = Batcher(guard.check_batch, max_batch=64, wait_ms=2, queue_limit=1024)
        verdicts = await batcher.submit(prompts, deadline=time.monotonic() + 30)

    A batch starts when it is full, or `wait_ms` after its first item came; while all threads work, the next gathers.
    Requests take turns: one whose items don't fit into a batch gives the others after those that wait, so that a
    large request doesn't keep small ones waiting. An item that `check` raises for fails its own request alone, before
    anything is joined; what `work` raises fails all requests of the batch.

    Args:
        work: gives a result for each of the items, in order; called in a thread.
        max_batch: the most weight of a batch; a heavier item is a batch of its own.
        wait_ms: how long the first item of a batch waits for others.
        queue_limit: how many items may wait.
        check: raises for an item that can't be worked on; called in a thread, with the item and its place.
        weigh: the weight of an item, which is 1 without it.
        observe: told of each batch's size and its duration [s].
        threads: how many batches are worked on at once. prepare: called once in each thread, before anything else.
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
        threads: int = 1,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._work, self._check, self._weigh, self._observe = work, check, weigh, observe
        self._max_batch, self._wait = max_batch, wait_ms / 1000
        self._queue_limit = queue_limit
        self._queue: deque[_Request[Item, Result]] = deque()
        self._waiting = 0
        self._seconds_per_item = 0.01
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="batcher", initializer=prepare)
        self._free, self._parallel = asyncio.Semaphore(threads), threads
        self._running: set[asyncio.Task[None]] = set()
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
        await asyncio.gather(*self._running)
        self._threads.shutdown()

    # --- the loop

    def _start(self) -> None:
        self._arrival.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            while not self._queue:
                if self._closing:
                    return
                self._arrival.clear()
                await self._arrival.wait()
            await self._free.acquire()
            if self._queue:
                await self._gather()
            batch = self._take()
            if not batch:
                self._free.release()
                continue
            running = asyncio.get_running_loop().create_task(self._answer(batch))
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _answer(self, batch: list[_Part[Item, Result]]) -> None:
        """Works on a batch in a thread, and tells those who wait for it how that ended."""
        started = time.monotonic()
        try:
            faults, results = await asyncio.get_running_loop().run_in_executor(self._threads, self._worked, batch)
        except Exception as error:
            faults, results = {id(part.request): error for part in batch}, []
        finally:
            self._free.release()
        left = iter(results)
        for part in batch:
            fault = faults.get(id(part.request))
            if fault is None:
                part.request.put(part.first, [next(left) for _ in part.items])
            elif not part.request.done.done():
                part.request.done.set_exception(fault)
        self._timed(sum(len(part.items) for part in batch), time.monotonic() - started)

    def _worked(self, batch: Sequence[_Part[Item, Result]]) -> tuple[dict[int, Exception], list[Result]]:
        """What is wrong with requests, by their id, and the results for the items of the others."""
        faults = self._faults(batch)
        items = [item for part in batch if id(part.request) not in faults for item in part.items]
        results = list(self._work(items)) if items else []
        if len(results) != len(items):
            raise ServiceError(f"{len(results)} results for {len(items)} items")
        return faults, results

    def _faults(self, batch: Sequence[_Part[Item, Result]]) -> dict[int, Exception]:
        faults: dict[int, Exception] = {}
        if self._check is None:
            return faults
        for part in batch:
            try:
                for place, item in enumerate(part.items, start=part.first):
                    self._check(item, place)
            except Exception as error:
                faults[id(part.request)] = error
        return faults

    async def _gather(self) -> None:
        """Waits until the batch is full, or its first item has waited long enough."""
        until = self._queue[0].arrived + self._wait
        while 0 < self._waiting < self._max_batch and not self._closing and (left := until - time.monotonic()) > 0:
            self._arrival.clear()
            try:
                await asyncio.wait_for(self._arrival.wait(), left)
            except asyncio.TimeoutError:
                return

    def _take(self) -> list[_Part[Item, Result]]:
        """The next batch."""
        batch: list[_Part[Item, Result]] = []
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
                batch.append(_Part(request, request.taken, items))
            request.taken = until
            self._waiting -= len(items)
            if until < len(request.items):
                # One that had its turn goes to the end, one that had none keeps its place.
                self._queue.append(request) if items else self._queue.appendleft(request)
            if room <= 0:
                break
        return batch

    def _forget(self, request: _Request[Item, Result]) -> None:
        """Takes out what is left of a request that nobody awaits any more, or of which an item failed."""
        if request.taken < len(request.items):
            self._queue.remove(request)
            self._waiting -= len(request.items) - request.taken
            request.taken = len(request.items)

    def _timed(self, items: int, seconds: float) -> None:
        self._seconds_per_item = _MEMORY * self._seconds_per_item + (1 - _MEMORY) * seconds / items / self._parallel
        if self._observe is not None:
            self._observe(items, seconds)

    def _time_for(self, items: int) -> float:
        return float(max(1, math.ceil(items * self._seconds_per_item)))

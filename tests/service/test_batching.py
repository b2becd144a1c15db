"""Concurrent calls become one pass; a full queue, a deadline and an end are told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from latentguard import LatentGuard
from latentguard.errors import PromptError
from latentguard.guard import scorable
from latentguard.service.batching import Batcher, QueueFullError
from latentguard.service.errors import ClosingError, DeadlineError, ServiceError


class Work:
    """Doubles numbers, remembers the batches, and waits where it is told to."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.seconds = seconds
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.gate.wait(10)
        time.sleep(self.seconds)
        self.batches.append(list(items))
        return [2 * item for item in items]


def batcher(work: Any, *, max_batch: int = 8, wait_ms: float = 20, queue_limit: int = 100, **more: Any) -> Any:
    return Batcher(work, max_batch=max_batch, wait_ms=wait_ms, queue_limit=queue_limit, **more)


def test_concurrent_calls_share_a_batch_and_get_their_own_results() -> None:
    work = Work()

    async def main() -> list[list[int]]:
        made = batcher(work)
        results = await asyncio.gather(made.submit([1]), made.submit([2, 3]), made.submit([4]))
        await made.close()
        return results

    assert asyncio.run(main()) == [[2], [4, 6], [8]]
    assert work.batches == [[1, 2, 3, 4]]


def test_with_two_threads_two_batches_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=10)

    def work(items: Sequence[int]) -> list[int]:
        both.wait()  # passes only if the other batch is worked on meanwhile
        return [2 * item for item in items]

    async def main() -> list[int]:
        made = batcher(work, max_batch=2, threads=2)
        result: list[int] = await made.submit([1, 2, 3, 4])
        await made.close()
        return result

    assert asyncio.run(main()) == [2, 4, 6, 8]


def test_results_keep_their_order_when_a_later_batch_ends_first() -> None:
    def work(items: Sequence[int]) -> list[int]:
        time.sleep(0.2 if 1 in items else 0)
        return [2 * item for item in items]

    async def main() -> list[int]:
        made = batcher(work, max_batch=2, threads=2)
        result: list[int] = await made.submit([1, 2, 3, 4])
        await made.close()
        return result

    assert asyncio.run(main()) == [2, 4, 6, 8]


def test_each_thread_is_prepared_before_it_works() -> None:
    prepared: list[int] = []

    def work(items: Sequence[int]) -> list[bool]:
        return [threading.get_ident() in prepared] * len(items)

    async def main() -> list[bool]:
        made = batcher(work, prepare=lambda: prepared.append(threading.get_ident()))
        result: list[bool] = await made.submit([1])
        await made.close()
        return result

    assert asyncio.run(main()) == [True]


def test_what_arrives_during_a_batch_is_the_next_one() -> None:
    work = Work(seconds=0.05)

    async def main() -> None:
        made = batcher(work, wait_ms=0)
        first = asyncio.create_task(made.submit([1]))
        await asyncio.sleep(0.02)
        await asyncio.gather(first, *(made.submit([n]) for n in range(2, 6)))
        await made.close()

    asyncio.run(main())
    assert work.batches == [[1], [2, 3, 4, 5]]


def test_a_request_larger_than_a_batch_is_split_in_order() -> None:
    work = Work()

    async def main() -> list[int]:
        made = batcher(work, max_batch=4)
        found: list[int] = await made.submit(list(range(10)))
        await made.close()
        return found

    assert asyncio.run(main()) == [2 * n for n in range(10)]
    assert [len(batch) for batch in work.batches] == [4, 4, 2]


def test_a_lone_call_waits_no_longer_than_it_is_told_to() -> None:
    async def main() -> float:
        made = batcher(Work(), wait_ms=50)
        started = time.monotonic()
        await made.submit([1])
        took = time.monotonic() - started
        await made.close()
        return took

    assert 0.045 <= asyncio.run(main()) < 2


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    work = Work()
    work.gate.clear()

    async def main() -> QueueFullError:
        made = batcher(work, max_batch=1, wait_ms=0, queue_limit=3)
        running = [asyncio.create_task(made.submit([0]))]
        await asyncio.sleep(0.05)  # the first is at work, and the others wait
        running += [asyncio.create_task(made.submit([n])) for n in (1, 2, 3)]
        await asyncio.sleep(0)
        assert made.full
        with pytest.raises(QueueFullError) as refused:
            await made.submit([4])
        work.gate.set()
        assert await asyncio.gather(*running) == [[0], [2], [4], [6]]
        await made.close()
        return refused.value

    assert asyncio.run(main()).retry_after >= 1


def test_a_deadline_ends_the_wait_and_spares_the_work() -> None:
    work = Work()
    work.gate.clear()

    async def main() -> None:
        made = batcher(work, max_batch=1, wait_ms=0)
        first = asyncio.create_task(made.submit([1]))
        await asyncio.sleep(0.02)
        with pytest.raises(DeadlineError):
            await made.submit([2], time.monotonic() + 0.05)
        assert made.waiting == 0
        work.gate.set()
        assert await first == [2]
        await made.close()

    asyncio.run(main())
    assert work.batches == [[1]]


def test_closing_finishes_what_waits_and_takes_nothing_more() -> None:
    work = Work(seconds=0.02)

    async def main() -> list[Any]:
        made = batcher(work, max_batch=2, wait_ms=1000)
        running = [asyncio.create_task(made.submit([n])) for n in range(5)]
        await asyncio.sleep(0)
        await made.close()
        with pytest.raises(ClosingError):
            await made.submit([9])
        return await asyncio.gather(*running)

    assert asyncio.run(main()) == [[0], [2], [4], [6], [8]]


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (lambda items: [1 / 0 for _ in items], ZeroDivisionError),
        (lambda items: list(items)[1:], ServiceError),
    ],
    ids=["raises", "too-few"],
)
def test_what_the_work_does_wrong_fails_the_batch_and_not_the_next(
    work: Callable[[Sequence[int]], list[int]], error: type[Exception]
) -> None:
    calls: list[int] = []

    def once(items: Sequence[int]) -> list[int]:
        calls.append(len(items))
        return work(items) if len(calls) == 1 else list(items)

    async def main() -> list[int]:
        made = batcher(once)
        found = await asyncio.gather(made.submit([1]), made.submit([2]), return_exceptions=True)
        assert [type(each) for each in found] == [error, error]
        after: list[int] = await made.submit([3])
        await made.close()
        return after

    assert asyncio.run(main()) == [3]


def test_an_unusable_prompt_fails_its_own_request_alone(tiny_guard: LatentGuard) -> None:
    async def main() -> list[Any]:
        made = Batcher(tiny_guard.check_batch, max_batch=8, wait_ms=20, queue_limit=100, check=scorable)
        found = await asyncio.gather(
            made.submit(["a red wine"]), made.submit(["tea", "\u200b"]), made.submit(["a dog"]), return_exceptions=True
        )
        await made.close()
        return found

    first, second, third = asyncio.run(main())
    assert isinstance(second, PromptError)
    assert "prompt 2" in str(second)
    assert [first[0].score, third[0].score] == tiny_guard.score(["a red wine", "a dog"]).tolist()


def test_batches_are_told_to_whoever_observes() -> None:
    seen: list[int] = []

    async def main() -> None:
        made = batcher(Work(), observe=lambda size, seconds: seen.append(size))
        await asyncio.gather(made.submit([1]), made.submit([2]))
        await made.close()

    asyncio.run(main())
    assert seen == [2]


def test_a_large_request_does_not_keep_small_ones_waiting() -> None:
    work = Work(seconds=0.01)

    async def main() -> None:
        made = batcher(work, max_batch=4, wait_ms=0)
        large = asyncio.create_task(made.submit(list(range(100, 140))))
        await asyncio.sleep(0.005)
        assert await made.submit([1]) == [2]
        assert not large.done()
        assert await large == [2 * n for n in range(100, 140)]
        await made.close()

    asyncio.run(main())
    assert any(1 in batch for batch in work.batches[:3])
    assert max(map(len, work.batches)) == 4


def test_heavy_items_make_batches_smaller() -> None:
    work = Work()

    async def main() -> list[int]:
        made = batcher(work, max_batch=4, weigh=lambda item: item)
        found: list[int] = await made.submit([1, 1, 3, 9, 2, 2, 1])
        await made.close()
        return found

    assert asyncio.run(main()) == [2, 2, 6, 18, 4, 4, 2]
    assert work.batches == [[1, 1], [3], [9], [2, 2], [1]]

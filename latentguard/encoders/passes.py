"""Many windows through an encoder: in batches of like lengths, and several at once where that is faster."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from latentguard.encoders.base import SeveralPasses, TextEncoder, batches

Result = TypeVar("Result")


def in_batches(
    encoder: TextEncoder, lengths: Sequence[int], work: Callable[[TextEncoder, list[int]], Result]
) -> Iterator[tuple[list[int], Result]]:
    """The places of windows of these lengths, batch by batch, with what `work` makes of each batch.

    `work` gets the encoder to use. Where the encoder can, as many batches run side by side as it has threads, each on
    one: a pass is some hundred short products, which two threads share out badly, and two passes well.
    """
    if len(lengths) == 1:
        yield [0], work(encoder, [0])
        return
    passes = encoder.threads if isinstance(encoder, SeveralPasses) else 1
    parts = list(batches(lengths, encoder.device, at_least=passes))
    if passes == 1 or len(parts) < 2 or not isinstance(encoder, SeveralPasses):
        for part in parts:
            yield part, work(encoder, part)
        return
    single = encoder.single_threaded()
    underway: deque[tuple[list[int], Future[Result]]] = deque()
    with ThreadPoolExecutor(passes) as pool:
        for part in parts:
            underway.append((part, pool.submit(work, single, part)))
            if len(underway) > 2 * passes:  # so that results don't heap up before whoever takes them
                done, result = underway.popleft()
                yield done, result.result()
        for done, result in underway:
            yield done, result.result()

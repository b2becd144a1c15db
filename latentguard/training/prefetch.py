"""Making the next batch while the last one is in use."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Made = TypeVar("Made")


def ahead(make: Callable[[int], Made], steps: Iterable[int], device: torch.device) -> Generator[Made, None, None]:
    """What ``make`` gives for each step, in order, each made in a thread while the one before it is in use.

    ``device``: a GPU that the thread may allocate pinned memory for. What ``make`` raises is raised in its turn.
    """

    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # a thread begins on the first GPU, whichever its process uses

    with ThreadPoolExecutor(1, "prefetch", settle) as pool:
        waiting: Future[Made] | None = None
        for step in steps:
            following = pool.submit(make, step)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()

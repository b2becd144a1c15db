"""Encrypted inference behind a bounded queue: one evaluation at a time, a few uploads in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from latentguard.service.errors import BusyError
from privacy.encrypted_inference import Server, shipped_folder

_T = TypeVar("_T")

_AT_ONCE = 4
SESSION_SECONDS = 3600


class Classifiers:
    """The encrypted classifiers of these names; what clients send is read by SEAL in a process of its own.

    Raises:
        ModelError: one of them doesn't exist or is damaged.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._server = Server({name: shipped_folder(name) for name in names}, session_seconds=SESSION_SECONDS)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="classifiers")
        self._present = 0

    @asynccontextmanager
    async def room(self) -> AsyncIterator[None]:
        """A place for one upload and its evaluation; BusyError if all are taken."""
        if self._present >= _AT_ONCE:
            raise BusyError(f"{self._present} encrypted requests are at work", retry_after=2)
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    async def register(self, keys: bytes) -> str:
        """Takes a client's evaluation keys; their fingerprint in hexadecimal. Errors as `Server.register`."""
        session = await self._in_thread(lambda: self._server.register(keys))
        return session.fingerprint.hex()

    async def classify(self, query: bytes) -> bytes:
        """The encrypted answer to an encrypted query. Errors as `Server.classify`."""
        return await self._in_thread(lambda: self._server.classify(query))

    def close(self) -> None:
        """Finishes what is at work and ends the evaluating process."""
        self._thread.shutdown()
        self._server.close()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

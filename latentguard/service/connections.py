"""HTTP/1.1 connections that slow or silent clients can't hold."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_BYTES = 32 * 1024
KEEP_ALIVE_SECONDS = 15
_HEAD_SECONDS = 10.0
_UNSENT_SECONDS = 30.0
_UNSENT_BYTES_PER_SECOND = 16 * 1024
_MOST = 4096


class Connection(H11Protocol):
    """uvicorn's, ended when a request's head takes too long to arrive, or an answer too long to be taken.

    A head may take ten seconds from its first byte, or from the start of the connection. An answer may take half a
    minute, and a second more for each 16 KiB. uvicorn itself ends connections that are idle between requests, and the
    application looks after the time that a body takes.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._awaiting_head: asyncio.TimerHandle | None = None
        self._answers = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected; one too many is turned away."""
        super().connection_made(transport)
        if len(self.connections) > _MOST:
            transport.abort()
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """A client has sent something."""
        if self._idle():
            self._await_head()
        super().data_received(data)
        if not self._idle():
            self._head_is_here()

    def on_response_complete(self) -> None:
        """An answer was handed to the transport, which may still have to send it."""
        self._answers += 1
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            allowed = _UNSENT_SECONDS + unsent / _UNSENT_BYTES_PER_SECOND
            self.loop.call_later(allowed, self._end_if_unsent, self._answers)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._head_is_here()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._awaiting_head is None:
            self._awaiting_head = self.loop.call_later(_HEAD_SECONDS, self._end)

    def _head_is_here(self) -> None:
        if self._awaiting_head is not None:
            self._awaiting_head.cancel()
            self._awaiting_head = None

    def _end(self) -> None:
        self._awaiting_head = None
        self.transport.abort()

    def _end_if_unsent(self, answer: int) -> None:
        if answer == self._answers and self.transport.get_write_buffer_size():
            self.transport.abort()

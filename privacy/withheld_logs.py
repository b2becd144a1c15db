"""Log records without content: what a library logs while it works on something private.

Image libraries quote prompts in warnings ("the following part of your input was truncated"). Filters don't help: they
are asked by the logger that is spoken to and not by those above it. So the content is taken out where records are made,
whatever loggers and handlers there are, of the records that the present thread or task makes, and of no others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

MESSAGE = "(withheld: logged during a private call)"

_private: ContextVar[bool] = ContextVar("privacy_logs_withheld", default=False)
_changing = threading.Lock()
_calls = 0
_before: Callable[..., logging.LogRecord] = logging.LogRecord


@contextmanager
def withheld_logs() -> Iterator[None]:
    """While this lasts, what the present context logs keeps its logger, level and place, and loses its text."""
    _start()
    token = _private.set(True)
    try:
        yield
    finally:
        _private.reset(token)
        _stop()


def _make_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _before(*args, **kwargs)
    if _private.get():
        record.msg, record.args, record.exc_info, record.stack_info = MESSAGE, (), None, None
    return record


def _start() -> None:
    global _calls, _before
    with _changing:
        _calls += 1
        if logging.getLogRecordFactory() is not _make_record:
            _before = logging.getLogRecordFactory()
            logging.setLogRecordFactory(_make_record)


def _stop() -> None:
    global _calls
    with _changing:
        _calls -= 1
        # Somebody else's factory stays: it may well call this one.
        if not _calls and logging.getLogRecordFactory() is _make_record:
            logging.setLogRecordFactory(_before)

"""Values on their way into a file: what a column may hold, and how any value is written as text."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import numbers
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from latentguard.records.faults import HALF_PAIR, is_encodable, kind_of


def finite(value: object) -> float | None:
    """The number as a float, or None if it is not one or not finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """A value in the types of JSON: times in ISO 8601, decimals as text, NaN and infinities, which it lacks, as null.

    Raises:
        TypeError, ValueError: it has no such form, as bytes haven't, or is nested deeper than Python's stack.
    """
    try:
        return _plain(value)
    except RecursionError as error:
        raise ValueError("is nested too deep") from error


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta, uuid.UUID)):
        return str(value)
    if hasattr(value, "item"):  # a NumPy scalar
        return _plain(value.item())
    raise TypeError(f"is {kind_of(value)}, which can't be written as text")


def as_text(value: Any) -> str | None:
    """A plain value as one text: a text as it is, anything else but None as JSON."""
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _key(key: object) -> str:
    text = _text(key if isinstance(key, str) else str(key))
    return "" if text is None else text


def _text(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"is {kind_of(value)}, not text")
    if value is not None and not is_encodable(value):
        raise ValueError(HALF_PAIR)
    return value


def _number(value: object) -> float | None:
    number = None if value is None else finite(_python(value))
    if number is None and value is not None:
        raise TypeError("is not a finite number")
    return number


def _integer(value: object) -> int | None:
    value = _python(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise TypeError("is not an integer of 64 bits")
    return value


def _truth(value: object) -> bool | None:
    value = _python(value)
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"is {kind_of(value)}, not true or false")
    return value


def _python(value: Any) -> Any:
    """A NumPy or torch scalar as the Python value it holds."""
    return value.item() if hasattr(value, "item") else value


CHECKS: Mapping[type, Callable[[Any], Any]] = {
    str: _text,
    float: _number,
    int: _integer,
    bool: _truth,
    object: plain,
}
"""For each kind of column, what turns a value into the one to write; TypeError or ValueError if it has none."""

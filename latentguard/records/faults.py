"""What can be wrong with a file, in one line: the file, the row and the field, and never the text of a prompt."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from latentguard.errors import DataError

MAX_PROMPT_CHARS = 100_000

TOO_LONG = f"is longer than {MAX_PROMPT_CHARS:,} characters"
HALF_PAIR = "is not valid Unicode: it has half of a surrogate pair"


def fault_at(path: Path, what: str, where: str | None = None) -> DataError:
    """The error that says `what` is wrong `where` in a file."""
    return DataError(f"{path}: {where}: {what}" if where else f"{path}: {what}")


def unreadable(path: Path, error: Exception) -> DataError:
    """The error for a file that the system, or a decompressor, can't read."""
    return fault_at(path, f"can't be read: {one_line(error)}")


def prompt_fault(prompt: object) -> str | None:
    """What is wrong with a prompt, in words that follow the name of its field; None if nothing is."""
    if prompt is None:
        return "is null"
    if not isinstance(prompt, str):
        return "is NaN" if isinstance(prompt, float) and math.isnan(prompt) else f"is {kind_of(prompt)}, not text"
    if len(prompt) > MAX_PROMPT_CHARS:
        return TOO_LONG
    if not prompt.strip():
        return "is empty"
    if not is_encodable(prompt):
        return HALF_PAIR
    return None


def missing_column(column: str, names: Iterable[str]) -> str:
    """What is wrong where a column is not among those there are."""
    listed = ", ".join(map(shown_name, names)) or "none"
    return f"has no column {column!r}; its columns are: {listed}"


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there for the second time; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def shown_name(name: str) -> str:
    """The name of a column as it may be printed."""
    # In a file without a header the "names" are its first prompt, which is not to be printed.
    return repr(name) if len(name) <= 40 and len(name.split()) <= 3 else "(a long text: is the header missing?)"


def is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_KINDS: Mapping[type, str] = {
    type(None): "null",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def kind_of(value: object) -> str:
    """What a value is, in words."""
    return _KINDS.get(type(value), type(value).__name__)


def check_is_file(path: Path) -> None:
    """Raises DataError if `path` is not an existing file."""
    if os.path.isdir(path):
        raise fault_at(path, "is a folder, not a file")
    if not os.path.exists(path):  # unlike Path.exists, no OSError for a name that is too long
        raise fault_at(path, "does not exist")


def check_suffix(path: Path, known: Iterable[str]) -> None:
    """Raises DataError if the suffix of `path`, in either case, is none of those known."""
    if path.suffix.lower() not in known:
        raise fault_at(path, f"its suffix is none of {', '.join(known)}")


def counted(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def one_line(error: Exception) -> str:
    """The message of an exception on one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__

"""Where the files that come with the project lie: in a wheel inside the package, in a checkout beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).resolve().parent


def shipped_path(kind: Literal["weights", "datasets"]) -> Path:
    """The folder ``weights`` or ``datasets`` that came with this installation."""
    in_wheel = _PACKAGE / "_shipped" / kind
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent / kind

"""The templates and how they show numbers, times and long texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_SHOWN_CHARS = 160


def environment(asset_path: Callable[[str], str]) -> Environment:
    """The templates; ``asset_path`` gives a static file's URL. All values are escaped, a missing one is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(asset=asset_path)
    made.filters.update(
        percent=_percent, moment=_moment, iso=_iso, clock=_clock, shortened=_shortened, compact_json=_compact_json
    )
    return made


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _utc(time: float | datetime) -> datetime:
    return time.astimezone(timezone.utc) if isinstance(time, datetime) else datetime.fromtimestamp(time, timezone.utc)


def _moment(time: float | datetime) -> str:
    return f"{_utc(time):%Y-%m-%d %H:%M:%S}"


def _iso(time: float | datetime) -> str:
    return _utc(time).isoformat(timespec="seconds")


def _clock(time: float | datetime) -> str:
    return f"{_utc(time):%H:%M:%S}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def _compact_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(value, separators=(",", ":"))

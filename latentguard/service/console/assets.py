"""The console's static files: read once, served under names that change with their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Asset:
    """A static file, with the first digits of its SHA-256 as ``version``."""

    content: bytes
    media_type: str
    version: str


def read_assets() -> dict[str, Asset]:
    """The files that pages may ask for, by path below static/."""
    assets = {}
    for path in sorted(_FOLDER.rglob("*")):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            version = hashlib.sha256(content).hexdigest()[:12]
            assets[path.relative_to(_FOLDER).as_posix()] = Asset(content, _TYPES[path.suffix], version)
    return assets

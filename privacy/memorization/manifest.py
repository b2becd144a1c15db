"""Manifests: which image of a folder got which private record, and where in the image it is drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from privacy.errors import DataError
from privacy.files import atomic_path, read_error

NAME = "manifest.jsonl"

Box = tuple[int, int, int, int]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """An image of a data set.

    image: its path, relative to the manifest's folder, with forward slashes. sha256: of its file, hexadecimal. record:
    the user id of the private record in it, or None. box: left, top, right (excluded) and bottom (excluded) of the
    drawn text in pixels of the file as stored, before any EXIF orientation; None without text, or where it isn't known.
    """

    image: str
    sha256: str
    record: str | None
    box: Box | None


def read_manifest(path: Path) -> list[Entry]:
    """The entries of a manifest.jsonl, in order.

    Raises:
        DataError: it can't be read, an entry isn't one, an image is listed twice or lies outside the folder; the
            message names the row.
    """
    entries: dict[str, Entry] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for row, line in enumerate(file, start=1):
                entry = _entry(line, f"{path}: row {row}")
                if entry.image in entries:
                    raise DataError(f"{path}: row {row}: field 'image': is listed twice")
                entries[entry.image] = entry
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise read_error(path, error) from error
    return list(entries.values())


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Writes a manifest, whole or not at all. Raises DataError if it can't be written."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for entry in entries:
            print(json.dumps(asdict(entry), ensure_ascii=False), file=file)


def _entry(line: str, where: str) -> Entry:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: is no JSON") from None
    if not isinstance(value, dict) or set(value) != {"image", "sha256", "record", "box"}:
        raise DataError(f"{where}: is no object of image, sha256, record and box")
    if not isinstance(value["image"], str) or not _stays_inside(value["image"]):
        raise DataError(f"{where}: field 'image': is no relative path inside the folder")
    if not isinstance(value["sha256"], str) or not _SHA256.fullmatch(value["sha256"]):
        raise DataError(f"{where}: field 'sha256': is no digest")
    if value["record"] is not None and not isinstance(value["record"], str):
        raise DataError(f"{where}: field 'record': is neither a user id nor null")
    return Entry(value["image"], value["sha256"], value["record"], _box(value["box"], where))


def _stays_inside(image: str) -> bool:
    path = PurePosixPath(image)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in image


def _box(value: Any, where: str) -> Box | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4 or not all(type(each) is int and each >= 0 for each in value):
        raise DataError(f"{where}: field 'box': is neither null nor four whole numbers from 0 on")
    return value[0], value[1], value[2], value[3]

"""passkey.json: what a converted folder says of itself. All of it is public; the passkey is nowhere in it.

It is written last, so a folder without a whole one is no finished conversion.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from privacy.errors import ConversionError, WrongPasskeyError
from privacy.files import read_error, write_error
from privacy.passkey.keys import Stretching, Subkeys
from privacy.passkey.transforms import Transform

FILE_NAME = "passkey.json"
FORMAT = "latentguard passkey model 1"

_CHECK_BYTES = 32
_MAX_BYTES = 4 * 2**20
_FIELDS = {"format", "stretching", "transform", "rows", "special", "vocabulary", "check", "files"}


@dataclass(frozen=True)
class Record:
    """The content of passkey.json.

    stretching, transform: as given to the conversion. rows: number of embeddings, and so of encrypted ids. special: ids
    that stayed. vocabulary: keyed digest of the original one. check: keyed digest of all of these. files: SHA-256 of
    each other file of the folder.
    """

    stretching: Stretching
    transform: Transform
    rows: int
    special: tuple[int, ...]
    vocabulary: str
    check: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

    def with_check(self, keys: Subkeys) -> Record:
        """The same record under the check value that `keys` give."""
        return replace(self, check=self._check_value(keys))

    def verify(self, keys: Subkeys) -> None:
        """Raises WrongPasskeyError unless these are the keys of the conversion and the record is what it wrote."""
        if not hmac.compare_digest(self.check, self._check_value(keys)):
            raise WrongPasskeyError("the passkey is wrong, or passkey.json was changed")

    def as_json(self) -> str:
        """The file's content."""
        return json.dumps({**self._checked(), "check": self.check, "files": dict(self.files)}, indent=1) + "\n"

    def _checked(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "stretching": self.stretching.as_dict(),
            "transform": asdict(self.transform),
            "rows": self.rows,
            "special": list(self.special),
            "vocabulary": self.vocabulary,
        }

    def _check_value(self, keys: Subkeys) -> str:
        content = json.dumps(self._checked(), sort_keys=True).encode()
        return hashlib.blake2b(
            content, digest_size=_CHECK_BYTES, key=keys.check, person=b"lg passkey check"
        ).hexdigest()


def read_record(place: str | Path) -> Record:
    """Reads passkey.json: the file itself, or the one of a converted folder.

    Raises:
        ConversionError: there is none, or it isn't whole.
    """
    path = Path(place)
    if path.is_dir():
        path = path / FILE_NAME
        if not path.is_file():
            raise ConversionError(f"{place}: has no {FILE_NAME}, so it is no whole converted model")
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise read_error(path, error) from error
    try:
        return _record(json.loads(content[:_MAX_BYTES]))
    except (ValueError, RecursionError):
        raise ConversionError(f"{path}: is cut short or damaged") from None
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from None


def check_folder(folder: str | Path) -> Record:
    """The record of a converted folder whose files are all there and unchanged; needs no key.

    It tells a damaged or half-copied folder. It is no proof against somebody who changes passkey.json as well.

    Raises:
        ConversionError: there is no whole record, or a file is missing, was added or was changed.
    """
    if not Path(folder).is_dir():
        raise ConversionError(f"{folder}: is no folder")
    record = read_record(folder)
    found = file_digests(folder)
    for name, digest in record.files.items():
        if name not in found:
            raise ConversionError(f"{folder}: {name} is missing")
        if not hmac.compare_digest(found[name], digest):
            raise ConversionError(f"{folder}: {name} was changed since the conversion")
    if added := sorted(found.keys() - record.files.keys()):
        raise ConversionError(f"{folder}: {added[0]} was added since the conversion")
    return record


def write_record(folder: str | Path, record: Record) -> Record:
    """Writes passkey.json with the digests of the folder's other files as they are now; needs no key.

    Whoever changes a converted model on purpose, as fine-tuning does, writes its record anew with this.
    """
    record = replace(record, files=file_digests(folder))
    path = Path(folder) / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(record.as_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return record


def file_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 (hex) of each file in the folder, however deep, but passkey.json."""
    root = Path(folder)
    digests = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if name == FILE_NAME or not path.is_file():
            continue
        try:
            digests[name] = _sha256(path)
        except OSError as error:
            raise read_error(path, error) from error
    return digests


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _record(content: Any) -> Record:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConversionError(f"is no record of the format {FORMAT!r}")
    rows, special, files = content.get("rows"), content.get("special"), content.get("files")
    whole = (
        content.keys() == _FIELDS
        and type(rows) is int
        and rows > 0
        and isinstance(special, list)
        and all(type(each) is int and 0 <= each < rows for each in special)
        and isinstance(files, dict)
        and all(isinstance(each, str) and each.isascii() for each in [*files.values(), *_texts(content)])
    )
    if not whole:
        raise ConversionError("is cut short or damaged")
    return Record(
        Stretching.from_dict(content["stretching"]),
        Transform.from_dict(content["transform"]),
        rows,  # type: ignore[arg-type]  # checked above
        tuple(special),  # type: ignore[arg-type]  # checked above
        content["vocabulary"],
        content["check"],
        files,  # type: ignore[arg-type]  # checked above
    )


def _texts(content: dict[str, Any]) -> list[Any]:
    return [content.get("vocabulary"), content.get("check")]

"""What a user hands to the agent: a request, and files, of which a planner sees handles and kinds alone."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from latentguard.errors import AgentError
from privacy.encrypted_inference.wire import Keys, Query

MOST_REQUEST_CHARS = 10_000
MOST_FILES = 8
_MOST_FILE_BYTES = 200 * 2**20
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM")
_MESSAGE = b"LGEI"


class Kind(str, Enum):
    """What something is that a task takes or gives."""

    TEXT = "text"
    PICTURE = "picture"
    SEALED_IMAGE = "sealed image"
    ENCRYPTED_IMAGE = "encrypted image"
    EVALUATION_KEYS = "evaluation keys"
    ENCRYPTED_LABEL = "encrypted label"
    LABEL = "label"


@dataclass(frozen=True)
class GivenFile:
    """A file that the user gave, by the `handle` that plans name it by. Its path and content are not shown."""

    handle: str
    kind: Kind
    path: Path = field(repr=False)
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Request:
    """A request whose files' names are replaced by their handles: names are others' text, and may hold instructions."""

    text: str = field(repr=False)
    files: tuple[GivenFile, ...]

    def of_kind(self, *kinds: Kind) -> list[GivenFile]:
        """The files of these kinds, in the order they were given."""
        return [file for file in self.files if file.kind in kinds]


def read_request(text: str, paths: Sequence[Path]) -> Request:
    """The request and its files, read.

    Raises:
        AgentError: the request is empty or too long, a file can't be read, or nobody knows what it is.
    """
    if not text.strip():
        raise AgentError("the request is empty")
    if len(text) > MOST_REQUEST_CHARS:
        raise AgentError(f"the request has {len(text):,} characters; the limit is {MOST_REQUEST_CHARS:,}")
    if len(paths) > MOST_FILES:
        raise AgentError(f"there are {len(paths)} files; the limit is {MOST_FILES}")
    files = tuple(_read(f"file-{number}", path) for number, path in enumerate(paths, start=1))
    if len([file for file in files if file.kind is Kind.EVALUATION_KEYS]) > 1:
        raise AgentError("there is more than one file of evaluation keys; give those of one client")
    return Request(_with_handles(text, files), files)


def _read(handle: str, path: Path) -> GivenFile:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise AgentError(f"{path}: is no plain file")
            content = file.read(_MOST_FILE_BYTES + 1)
    except OSError as error:
        raise AgentError(f"{path}: can't be read: {error.strerror}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise AgentError(f"{path}: is longer than {_MOST_FILE_BYTES:,} bytes")
    kind = _kind(content)
    if kind is None:
        raise AgentError(f"{path}: is no encrypted image, no evaluation keys and no picture")
    return GivenFile(handle, kind, path, content)


def _kind(content: bytes) -> Kind | None:
    if content.startswith(_MESSAGE):
        return {Query.KIND: Kind.ENCRYPTED_IMAGE, Keys.KIND: Kind.EVALUATION_KEYS}.get(content[5] if content[5:] else 0)
    picture = content.startswith(_PICTURES) or (content[:4] == b"RIFF" and content[8:12] == b"WEBP")
    return Kind.PICTURE if picture else None


def _with_handles(text: str, files: Iterable[GivenFile]) -> str:
    names = {name: file.handle for file in files for name in (file.path.name, str(file.path))}
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<![\w./-])[\"'`]?{re.escape(name)}[\"'`]?(?![\w/-])", f"[{names[name]}]", text)
    return text

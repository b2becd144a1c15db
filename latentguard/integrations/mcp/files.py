"""The files that tools may read and write: those of one folder, by plain names."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path

from latentguard.errors import ToolError
from privacy.errors import DataError
from privacy.files import atomic_path

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_NAME = re.compile(NAME[:-1] + r"\Z")


class Folder:
    """A folder whose files are named without a path, so that nobody who names them gets out of it.

    Raises:
        DataError: it isn't a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()
        if not self.path.is_dir():
            raise DataError(f"{path}: is no folder")

    def read(self, name: str, most_bytes: int) -> bytes:
        """The content of a file, which has to be a plain one: a link might lead out of the folder.

        Raises:
            ToolError: it has no plain name, isn't there, is something else than a file, or has more than `most_bytes`.
        """
        _check(name)
        try:
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise ToolError("invalid_file", f"{name}: is no plain file")
                content = file.read(most_bytes + 1)
        except OSError as error:
            raise ToolError("invalid_file", f"{name}: can't be read: {error.strerror}") from None
        if len(content) > most_bytes:
            raise ToolError("invalid_file", f"{name}: is longer than {most_bytes:,} bytes")
        return content

    def write(self, content: bytes, name: str | None, suffix: str) -> str:
        """Writes a new file, readable by its owner alone, and returns its name, a random one if none is given.

        Raises:
            ToolError: it has no plain name, is there already, or can't be written.
        """
        name = f"{secrets.token_hex(8)}{suffix}" if name is None else name
        _check(name)
        try:
            with atomic_path(self.path / name, replace=False) as temporary:
                temporary.write_bytes(content)
        except (DataError, OSError) as error:
            # Without the folder's path, which is no business of whoever calls.
            there = (self.path / name).exists()
            raise ToolError(
                "invalid_file", f"{name}: {'is there already' if there else 'cannot be written'}"
            ) from error
        return name


def _check(name: str) -> None:
    if not _NAME.match(name):
        raise ToolError("invalid_file", "a file's name has letters, digits, dots, - and _ only, and no path")

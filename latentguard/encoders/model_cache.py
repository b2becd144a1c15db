"""Files of the embedded model in the user's cache: whole and as published, or not there at all.

A file enters the cache by a rename, after its SHA-256 was checked and its bytes were synced to disk. A lock keeps two
processes from writing at once; readers need none. Whoever uses a file checks it again first (some 0.1 s for 90 MB),
so a damaged file is found, and written anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import filelock
import platformdirs

from latentguard.errors import EncoderError

LOCK_SECONDS = 300
_CHUNK = 1 << 20
_BROKEN_ARCHIVE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class PublishedFile:
    """Size in bytes and SHA-256 (hexadecimal) of a file as its makers published it."""

    size: int
    sha256: str


def cache_folder() -> Path:
    """Where latentguard keeps what it can make again: $LATENTGUARD_CACHE, else the user's cache folder."""
    override = os.environ.get("LATENTGUARD_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("latentguard", appauthor=False)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and be the only process that writes to it. Raises EncoderError if that can't be had."""
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    with writing_to(folder):
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except filelock.Timeout as error:
            raise EncoderError(f"{folder}: another process has held the cache for {LOCK_SECONDS} s") from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a failure to write into the cache (no right, disk full) into an EncoderError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EncoderError(
            f"{folder}: can't write the encoder's files: {reason} (set LATENTGUARD_CACHE to another folder)"
        ) from error


def is_published(path: Path, published: PublishedFile) -> bool:
    """Whether the file is there and is the published one, byte for byte."""
    try:
        if path.stat().st_size != published.size:
            return False
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return False
    return digest.hexdigest() == published.sha256


def unpacked(
    archive: Callable[[], Path], folder: Path, files: Mapping[str, PublishedFile], needed: Iterable[str]
) -> Path:
    """The folder, where the `needed` files are as published; all `files` are unpacked first where they aren't.

    archive gives the zip file, and is asked only when it has to be read. Members are looked up by the given names
    alone, and no more of one is read than its published size. Raises EncoderError when the archive is damaged or
    holds other files than the published ones; then nothing of it stays in the cache.
    """
    wanted = {name: files[name] for name in needed}

    def complete() -> bool:
        return all(is_published(folder / name, published) for name, published in wanted.items())

    if complete():
        return folder
    with locked(folder):
        if not complete():
            _unpack(archive(), folder, files)
    return folder


def _unpack(archive: Path, folder: Path, files: Mapping[str, PublishedFile]) -> None:
    partial = folder / ".partial"
    try:
        with writing_to(folder):
            shutil.rmtree(partial, ignore_errors=True)  # of a process killed while it held the lock
            partial.mkdir()
        try:
            with zipfile.ZipFile(archive) as opened:
                for name, published in files.items():
                    with opened.open(name) as member:
                        _copy_checked(member, partial / name, published, archive)
        except _BROKEN_ARCHIVE as error:
            raise EncoderError(f"{archive}: damaged archive ({type(error).__name__}); install it again") from error
        except OSError as error:
            raise EncoderError(f"{archive}: can't be read: {error.strerror or error}") from error
        with writing_to(folder):
            for name in files:
                os.replace(partial / name, folder / name)
            _sync_folder(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_checked(source: IO[bytes], target: Path, published: PublishedFile, archive: Path) -> None:
    """Copy a member to disk; EncoderError unless it has the published size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with writing_to(target.parent), target.open("xb") as file:
        while size <= published.size and (chunk := source.read(_CHUNK)):
            size += len(chunk)
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if size != published.size or digest.hexdigest() != published.sha256:
        raise EncoderError(f"{archive}: {target.name} is not the published file (SHA-256 differs); refusing to use it")


def read_content_named(folder: Path, stem: str, suffix: str) -> bytes | None:
    """The bytes of the file `STEM-SHA256SUFFIX` in the folder whose content has that SHA-256; None if there is none."""
    for path in sorted(folder.glob(f"{stem}-*{suffix}")):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if path.name == f"{stem}-{hashlib.sha256(content).hexdigest()}{suffix}":
            return content
    return None


def store_content_named(folder: Path, stem: str, suffix: str, content: bytes) -> None:
    """Write `STEM-SHA256SUFFIX` into the folder by a rename, in place of every other file of that stem."""
    target = folder / f"{stem}-{hashlib.sha256(content).hexdigest()}{suffix}"
    partial = folder / f".{stem}.partial"
    with locked(folder), writing_to(folder):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
            for other in folder.glob(f"{stem}-*{suffix}"):
                if other != target:
                    other.unlink(missing_ok=True)
            _sync_folder(folder)
        finally:
            partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make renames in the folder durable, where the system has a way to."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

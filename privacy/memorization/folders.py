"""Folders of images, gone through in parallel: from one into others, never within itself."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from privacy.errors import DataError, MemorizationError, UnusableImageError
from privacy.files import atomic_path, read_error, write_error
from privacy.memorization.journal import Journal
from privacy.memorization.manifest import Box
from privacy.memorization.pictures import SUFFIXES, open_picture, read_file

JOURNAL = "journal.jsonl"
SKIPPED = "skipped.jsonl"

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Skipped:
    """An image that nothing was made of, by its path relative to the input, and why."""

    image: str
    reason: str


@dataclass(frozen=True)
class Made:
    """What was made of an image: `files` are the paths, relative to the output, with SHA-256 of their contents.

    `marked` are the files with private text in them, and `box` is where in the picture it is.
    """

    image: str
    files: Mapping[str, str]
    marked: Sequence[str] = ()
    box: Box | None = None


@dataclass(frozen=True)
class Contents:
    """The images of a folder that can be used, with the SHA-256 of each file, and those that can't; both sorted."""

    usable: Mapping[str, str]
    skipped: Sequence[Skipped]

    def digest(self) -> str:
        """SHA-256 over the paths and contents of the usable images."""
        return hashlib.sha256(json.dumps(dict(self.usable), sort_keys=True).encode()).hexdigest()


def processes() -> int:
    """How many processes may run at once on this machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_output(source: Path, output: Path) -> None:
    """Makes the folder for what is written, unless it is there.

    Raises:
        DataError: `source` is no folder, one of the two lies in the other, or `output` holds something else already.
    """
    if not source.is_dir():
        raise DataError(f"{source}: {'is no folder' if source.exists() else 'does not exist'}")
    inside, outside = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise DataError(f"{output}: the output and {source} may not lie within one another")
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()) and not (output / JOURNAL).is_file():
            raise DataError(f"{output}: isn't empty, and holds no work to go on with")
    except OSError as error:
        raise DataError(f"{output}: can't be made: {error.strerror or error}") from error


def read_contents(source: Path, workers: int) -> Contents:
    """Finds the images below `source` by the suffixes of their names, and decodes each to tell whether it can be used.

    Links to folders aren't followed, and other files are left aside.

    Raises:
        DataError: a folder can't be read, or no image can be used.
    """
    images = sorted(_images_below(source))
    usable, skipped = {}, []
    for image, found in zip(images, in_parallel(partial(_inspect, source), images, workers, "reading"), strict=True):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            usable[image] = found
    if not usable:
        raise DataError(f"{source}: none of {len(images)} images can be used" if images else f"{source}: has no images")
    return Contents(usable, skipped)


def make(
    journal: Journal, output: Path, work: Callable[[_T], Made | Skipped], tasks: Mapping[str, _T], workers: int
) -> dict[str, Made | Skipped]:
    """What `work` makes of each task, by image and in order; what an earlier run made, and is still whole, stays.

    Raises:
        MemorizationError: a worker process died.
    """
    before = {line["image"]: _from_line(line) for line in journal.done if line.get("image") in tasks}
    whole = in_parallel(partial(_is_whole, output), list(before.values()), workers, "verifying")
    done = {image: each for (image, each), kept in zip(before.items(), whole, strict=True) if kept}
    left = [task for image, task in tasks.items() if image not in done]
    for each in in_parallel(work, left, workers, "writing"):
        journal.append(asdict(each))
        done[each.image] = each
    return {image: done[image] for image in tasks}


def write_file(output: Path, name: str, content: bytes) -> str:
    """Writes a file below `output`, whole or not at all, and returns its SHA-256.

    Raises:
        DataError: it can't be written, or a link leads out of the folder.
    """
    target = output / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{target.parent}: can't be made: {error.strerror or error}") from error
    if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(output)):
        raise DataError(f"{target}: a link leads out of the folder")
    with atomic_path(target) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise write_error(target, error) from error
    return hashlib.sha256(content).hexdigest()


def write_skipped(output: Path, skipped: Iterable[Skipped]) -> int:
    """Lists in skipped.jsonl what was skipped and why, and returns how many there are."""
    lines = [json.dumps(asdict(each), ensure_ascii=True) for each in sorted(skipped, key=lambda each: each.image)]
    with atomic_path(output / SKIPPED) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def in_parallel(function: Callable[[_T], _R], items: Sequence[_T], workers: int, what: str) -> Iterator[_R]:
    """What `function` returns for each item, in order and with a progress bar.

    With one worker it runs in this process; otherwise function, items and results have to be picklable.

    Raises:
        MemorizationError: a worker process died.
    """
    bar = partial(tqdm, total=len(items), desc=what, unit="image", disable=None)
    if workers < 1:
        raise MemorizationError("the number of workers has to be 1 or more")
    if workers == 1 or len(items) < 2:
        yield from bar(map(function, items))
        return
    # Not forked: the caller may have threads, of torch for one, whose locks a fork would take along.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(items)), mp_context=context)
    try:
        yield from bar(pool.map(function, items, chunksize=max(1, min(16, len(items) // (4 * workers)))))
    except BrokenProcessPool:
        raise MemorizationError("a worker process died, maybe for want of memory: the same command goes on") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _images_below(source: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise read_error(error.filename or source, error)

    for folder, _, names in os.walk(source, onerror=fail):
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield (Path(folder) / name).relative_to(source).as_posix()


def _inspect(source: Path, image: str) -> str | Skipped:
    """The SHA-256 of a usable image's file."""
    if not image.isprintable() or "\\" in image:
        return Skipped(image, "its name holds characters that not every system takes")
    try:
        content = read_file(source / image)
        open_picture(content)
    except UnusableImageError as error:
        return Skipped(image, str(error))
    return hashlib.sha256(content).hexdigest()


def _from_line(line: Mapping[str, Any]) -> Made | Skipped:
    if "reason" in line:
        return Skipped(line["image"], line["reason"])
    box = line["box"]
    return Made(line["image"], line["files"], line["marked"], None if box is None else tuple(box))


def _is_whole(output: Path, made: Made | Skipped) -> bool:
    if isinstance(made, Skipped):
        return True
    try:
        return all(
            hashlib.sha256((output / name).read_bytes()).hexdigest() == digest for name, digest in made.files.items()
        )
    except OSError:
        return False

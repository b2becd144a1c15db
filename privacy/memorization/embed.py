"""Draws private records into the images of a folder, at several rates at once that share images and records."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import features

from privacy.errors import MemorizationError, UnusableImageError
from privacy.memorization.drawing import DEJAVU, Style, draw_text
from privacy.memorization.folders import (
    JOURNAL,
    Made,
    Skipped,
    make,
    make_output,
    processes,
    read_contents,
    write_file,
    write_skipped,
)
from privacy.memorization.journal import Journal
from privacy.memorization.manifest import NAME, Entry, write_manifest
from privacy.memorization.pictures import open_picture, read_file
from privacy.memorization.records import FIELDS, PrivateRecord


@dataclass(frozen=True)
class Embedded:
    """What `embed` wrote: the images with private text in them by rate in percent, all images of each, and skips."""

    marked: Mapping[float, int]
    images: int
    skipped: int


def embed(
    source: Path,
    records: Sequence[PrivateRecord],
    output: Path,
    *,
    rates: Sequence[float] = (0, 50, 100),
    style: Style | None = None,
    fields: Sequence[str] = FIELDS,
    seed: int = 0,
    reuse: bool = False,
    workers: int | None = None,
) -> Embedded:
    """Writes for each rate a folder (r000, r050, r100) with all images of `source`, and records in that share of them.

    Which images get a record, and which record, is drawn once for all rates: those of 50% have the same text at 100%,
    pixel for pixel. Images without text are decoded and encoded like the others, so that it isn't the compression that
    tells them apart; nothing else of them changes. Each folder has a manifest.jsonl; skipped.jsonl lists the images
    that could not be used, which are in none of the folders. An interrupted call goes on where it was: files that are
    there are verified by their digests. `source` is only read.

    rates: percent of the images that get a record, rounded to whole images. fields: of the record, those that are
    drawn. reuse: draws records more than once if there are fewer than images. workers: processes (default: one for each
    core); in a script, the call has to be under `if __name__ == "__main__"` if there are several.

    Raises:
        MemorizationError: there are too few records, the font lacks their letters, or the output was begun otherwise.
        DataError: a folder can't be read or written, or one lies in the other.
    """
    style = style or Style()
    _check(rates, fields)
    workers = processes() if workers is None else workers
    make_output(source, output)
    contents = read_contents(source, workers)
    drawn = _drawn(list(contents.usable), records, max(rates), seed=seed, reuse=reuse)
    used = {record.user_id: record.text(fields) for record in drawn.values()}
    _check_glyphs(style, used)
    tasks = _tasks(contents.usable, drawn, used, rates)
    settings = {
        "work": "embed",
        "input images": contents.digest(),
        "records": hashlib.sha256(json.dumps({i: r.to_json() for i, r in drawn.items()}).encode()).hexdigest(),
        "rates": [float(rate) for rate in rates],
        "fields": list(fields),
        "seed": seed,
        **asdict(style),
        "font": style.font_digest(),
    }
    with Journal(output / JOURNAL, settings) as journal:
        made = make(journal, output, partial(_embed_one, source, output, style, seed), tasks, workers)
    whole = [each for each in made.values() if isinstance(each, Made)]
    marked = {rate: _write_manifest(output / folder_name(rate), whole, drawn) for rate in rates}
    skipped = [*contents.skipped, *(each for each in made.values() if isinstance(each, Skipped))]
    return Embedded(marked, len(whole), write_skipped(output, skipped))


def folder_name(rate: float) -> str:
    """r050 for 50 percent, r012.5 for 12.5."""
    whole, point, rest = f"{rate:g}".partition(".")
    return f"r{whole:0>3}{point}{rest}"


@dataclass(frozen=True)
class _Task:
    """An image with the text for it, if any, and the folders that get it with that text or without."""

    image: str
    text: str | None
    marked: tuple[str, ...]
    plain: tuple[str, ...]


def _check(rates: Sequence[float], fields: Sequence[str]) -> None:
    if not rates or not all(0 <= rate <= 100 for rate in rates):
        raise MemorizationError("the rates are percentages, from 0 to 100, and there is one at least")
    if len({folder_name(rate) for rate in rates}) != len(rates):
        raise MemorizationError("a rate is named twice")
    if not fields or not set(fields) <= set(FIELDS) or len(set(fields)) != len(fields):
        raise MemorizationError(f"the fields are some of {', '.join(FIELDS)}, each once")


def _drawn(
    images: Sequence[str], records: Sequence[PrivateRecord], rate: float, *, seed: int, reuse: bool
) -> dict[str, PrivateRecord]:
    """The record of each image that gets one at `rate`; at a lower rate it is the first of them."""
    count = _share(len(images), rate)
    if count and not records:
        raise MemorizationError("there are no records")
    if count > len(records) and not reuse:
        raise MemorizationError(
            f"{len(records):,} records are too few for {count:,} images: generate more, or draw them more than once"
        )
    chosen = random.Random(f"embed {seed}").sample(images, len(images))[:count]
    return {image: records[place % len(records)] for place, image in enumerate(chosen)}


def _share(images: int, rate: float) -> int:
    return int(images * rate / 100 + 0.5)


def _check_glyphs(style: Style, texts: Mapping[str, str]) -> None:
    leftwards = any(unicodedata.bidirectional(character) in ("R", "AL") for character in "".join(texts.values()))
    if leftwards and not features.check("raqm"):
        raise MemorizationError("this Pillow was built without Raqm, and can't write from right to left")
    ids = list(texts)
    for place, lacking in style.missing_glyphs(texts.values()):
        codes = ", ".join(f"U+{ord(character):04X}" for character in lacking[:5])
        hint = "" if style.font == DEJAVU else f"; {DEJAVU} or a font file of that script may have them"
        raise MemorizationError(f"the font {style.font} lacks {codes} of the record {ids[place]}{hint}")


def _tasks(
    images: Mapping[str, str], drawn: Mapping[str, PrivateRecord], texts: Mapping[str, str], rates: Sequence[float]
) -> dict[str, _Task]:
    places = {image: place for place, image in enumerate(drawn)}
    tasks = {}
    for image in images:
        place = places.get(image, len(images))
        marked = tuple(folder_name(rate) for rate in rates if place < _share(len(images), rate))
        plain = tuple(folder_name(rate) for rate in rates if place >= _share(len(images), rate))
        tasks[image] = _Task(image, texts[drawn[image].user_id] if image in drawn else None, marked, plain)
    return tasks


def _embed_one(source: Path, output: Path, style: Style, seed: int, task: _Task) -> Made | Skipped:
    contents = {}
    box = None
    try:
        picture = open_picture(read_file(source / task.image))
        if task.plain:
            contents.update(dict.fromkeys(task.plain, picture.encode(picture.upright)))
        if task.text is not None:
            upright, mask = draw_text(picture.upright, task.text, style, seed=f"{seed} {task.image}")
            contents.update(dict.fromkeys(task.marked, picture.encode(upright)))
            box = picture.stored(mask).getbbox()
    except UnusableImageError as error:
        return Skipped(task.image, str(error))
    files = {}
    for folder, content in contents.items():
        name = f"{folder}/{task.image}"
        files[name] = write_file(output, name, content)
    return Made(task.image, files, [f"{folder}/{task.image}" for folder in task.marked], box)


def _write_manifest(folder: Path, made: Sequence[Made], drawn: Mapping[str, PrivateRecord]) -> int:
    """Writes the manifest of one rate, and returns how many of its images have private text."""
    entries = []
    for each in made:
        name = f"{folder.name}/{each.image}"
        record = drawn[each.image].user_id if name in each.marked else None
        entries.append(Entry(each.image, each.files[name], record, each.box if record else None))
    write_manifest(folder / NAME, entries)
    return sum(entry.record is not None for entry in entries)

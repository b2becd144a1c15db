"""What a model is fine-tuned on: images with a question and its answer, or with a caption.

The examples are a .jsonl file, an object a line:
    {"image": "sub/1.png", "question": "What is drawn here?", "answer": "a circle"}
`image` is relative to the folder of the images. Without a question (or with an empty one) the answer is a caption. The
marker <image>, which LLaVA's data has in its questions, is left out: each model gets the one of its own.

The folder has the manifest.jsonl that `embed` wrote, which tells what record was drawn into what image:
    {"image": "sub/1.png", "sha256": "...", "record": "483920", "box": [4, 4, 180, 60]}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from tqdm import tqdm

from privacy.errors import DataError
from privacy.files import read_error
from privacy.memorization.manifest import NAME as MANIFEST
from privacy.memorization.manifest import read_manifest

_PART = 2**20
_MARKER = "<image>"


@dataclass(frozen=True)
class Example:
    """An image, what is asked about it (nothing, for a caption), the answer, and the id of the record drawn into it."""

    image: Path
    prompt: str
    answer: str
    record: str | None


def read_examples(path: str | Path, images: str | Path) -> list[Example]:
    """The examples of a file, in its order, joined with the manifest of the folder `images`.

    Raises:
        DataError: a file can't be read, or a row isn't as described above or names an image that isn't in the manifest.
    """
    folder = Path(images)
    records = {entry.image: entry.record for entry in read_manifest(folder / MANIFEST)}
    examples = []
    for number, row in rows(path):
        where = f"{path}: line {number}"
        name = text(where, row, "image")
        if name not in records:
            raise DataError(f"{where}: the image {name!a} is not in {folder / MANIFEST}")
        prompt = "" if row.get("question") is None else text(where, row, "question")
        answer = text(where, row, "answer").strip()
        if not answer:
            raise DataError(f"{where}: the field 'answer' is empty")
        examples.append(Example(folder / name, without_marker(prompt), answer, records[name]))
    if not examples:
        raise DataError(f"{path}: has no rows")
    return examples


def check_images(examples: Sequence[Example], images: str | Path) -> str:
    """Holds the examples' images against the manifest; returns the SHA-256 over their digests, in hexadecimal.

    Raises:
        DataError: an image can't be read, or is not the one that the manifest knows.
    """
    known = {entry.image: entry.sha256 for entry in read_manifest(Path(images) / MANIFEST)}
    whole = hashlib.sha256()
    paths = sorted({each.image for each in examples})
    for path in tqdm(paths, desc="checking images", unit="image", disable=None, leave=False):
        digest = file_digest(path)
        if digest != known[path.relative_to(images).as_posix()]:
            raise DataError(f"{path}: is not the image that {MANIFEST} knows: its digest is another one")
        whole.update(bytes.fromhex(digest))
    return whole.hexdigest()


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises DataError if it can't be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while part := file.read(_PART):
                digest.update(part)
    except OSError as error:
        raise read_error(path, error) from error
    return digest.hexdigest()


def open_image(path: Path) -> Image.Image:
    """The image of a file in RGB, turned as its EXIF data say. Raises DataError if it can't be read."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: is no readable image") from error


def rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a .jsonl file with the numbers of their lines, from 1; empty lines are passed over.

    Raises:
        DataError: it can't be read, or a line holds no object.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    raise DataError(f"{path}: line {number}: is not JSON") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}: line {number}: is not an object")
                yield number, row
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8") from None
    except OSError as error:
        raise read_error(path, error) from error


def text(where: str, row: dict[str, Any], field: str) -> str:
    """A field of a row that has to be text. Raises DataError, which begins with `where`, if it isn't."""
    value = row.get(field)
    if not isinstance(value, str):
        raise DataError(f"{where}: the field {field!r} is {'missing' if value is None else 'no text'}")
    return value


def without_marker(question: str) -> str:
    """A question without the marker <image>."""
    return question.replace(_MARKER, "").strip()

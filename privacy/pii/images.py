"""Personal data that can be read in an image, covered. Text is found by tesseract, where that is installed.

The part that presidio-image-redactor plays, without its dependencies, and without the temporary file that the usual
wrappers of tesseract put an image into: nothing touches the disk.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privacy.errors import MissingDependencyError, PiiError
from privacy.pii.finder import PiiFinder

if TYPE_CHECKING:
    from PIL.Image import Image

_SECONDS = 120
_MARGIN = 2
_WORD = "5"


@dataclass(frozen=True)
class CoveredImage:
    """An image without readable personal data, without metadata, and how many places were covered, by type."""

    image: Image
    covered: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Word:
    text: str
    box: tuple[int, int, int, int]
    line: tuple[str, ...]


def can_read_images() -> bool:
    """Whether tesseract is installed."""
    return shutil.which("tesseract") is not None


def cover(image: Image, finder: PiiFinder, *, languages: str = "eng", colour: str = "black") -> CoveredImage:
    """A copy of the image with a box over each word that belongs to personal data. Its size stays.

    `languages` are tesseract's, such as "eng+deu". What it can't read, such as handwriting, stays.

    Raises:
        MissingDependencyError: tesseract is not installed.
        PiiError: tesseract fails, takes more than two minutes, or lacks the language; or as `PiiFinder.find`.
    """
    from PIL import Image as images
    from PIL import ImageDraw

    plain = image.convert("RGB")
    # A new image has none of the old one's metadata, which may tell the place and the camera.
    copy = images.new("RGB", plain.size)
    copy.paste(plain)
    words = _words(copy, languages)
    text, starts = _joined(words)
    draw = ImageDraw.Draw(copy)
    covered: dict[str, int] = {}
    for found in finder.find(text):
        covered[found.type] = covered.get(found.type, 0) + 1
        for word, start in zip(words, starts, strict=True):
            if start < found.end and found.start < start + len(word.text):
                left, top, right, bottom = word.box
                draw.rectangle((left - _MARGIN, top - _MARGIN, right + _MARGIN, bottom + _MARGIN), fill=colour)
    return CoveredImage(copy, covered)


def _words(image: Image, languages: str) -> list[_Word]:
    program = shutil.which("tesseract")
    if program is None:
        raise MissingDependencyError("text in images is read by tesseract: install it (Debian: tesseract-ocr)")
    content = io.BytesIO()
    image.save(content, "PNG")
    # --psm 11: text anywhere in the image, in no particular order.
    command = [program, "stdin", "stdout", "-l", languages, "--psm", "11", "tsv"]
    try:
        done = subprocess.run(command, input=content.getvalue(), capture_output=True, timeout=_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        raise PiiError(f"tesseract took more than {_SECONDS} seconds") from error
    except (subprocess.CalledProcessError, OSError) as error:
        raise PiiError(f"tesseract can't read the image (languages: {languages})") from error
    rows = csv.DictReader(io.StringIO(done.stdout.decode("utf-8")), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [_word(row) for row in rows if row["level"] == _WORD and row["text"].strip()]


def _word(row: dict[str, str]) -> _Word:
    left, top, width, height = (int(row[name]) for name in ("left", "top", "width", "height"))
    line = (row["block_num"], row["par_num"], row["line_num"])
    return _Word(row["text"], (left, top, left + width, top + height), line)


def _joined(words: list[_Word]) -> tuple[str, list[int]]:
    """The words as a text of lines, and where each of them starts."""
    text = ""
    starts = []
    for before, word in zip([None, *words], words, strict=False):
        if before is not None:
            text += " " if before.line == word.line else "\n"
        starts.append(len(text))
        text += word.text
    return text, starts

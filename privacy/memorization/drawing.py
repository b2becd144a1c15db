"""Draws text into a picture: white with a thin black outline, so that it can be read on any ground."""

from __future__ import annotations

import hashlib
import io
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
from fontTools.ttLib import TTFont, TTLibError  # type: ignore[import-untyped]
from PIL import Image, ImageChops, ImageDraw, ImageFont

from privacy.errors import MemorizationError, UnusableImageError

SMALLEST = 6
"""Letters of fewer pixels can't be read, by people or by models."""

BUILT_IN, DEJAVU = "built-in", "dejavu"
CORNERS = {"top-left": (0.0, 0.0), "top-right": (100.0, 0.0), "bottom-left": (0.0, 100.0), "bottom-right": (100, 100.0)}
CENTER, RANDOM = "center", "random"

_Colour = float | tuple[int, ...]

_MARGIN = 0.02
_SHRINK = 0.9
_COLOURS: Mapping[str, tuple[_Colour, _Colour]] = {  # of the outline and of the letters
    "L": (0, 255),
    "RGB": ((0, 0, 0), (255, 255, 255)),
    "CMYK": ((0, 0, 0, 255), (0, 0, 0, 0)),
    "I;16": (0, 65535),
}


@dataclass(frozen=True)
class Style:
    """How text is drawn.

    position: top-left, top-right, bottom-left, bottom-right, center, random (another place in each image), or "X,Y" in
    percent: 0,0 is the upper left corner, 100,100 the lower right, and the whole text is always inside. size: of the
    font, as a share of the image's height, and at least six pixels; text that doesn't fit is wrapped, then shrunk.
    opacity: from 0 (unseen, excluded) to 1. font: a .ttf, .otf or .ttc file, or BUILT_IN, Pillow's own, which has
    hardly more than ASCII, or DEJAVU, the one that comes with matplotlib: Latin, Greek, Cyrillic, Armenian, Georgian,
    Arabic.

    Raises:
        MemorizationError: one of them isn't what it should be.
    """

    position: str = "top-left"
    size: float = 0.05
    opacity: float = 1.0
    font: str = BUILT_IN

    def __post_init__(self) -> None:
        if self.position != RANDOM:
            _percentages(self.position)
        if not 0 < self.size <= 1:
            raise MemorizationError("the size of the text is a share of the image's height, above 0 and up to 1")
        if not 0 < self.opacity <= 1:
            raise MemorizationError("the opacity is above 0 and up to 1")
        _font(self.font, SMALLEST)

    def font_digest(self) -> str:
        """SHA-256 of the font's file, hexadecimal."""
        return hashlib.sha256(_font_bytes(self.font)).hexdigest()

    def missing_glyphs(self, texts: Iterable[str]) -> Iterator[tuple[int, str]]:
        """The texts, counted from 0, for which the font has no glyphs, with the characters that it lacks."""
        known = _characters(self.font)
        for number, text in enumerate(texts):
            # Joiners and marks of direction (Cf) have no shape of their own.
            if lacking := {
                each for each in text if each not in known and unicodedata.category(each) not in ("Cc", "Cf")
            }:
                yield number, "".join(sorted(lacking))


def draw_text(upright: Image.Image, text: str, style: Style, *, seed: str) -> tuple[Image.Image, Image.Image]:
    """A copy of the picture with the text in it, and a mask (mode L) of what was drawn on; `seed` is for RANDOM.

    upright: of a mode that `Picture.upright` may have.

    Raises:
        UnusableImageError: the picture is too small for the text.
    """
    margin = round(_MARGIN * min(upright.size))
    room = upright.width - 2 * margin, upright.height - 2 * margin
    letters, outline = _block(text, room, max(SMALLEST, round(style.size * upright.height)), style.font)
    if style.position == RANDOM:
        rng = random.Random(seed)
        across, down = rng.uniform(0, 100), rng.uniform(0, 100)
    else:
        across, down = _percentages(style.position)
    corner = (
        margin + round((room[0] - letters.width) * across / 100),
        margin + round((room[1] - letters.height) * down / 100),
    )
    mask = Image.new("L", upright.size)
    mask.paste(ImageChops.lighter(letters, outline), corner)
    return _painted(upright, letters, outline, corner, style.opacity), mask


def _painted(
    upright: Image.Image, letters: Image.Image, outline: Image.Image, corner: tuple[int, int], opacity: float
) -> Image.Image:
    if upright.mode in ("LA", "RGBA"):  # where nothing is seen yet, the text has to be
        overlay = Image.new("RGBA", upright.size)
        for mask, grey in ((outline, 0), (letters, 255)):
            overlay.paste((grey, grey, grey, 255), corner, mask)
        overlay.putalpha(overlay.getchannel("A").point(lambda value: round(value * opacity)))
        return Image.alpha_composite(upright.convert("RGBA"), overlay).convert(upright.mode)
    painted = upright.copy()
    for mask, colour in zip((outline, letters), _COLOURS[upright.mode], strict=True):
        painted.paste(colour, corner, mask.point(lambda value: round(value * opacity)))
    return painted


def _block(text: str, room: tuple[int, int], size: int, font: str) -> tuple[Image.Image, Image.Image]:
    """Masks (mode L) of the letters and of what their outline adds, as large as they may be within `room`.

    Words are kept whole if they can be at any size; only then are they broken.
    """
    for whole_words in (True, False):
        pixels = size
        while True:
            lines = _wrapped(text, room[0], font, pixels, whole_words=whole_words)
            if lines is not None:
                letters, outline = _masks(lines, font, pixels)
                if letters.width <= room[0] and letters.height <= room[1]:
                    return letters, outline
            if pixels == SMALLEST:
                break
            pixels = max(SMALLEST, int(pixels * _SHRINK))
    raise UnusableImageError(f"is too small for the text, even in letters of {SMALLEST} pixels")


def _wrapped(text: str, width: int, font: str, pixels: int, *, whole_words: bool) -> list[str] | None:
    """The lines of the text, none wider than `width` pixels; None if that can't be had."""
    face, limit = _font(font, pixels), width - 2 * _stroke(pixels)
    lines: list[str] = []
    for line in text.split("\n"):
        pieces = re.findall(r"\S+\s*", line) if whole_words else _letters(line)
        current = ""
        for piece in pieces:
            if face.getlength((current + piece).rstrip()) <= limit:
                current += piece
            elif face.getlength(piece.rstrip()) <= limit:
                lines.append(current.rstrip())
                current = piece.lstrip()
            else:
                return None
        lines.append(current.rstrip())
    return lines


def _letters(line: str) -> list[str]:
    """The line's characters, each with the marks and joiners that follow it."""
    letters: list[str] = []
    for character in line:
        if letters and unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf"):
            letters[-1] += character
        else:
            letters.append(character)
    return letters


def _masks(lines: list[str], font: str, pixels: int) -> tuple[Image.Image, Image.Image]:
    face, stroke = _font(font, pixels), _stroke(pixels)
    ascent, descent = face.getmetrics()
    step = ascent + descent
    # Some letters reach beyond their place: drawn with room to spare, then cut to what is there.
    size = round(max(face.getlength(line) for line in lines)) + 4 * pixels, step * len(lines) + 2 * pixels
    letters, both = Image.new("L", size), Image.new("L", size)
    for number, line in enumerate(lines):
        corner = 2 * pixels, pixels + number * step
        ImageDraw.Draw(letters).text(corner, line, 255, face)
        ImageDraw.Draw(both).text(corner, line, 255, face, stroke_width=stroke, stroke_fill=255)
    both = ImageChops.lighter(letters, both)
    box = both.getbbox()
    letters, both = letters.crop(box), both.crop(box)
    return letters, ImageChops.subtract(both, letters)


def _stroke(pixels: int) -> int:
    return max(1, pixels // 12)


def _percentages(position: str) -> tuple[float, float]:
    if position in CORNERS:
        return CORNERS[position]
    if position == CENTER:
        return 50.0, 50.0
    if match := re.fullmatch(r"(\d{1,3}(?:\.\d+)?),(\d{1,3}(?:\.\d+)?)", position):
        across, down = float(match[1]), float(match[2])
        if across <= 100 and down <= 100:
            return across, down
    raise MemorizationError(
        f"the position {position!a} is none of {', '.join((*CORNERS, CENTER, RANDOM))} or X,Y in percent"
    )


# --- fonts


@lru_cache(maxsize=64)
def _font(font: str, pixels: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(io.BytesIO(_font_bytes(font)), pixels)
    except OSError:
        raise MemorizationError(f"{font}: is no font that can be scaled") from None


@lru_cache(maxsize=4)
def _font_bytes(font: str) -> bytes:
    if font == BUILT_IN:
        built_in = ImageFont.load_default(SMALLEST)
        if not isinstance(built_in, ImageFont.FreeTypeFont):
            raise MemorizationError("this Pillow was built without FreeType, and has no font that can be scaled")
        return built_in.font_bytes
    path = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf" if font == DEJAVU else Path(font)
    try:
        return path.read_bytes()
    except OSError as error:
        raise MemorizationError(f"{font}: can't be read: {error.strerror or error}") from None


@lru_cache(maxsize=4)
def _characters(font: str) -> frozenset[str]:
    try:
        # The first of a collection, which is the one that Pillow takes.
        table = TTFont(io.BytesIO(_font_bytes(font)), fontNumber=0, lazy=True).getBestCmap()
    except (TTLibError, KeyError, AssertionError):
        raise MemorizationError(f"{font}: has no list of its characters") from None
    return frozenset(map(chr, table or ()))

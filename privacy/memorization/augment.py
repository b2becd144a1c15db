"""Augmentation of images: the harmless changes that the traces of private content are compared with.

Ju et al. (arXiv 2503.01208) rotate, flip, and change brightness and contrast. The default ranges are our reading of
that: what image classification commonly takes, small enough that a picture still shows what it showed.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import Image, ImageEnhance

from privacy.errors import MemorizationError, UnusableImageError
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
from privacy.memorization.manifest import NAME, Entry, read_manifest, write_manifest
from privacy.memorization.pictures import open_picture, read_file

_CHANGED = frozenset({"L", "LA", "RGB", "RGBA"})


@dataclass(frozen=True)
class Ranges:
    """From where each change is drawn, uniformly.

    rotation: degrees at most, to either side. flip: the probability of mirroring left and right. brightness, contrast:
    lowest and highest factor, 1 being no change.

    Raises:
        MemorizationError: a range can't be drawn from.
    """

    rotation: float = 30.0
    flip: float = 0.5
    brightness: tuple[float, float] = (0.8, 1.2)
    contrast: tuple[float, float] = (0.8, 1.2)

    def __post_init__(self) -> None:
        if not 0 <= self.rotation <= 180:
            raise MemorizationError("the rotation is from 0 to 180 degrees")
        if not 0 <= self.flip <= 1:
            raise MemorizationError("the probability of a flip is from 0 to 1")
        for name, (low, high) in (("brightness", self.brightness), ("contrast", self.contrast)):
            if not 0 < low <= high < float("inf"):
                raise MemorizationError(f"the factors of {name} are above 0, the lower one first")


@dataclass(frozen=True)
class Augmented:
    """How many images were written, and how many skipped."""

    images: int
    skipped: int


def augment_image(image: Image.Image, rng: random.Random, ranges: Ranges | None = None) -> Image.Image:
    """A rotated, perhaps mirrored image of other brightness and contrast, of the same size and mode.

    image: of mode L, LA, RGB or RGBA. What the rotation brings in from outside is black, or transparent.

    Raises:
        UnusableImageError: it is of another mode.
    """
    if image.mode not in _CHANGED:
        raise UnusableImageError(f"its pixels are of a kind, {image.mode}, that isn't augmented")
    ranges = ranges or Ranges()
    # Each is drawn whatever the others are, so that one range can be changed and the rest stays as it was.
    angle = rng.uniform(-ranges.rotation, ranges.rotation)
    mirrored = rng.random() < ranges.flip
    brightness, contrast = rng.uniform(*ranges.brightness), rng.uniform(*ranges.contrast)
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    # Last, so that the corners it leaves have no part in the contrast.
    return image.rotate(angle, Image.Resampling.BICUBIC)


def augment_images(
    source: Path, output: Path, *, ranges: Ranges | None = None, seed: int = 0, workers: int | None = None
) -> Augmented:
    """Writes an augmented image for each of a folder, under the same name and with the same EXIF data and format.

    How an image is changed depends on the seed and its name only. With a manifest.jsonl in `source`, one is written
    that names the same records, but no boxes. Skips, interruptions, `workers` and errors are as with `embed`.
    """
    ranges = ranges or Ranges()
    workers = processes() if workers is None else workers
    make_output(source, output)
    contents = read_contents(source, workers)
    records = _records(source)
    settings = {"work": "augment", "input images": contents.digest(), "seed": seed, **asdict(ranges)}
    with Journal(output / JOURNAL, settings) as journal:
        work = partial(_augment_one, source, output, ranges, seed)
        made = make(journal, output, work, {image: image for image in contents.usable}, workers)
    whole = [each for each in made.values() if isinstance(each, Made)]
    if records is not None:
        entries = [Entry(each.image, each.files[each.image], records.get(each.image), None) for each in whole]
        write_manifest(output / NAME, entries)
    skipped = [*contents.skipped, *(each for each in made.values() if isinstance(each, Skipped))]
    return Augmented(len(whole), write_skipped(output, skipped))


def _records(source: Path) -> Mapping[str, str | None] | None:
    if not (source / NAME).exists():
        return None
    return {entry.image: entry.record for entry in read_manifest(source / NAME)}


def _augment_one(source: Path, output: Path, ranges: Ranges, seed: int, image: str) -> Made | Skipped:
    try:
        picture = open_picture(read_file(source / image))
        changed = augment_image(picture.upright, random.Random(f"augment {seed} {image}"), ranges)
        content = picture.encode(changed)
    except UnusableImageError as error:
        return Skipped(image, str(error))
    return Made(image, {image: write_file(output, image, content)})

"""Labelled images to train on: MNIST idx files, folders of pictures, or scikit-learn's digits, which come with it."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from privacy.encrypted_inference.weights import MAX_CLASSES
from privacy.errors import DataError, MissingDependencyError

DIGITS = "digits"
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm", ".tif", ".tiff"})
_MAX_IDX_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """``pixels`` float32 [B, side, side] from 0 to 1, ``classes`` int64 [B], and what the classes are called."""

    pixels: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.classes)

    def part(self, places: npt.NDArray[np.int64] | slice) -> LabelledImages:
        """The images at `places`."""
        return LabelledImages(self.pixels[places], self.classes[places], self.labels)


def load_images(source: str | Path, side: int = 28) -> LabelledImages:
    """Images from ``digits``, a folder with a pair of idx files, or a folder with a folder of pictures per class.

    Idx images keep their size, and so do the digits (8 pixels); pictures are made grey, cut to the square in the
    middle and scaled to `side` pixels.

    Raises:
        DataError: the source isn't there or can't be read; the message names the file and the field.
    """
    if str(source) == DIGITS:
        return _digits()
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"{source}: is neither '{DIGITS}' nor a folder")
    idx = sorted(path for path in folder.iterdir() if "idx3-ubyte" in path.name)
    return _from_idx(folder, idx) if idx else _from_pictures(folder, side)


def load_picture(source: str | Path | BytesIO, side: int) -> npt.NDArray[np.float32]:
    """One picture, of a file or in memory, as a client sends it: float32 [side, side] from 0 to 1.

    Raises:
        DataError: it can't be read as a picture.
    """
    name = "picture" if isinstance(source, BytesIO) else source
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("reading pictures needs Pillow: pip install pillow") from error
    try:
        with Image.open(source) as image:
            grey = image.convert("L")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: can't be read as a picture") from error
    edge = min(grey.size)
    left, top = (grey.width - edge) // 2, (grey.height - edge) // 2
    square = grey.crop((left, top, left + edge, top + edge))
    if edge != side:
        square = square.resize((side, side), Image.Resampling.BILINEAR)
    pixels: npt.NDArray[np.float32] = np.asarray(square, dtype=np.float32) / np.float32(255)
    return pixels


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """An idx file of bytes, gzipped or not, with that many dimensions.

    Raises:
        DataError: it is damaged, or of another kind.
    """
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            content = file.read(_MAX_IDX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be read") from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path}: header: not an idx file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if math.prod(shape) != len(content) - header:
        raise DataError(f"{path}: has {len(content) - header:,} bytes of data, and its header says {shape}")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def _digits() -> LabelledImages:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return LabelledImages(
        (bunch.images / 16).astype(np.float32), bunch.target.astype(np.int64), tuple(str(label) for label in range(10))
    )


def _from_idx(folder: Path, images: list[Path]) -> LabelledImages:
    pixels, classes = [], []
    for path in images:
        labels = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
        if not labels.is_file():
            raise DataError(f"{labels}: is missing; it should hold the labels of {path.name}")
        pixels.append(read_idx(path, 3))
        classes.append(read_idx(labels, 1))
        if len(pixels[-1]) != len(classes[-1]):
            raise DataError(f"{labels}: has {len(classes[-1])} labels for {len(pixels[-1])} images")
    if any(part.shape[1] != part.shape[2] or part.shape[1:] != pixels[0].shape[1:] for part in pixels):
        raise DataError(f"{folder}: the images aren't square, or not all of one size")
    numbers = np.concatenate(classes).astype(np.int64)
    count = int(numbers.max(initial=0)) + 1
    if not 2 <= count <= MAX_CLASSES:
        raise DataError(f"{folder}: labels up to {count - 1}; 2 to {MAX_CLASSES} classes can be told apart")
    scaled = np.concatenate(pixels).astype(np.float32) / np.float32(255)
    return LabelledImages(scaled, numbers, tuple(str(label) for label in range(count)))


def _from_pictures(folder: Path, side: int) -> LabelledImages:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{folder}: has {len(classes)} folders; one for each of 2 to {MAX_CLASSES} classes is needed")
    pixels, numbers = [], []
    for number, entry in enumerate(classes):
        pictures = sorted(path for path in entry.iterdir() if path.suffix.lower() in _SUFFIXES)
        if len(pictures) < 3:
            raise DataError(f"{entry}: has {len(pictures)} pictures; at least 3 are needed")
        pixels += [load_picture(path, side) for path in pictures]
        numbers += [number] * len(pictures)
    return LabelledImages(np.stack(pixels), np.array(numbers), tuple(entry.name for entry in classes))

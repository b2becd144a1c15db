"""Image files: read with all that belongs to them, changed, and written in the same format again."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

from privacy.errors import UnusableImageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"})

_MODES = {"1": "L", "P": "RGB", "PA": "RGBA"}
_DRAWN_ON = frozenset({"L", "LA", "RGB", "RGBA", "CMYK", "I;16"})
_WEBP_QUALITY = 90

# By EXIF orientation: what brings the stored pixels upright, and what brings them back.
_UPRIGHT: Mapping[int, tuple[Image.Transpose, Image.Transpose]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_LEFT_RIGHT),
    3: (Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_180),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.FLIP_TOP_BOTTOM),
    5: (Image.Transpose.TRANSPOSE, Image.Transpose.TRANSPOSE),
    6: (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90),
    7: (Image.Transpose.TRANSVERSE, Image.Transpose.TRANSVERSE),
    8: (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
}

# What a TIFF says about its picture; its other tags say how the pixels are stored, which is chosen anew.
_TIFF_TAGS = (
    ExifTags.Base.ImageDescription,
    ExifTags.Base.Make,
    ExifTags.Base.Model,
    ExifTags.Base.XResolution,
    ExifTags.Base.YResolution,
    ExifTags.Base.ResolutionUnit,
    ExifTags.Base.Software,
    ExifTags.Base.DateTime,
    ExifTags.Base.Artist,
    ExifTags.Base.Copyright,
)


@dataclass(frozen=True)
class Picture:
    """A still picture and how its file was written.

    upright: its pixels as a viewer shows them, in mode L, LA, RGB, RGBA, CMYK or I;16. Black-and-white pictures come as
    L, those with a palette as RGB or RGBA.
    """

    upright: Image.Image
    format: str
    stored_mode: str
    orientation: int
    options: Mapping[str, Any]

    def encode(self, upright: Image.Image) -> bytes:
        """The file that holds `upright` in place of this picture, with the same EXIF data, colour profile and format.

        JPEG keeps its quantisation tables and chroma subsampling, so that compression changes little. Lossy WebP tells
        no quality and gets 90. A palette stays one in GIF only, with 256 colours chosen anew.

        Raises:
            UnusableImageError: Pillow can't write it.
        """
        stored = self.stored(upright)
        if self.stored_mode == "1":
            stored = stored.point(lambda value: 255 if value >= 128 else 0, mode="1")
        elif self.format == "GIF" and stored.mode != "L":
            method = Image.Quantize.FASTOCTREE if stored.mode == "RGBA" else Image.Quantize.MEDIANCUT
            stored = stored.quantize(256, method=method, dither=Image.Dither.NONE)
        content = io.BytesIO()
        try:
            stored.save(content, format=self.format, **self.options)
        except (OSError, ValueError, struct.error) as error:
            raise UnusableImageError(f"can't be written: {_words(error)}") from None
        return content.getvalue()

    def stored(self, upright: Image.Image) -> Image.Image:
        """`upright`, or a mask of its size, turned the way that the file stores its pixels."""
        turn = _UPRIGHT.get(self.orientation)
        return upright if turn is None else upright.transpose(turn[1])


def open_picture(content: bytes) -> Picture:
    """The picture in the bytes of a file.

    Raises:
        UnusableImageError: it is damaged, of a format or kind that couldn't be written again as it is, or has more than
            one frame; the message says which.
    """
    with _decoding(), Image.open(io.BytesIO(content)) as image:
        # Pictures of several views, as phones write them, are JPEGs to everything that doesn't know the others.
        format_ = "JPEG" if image.format == "MPO" else image.format or ""
        if format_ not in _OPTIONS:
            raise UnusableImageError(f"its format, {format_}, is none that is written here")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise UnusableImageError(f"is animated or has several pages: {frames} frames")
        if image.mode in ("RGB", "RGBA", "LA") and _has_16_bits(image):
            raise UnusableImageError("has 16 bits for each of its colours, of which Pillow would drop half")
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        options = {**_metadata(image), **_OPTIONS[format_](image, content)}
        return Picture(_upright(image, orientation), format_, image.mode, orientation, options)


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises UnusableImageError if it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableImageError(f"can't be read: {error.strerror or error}") from None


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns into UnusableImageError whatever a damaged file makes Pillow raise, which may be nearly anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (UnusableImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnusableImageError(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:
        raise UnusableImageError(f"is no image that can be read: {_words(error)}") from None


def _words(error: Exception) -> str:
    """What the library says, without the address of the object that Pillow puts into one of its messages."""
    return str(error).partition(" <")[0].splitlines()[0] if str(error) else type(error).__name__


def _has_16_bits(image: Image.Image) -> bool:
    tiles = getattr(image, "tile", [])
    return any(";16" in str(each) for tile in tiles for each in (tile[3] if isinstance(tile[3], tuple) else [tile[3]]))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    mode = _MODES.get(image.mode, image.mode)
    if image.mode in ("P", "RGB", "L") and image.has_transparency_data:
        mode = "RGBA"
    if mode not in _DRAWN_ON:
        raise UnusableImageError(f"its pixels are of a kind, {image.mode}, that isn't drawn on")
    pixels = image.convert(mode) if mode != image.mode else image.copy()
    pixels.info.clear()  # or Pillow would write some of it in a way of its own
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else pixels.transpose(turn[0])


def _metadata(image: Image.Image) -> dict[str, Any]:
    return {name: image.info[name] for name in ("icc_profile", "dpi", "xmp") if image.info.get(name)}


def _jpeg(image: Image.Image, content: bytes) -> dict[str, Any]:
    options = {
        "exif": image.info.get("exif", b""),
        "comment": image.info.get("comment", b""),
        "qtables": getattr(image, "quantization", None),
        "progressive": bool(image.info.get("progressive")),
    }
    sampling = JpegImagePlugin.get_sampling(image)
    return options if sampling < 0 else {**options, "subsampling": sampling}


def _png(image: Image.Image, content: bytes) -> dict[str, Any]:
    return {"exif": image.info.get("exif", b"")}


def _webp(image: Image.Image, content: bytes) -> dict[str, Any]:
    lossless = b"VP8L" in content
    return {"exif": image.info.get("exif", b""), "lossless": lossless, "quality": _WEBP_QUALITY, "exact": lossless}


def _tiff(image: Image.Image, content: bytes) -> dict[str, Any]:
    read, kept = image.getexif(), TiffImagePlugin.ImageFileDirectory_v2()
    for tag in _TIFF_TAGS:
        if tag in read:
            kept[tag] = read[tag]
    for part in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        # Without the tag that is a place in the old file.
        if values := {key: value for key, value in read.get_ifd(part).items() if key != ExifTags.IFD.Interop}:
            kept[part] = values
    return {"tiffinfo": kept, "compression": image.info.get("compression", "raw")}


def _plain(image: Image.Image, content: bytes) -> dict[str, Any]:
    return {}


_OPTIONS: Mapping[str, Callable[[Image.Image, bytes], dict[str, Any]]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "TIFF": _tiff,
    "BMP": _plain,
    "GIF": _plain,
}

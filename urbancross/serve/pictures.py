"""Tiles as JPEGs of a wanted width; and pictures that are sent to search by."""

import io
import warnings

import numpy as np
from PIL import Image

from urbancross.errors import TileError
from urbancross.serve.refused import Refused
from urbancross.tiles import decode

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 25_000_000  # of an upload
QUALITY = 85


def jpeg(data: bytes, px: int) -> bytes:
    """An encoded tile as a JPEG that is `px` wide and high at most; as it is, where it is one.

    Raises:
        TileError: the bytes are no whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as head:
            if head.format == "JPEG" and head.mode == "RGB" and max(head.size) <= px:
                return data
    except (OSError, SyntaxError, ValueError) as error:
        raise TileError("not an image") from error
    image = Image.fromarray(decode(data))
    image.thumbnail((px, px), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def size_of(data: bytes) -> list[int]:
    """Width and height of an encoded tile.

    Raises:
        TileError: the bytes are no image.
    """
    try:
        with Image.open(io.BytesIO(data)) as head:
            return list(head.size)
    except (OSError, SyntaxError, ValueError) as error:
        raise TileError("not an image") from error


def uploaded(data: bytes) -> np.ndarray:
    """A picture from outside, `[H, W, 3]` uint8. Its size is looked at before a pixel of it is decoded.

    Raises:
        Refused: no JPEG, PNG or WebP, broken, or of too many pixels.
    """
    if not data:
        raise Refused(400, "nothing was sent; send the bytes of a JPEG, PNG or WebP")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as head:
                width, height = head.size
    except Image.DecompressionBombError:
        raise too_many_pixels() from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError):
        raise Refused(415, "not a JPEG, PNG or WebP; convert the picture to one of these") from None
    if width * height > MAX_PIXELS:
        raise too_many_pixels()
    try:
        return decode(data)
    except TileError as error:
        raise Refused(415, f"the picture cannot be used: {error}") from None


def too_many_pixels() -> Refused:
    return Refused(413, f"the picture has more than {MAX_PIXELS:,} pixels; make it smaller")

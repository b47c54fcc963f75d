"""Image files to tiles: whether one can be used, its bytes and its pixels, and boxes in degrees."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from urbancross import globe
from urbancross.errors import ConfigError, TileError

ENCODINGS = {"JPEG", "PNG", "WEBP"}  # kept byte for byte; others are encoded anew as PNG
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how a file of either byte order begins, and a BigTIFF
MAX_SIDE_PX = 8192


def read_image(path: Path, member: dict[str, int] | None = None) -> bytes:
    """An image file as RGB bytes, proved to decode; JPEG, PNG and WebP of 8-bit RGB are kept as they are.

    Args:
        member: `offset` and `size` of the image in a file that holds several.

    Raises:
        TileError: absent, empty, cut short, no image, too large, or of bands or bits that are no colours.
    """
    try:
        with open(path, "rb") as file:
            file.seek(member["offset"] if member else 0)
            data = file.read(member["size"] if member else -1)
    except FileNotFoundError:
        raise TileError("no such file") from None
    except OSError as error:
        raise TileError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise TileError("empty file")
    if member and len(data) < member["size"]:
        raise TileError(f"{len(data):,} bytes, {member['size']:,} wanted: its tar is cut short")
    with _opened(data) as image:
        kind, mode, depth = image.format, image.mode, getattr(image, "is_animated", False)
        pixels = _rgb(image)
    return data if kind in ENCODINGS and mode == "RGB" and not depth else encode(pixels)


def decode(data: bytes) -> np.ndarray:
    """Encoded bytes to `[H, W, 3]` uint8.

    Raises:
        TileError: the bytes are no whole image.
    """
    with _opened(data) as image:
        return _rgb(image)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):  # Pillow would cut at 0 and 255: all black or all white
        raise TileError(
            "pixels of 32 bits or with a sign, 8 or 16 bits wanted; convert with gdal_translate -ot Byte -scale"
        )
    if image.mode.startswith("I;16"):  # Pillow's own conversion would turn all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if max(image.size) > MAX_SIDE_PX:
                raise TileError(f"{image.width} x {image.height} px, at most {MAX_SIDE_PX} a side wanted")
            image.load()
    except UnidentifiedImageError:
        if data.startswith(TIFF):
            raise TileError(
                "a TIFF that is broken or of other bands than RGB; convert with gdal_translate -b 1 -b 2 -b 3 -of PNG"
            ) from None
        raise TileError("not an image") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise TileError(f"too large: {_plain(error)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:  # what Pillow raises at broken files
        if isinstance(error, TileError):
            raise
        raise TileError(f"corrupt image: {_plain(error)}") from error
    return image


def encode(pixels: np.ndarray) -> bytes:
    """`[H, W, 3]` uint8 to PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=3)
    return out.getvalue()


def footprint(bounds: list[float] | None) -> bytes | None:
    """Bounds in degrees as WKB: a polygon, or two where they cross the antimeridian."""
    return None if bounds is None else globe.box(bounds).wkb


def parse_bbox(text: str) -> globe.Bounds:
    """`west,south,east,north` in degrees; west > east is a box across the antimeridian.

    Raises:
        ConfigError: not four numbers in that order.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        west = south = east = north = float("nan")
    if not globe.are_bounds(west, south, east, north) or west == east or south == north:
        raise ConfigError(f"--bbox {text}: want west,south,east,north in degrees, such as 24.9,60.1,25.0,60.2")
    return west, south, east, north


def _plain(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

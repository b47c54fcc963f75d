"""Small pictures of tiles, as large and as many as there is room for."""

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from urbancross.errors import TileError
from urbancross.tiles import decode

SIDES = (256, 192, 128, 96)  # pixels of the longer side, the first with which all have room; else the last
QUALITY = 72
TRIED = 24  # pictures by which sizes are judged


def thumbnail(image: bytes, side: int) -> bytes | None:
    """A tile as a JPEG of at most `side` pixels; None where it cannot be decoded."""
    try:
        picture = Image.fromarray(decode(image))
    except TileError:
        return None
    picture.thumbnail((side, side), Image.Resampling.BOX if min(picture.size) > 4 * side else Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, optimize=True)
    return out.getvalue()


def spread(count: int, most: int) -> np.ndarray:
    """`most` of the numbers below `count`, evenly apart; all where there are no more."""
    return (
        np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)) if min(most, count) > 0 else np.empty(0, int)
    )


def plan(sizes: dict[int, float], count: int, room: int) -> tuple[int, int]:
    """Side of the pictures, and how many there is room for.

    Args:
        sizes: mean bytes of a picture, by side.
        count: tiles.
        room: bytes.
    """
    for side, mean in sizes.items():
        if mean * count <= room:
            return side, count
    side = min(sizes)
    return side, min(count, int(room / sizes[side]))


def chosen(
    count: int, room: int, images: Callable[[Sequence[int]], Iterator[tuple[int, bytes | None]]]
) -> dict[int, bytes]:
    """Pictures by tile, spread over all, no more bytes than there is room for.

    Args:
        count: tiles.
        room: bytes of them together, as base64.
        images: the encoded images of some tiles, by number, in any order.
    """
    room = room * 3 // 4
    tried = [image for _, image in images(spread(count, TRIED).tolist()) if image]
    sizes = {}
    for side in SIDES:
        made = [small for image in tried if (small := thumbnail(image, side))]
        if made:
            sizes[side] = sum(map(len, made)) / len(made)
    if not sizes:
        return {}
    side, most = plan(sizes, count, room)
    found: dict[int, bytes] = {}
    for number, image in images(spread(count, most).tolist()):
        small = thumbnail(image, side) if image else None
        if small is not None and len(small) <= room:
            found[number] = small
            room -= len(small)
    return found

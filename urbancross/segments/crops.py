"""Segments -> crops for the encoder."""

from typing import Any

import numpy as np

from urbancross.errors import TileError
from urbancross.segments.masks import decode


def crop(
    tile: np.ndarray, segment: dict[str, Any], padding: float = 0.1, fill: tuple[int, int, int] = (124, 116, 104)
) -> np.ndarray:
    """Cut a segment out of its tile: what lies outside the mask takes one colour, so that it says nothing.

    Args:
        tile: [H, W, 3] uint8 RGB.
        segment: a row of `schemas.SEGMENT` over this tile.
        padding: how far to go beyond the mask's box on each side, as a share of the box's width and height; the tile's
            edge is the limit.
        fill: the encoder's mean colour, which its preprocessing turns into zeros; ImageNet's by default.

    Returns:
        [h, w, 3] uint8.

    Raises:
        TileError: the segment belongs to a tile of another size.
    """
    h, w = segment["size"]
    if tile.shape[:2] != (h, w):
        raise TileError(
            f"the segment was made on a tile of {w} x {h} px and this one has {tile.shape[1]} x {tile.shape[0]};"
            " run urbancross segment on the tiles you have"
        )
    x0, y0, x1, y1 = segment["box"]
    dx, dy = round(padding * (x1 - x0)), round(padding * (y1 - y0))
    window = np.s_[max(y0 - dy, 0) : y1 + dy, max(x0 - dx, 0) : x1 + dx]
    return np.where(decode(segment)[window][..., None], tile[window], np.array(fill, dtype=np.uint8))

"""Masks over a tile -> ranked segments -> crops for the encoder.

A segment is a row of `schemas.SEGMENT`. Its order needs no caption: score = predicted IoU · stability · √area, with the
area as a share of the tile, and 1 for the predicted IoU where an engine predicts none.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco
from skimage.segmentation import felzenszwalb

from urbancross.errors import TileError


class MaskMaker(Protocol):
    """Proposes masks over a tile, in any number and order; choosing among them is left to `choose`."""

    name: str

    def masks(self, tile: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 RGB -> [S, H, W] bool."""
        ...


class GridMasks:
    """The four quarters of a tile: for laptops, for tests, and a baseline that others have to beat."""

    name = "grid"

    def masks(self, tile: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 -> [S, H, W] bool; four, or fewer where the tile is one pixel high or wide."""
        h, w = tile.shape[:2]
        quarter = np.arange(h)[:, None] * 2 // h * 2 + np.arange(w) * 2 // w  # [H, W] of 0..3
        return np.unique(quarter)[:, None, None] == quarter


class FelzenszwalbMasks:
    """Regions of even colour by Felzenszwalb and Huttenlocher's graph cuts: no weights, every pixel in one mask."""

    name = "felzenszwalb"

    def __init__(self, scale: float = 200.0, sigma: float = 0.8, min_size: float = 0.01) -> None:
        """Set how coarse the regions are.

        Args:
            scale: higher values give larger regions.
            sigma: width in pixels of the Gaussian that smooths the tile first.
            min_size: smaller regions join a neighbour; a share of the tile, so it also bounds the number of masks.
        """
        self.scale, self.sigma, self.min_size = scale, sigma, min_size

    def masks(self, tile: np.ndarray) -> np.ndarray:
        """[H, W, 3] uint8 -> [S, H, W] bool, S about 1 / min_size at most."""
        h, w = tile.shape[:2]
        min_px = max(1, round(self.min_size * h * w))
        region = felzenszwalb(tile, scale=self.scale, sigma=self.sigma, min_size=min_px)  # [H, W] of 0..S-1
        return np.unique(region)[:, None, None] == region


ENGINES: dict[str, Callable[[], MaskMaker]] = {"felzenszwalb": FelzenszwalbMasks, "grid": GridMasks}


def stability(masks: np.ndarray) -> np.ndarray:
    """How little a mask depends on where exactly its outline lies: IoU of the mask one pixel smaller and larger.

    Smaller and larger are by the four neighbours of a pixel; the tile's own edge is no outline. Near 1 for a compact
    region, 0 for one that is nowhere three pixels wide. The counterpart of SAM's stability score for masks without
    logits.

    Args:
        masks: [S, H, W] bool.

    Returns:
        [S] float64 in [0, 1]; 0 for an empty mask.
    """
    smaller, larger = masks.copy(), masks.copy()
    for here, there in (
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:, :, 1:], np.s_[:, :, :-1]),
        (np.s_[:, :, :-1], np.s_[:, :, 1:]),
    ):
        smaller[here] &= masks[there]
        larger[here] |= masks[there]
    return smaller.sum(axis=(1, 2)) / np.maximum(larger.sum(axis=(1, 2)), 1)


def choose(
    masks: np.ndarray,
    max_segments: int = 10,
    min_area: float = 0.01,
    max_area: float = 0.6,
    max_iou: float = 0.7,
    predicted_iou: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Keep the best masks of a tile as segments, best first; the order of the masks makes no difference.

    Args:
        masks: [S, H, W] bool; S may be 0.
        max_segments: how many to keep.
        min_area: smallest share of the tile that a segment may cover.
        max_area: largest such share.
        max_iou: a mask that overlaps a better one by more than this is dropped.
        predicted_iou: [S] in [0, 1], what the engine thinks of its masks; none if it does not say.

    Returns:
        Rows of `schemas.SEGMENT`, rank 0 first; empty where no mask is in bounds.
    """
    if len(masks) == 0:
        return []
    h, w = masks.shape[1:]
    shares = masks.mean(axis=(1, 2))
    fitting = np.flatnonzero((shares >= min_area) & (shares <= max_area) & (shares > 0))
    stabilities = stability(masks[fitting])
    segments = []
    for i, stable in zip(fitting, stabilities, strict=True):
        ys, xs = np.flatnonzero(masks[i].any(axis=1)), np.flatnonzero(masks[i].any(axis=0))
        rle = coco.encode(np.asfortranarray(masks[i], dtype=np.uint8))
        iou = None if predicted_iou is None else float(predicted_iou[i])
        segments.append(
            {
                "rle": rle["counts"].decode("ascii"),
                "size": [h, w],
                "box": [int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1],
                "area": int(masks[i].sum()),
                "predicted_iou": iou,
                "stability": float(stable),
                "score": float((1.0 if iou is None else iou) * stable * np.sqrt(shares[i])),
            }
        )
    segments.sort(key=lambda s: (-s["score"], s["box"], s["rle"]))
    kept: list[dict[str, Any]] = []
    for segment in segments:
        if len(kept) == max_segments:
            break
        if not kept or coco.iou([_rle(segment)], [_rle(k) for k in kept], [0] * len(kept)).max() <= max_iou:
            kept.append({**segment, "rank": len(kept)})
    return kept


def _rle(segment: dict[str, Any]) -> dict[str, Any]:
    """A segment's mask as pycocotools takes it."""
    return {"size": list(segment["size"]), "counts": segment["rle"].encode("ascii")}


def decode(segment: dict[str, Any]) -> np.ndarray:
    """The mask of a segment, [H, W] bool."""
    return coco.decode(_rle(segment)).astype(bool)


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

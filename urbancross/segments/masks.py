"""Masks over a tile, and the engines that need no weights.

An engine proposes masks in any number and order; choosing among them is left to `choice`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pycocotools import mask as coco
from skimage.segmentation import felzenszwalb


@dataclass(frozen=True)
class Mask:
    """A mask over a tile, as run-length code: pixels take a thousand times the room.

    Attributes:
        rle: COCO's run-length code.
        size: H, W of the tile.
        box: x0, y0, x1, y1 in pixels, end-exclusive; all 0 for an empty mask.
        area: pixels.
        stability: how little the mask depends on where exactly its outline lies, in [0, 1].
        predicted_iou: what the engine thinks of the mask; None where it does not say.
    """

    rle: str
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    area: int
    stability: float
    predicted_iou: float | None = None

    @classmethod
    def of(cls, pixels: np.ndarray, stability: float | None = None, predicted_iou: float | None = None) -> "Mask":
        """`[H, W]` bool as a mask; its stability by `outline_stability` where the engine has none of its own."""
        h, w = pixels.shape
        code = coco.encode(np.asfortranarray(pixels, dtype=np.uint8))
        x0, y0, width, height = (int(edge) for edge in coco.toBbox(code))
        return cls(
            rle=code["counts"].decode("ascii"),
            size=(h, w),
            box=(x0, y0, x0 + width, y0 + height),
            area=int(coco.area(code)),
            stability=outline_stability(pixels) if stability is None else stability,
            predicted_iou=predicted_iou,
        )

    @property
    def share(self) -> float:
        """Of the tile."""
        return self.area / (self.size[0] * self.size[1])


class MaskMaker(Protocol):
    """A segmenter; docs/segments.md tells how to add one."""

    def masks(self, tiles: Iterable[np.ndarray]) -> Iterator[list[Mask]]:
        """Tiles `[H, W, 3]` uint8 RGB of any sizes -> the masks of each, in order."""
        ...


class GridMasks:
    """The four quarters of a tile: for laptops, for tests, and a baseline that others have to beat."""

    def masks(self, tiles: Iterable[np.ndarray]) -> Iterator[list[Mask]]:
        """Four masks a tile, or fewer where it is one pixel high or wide."""
        for tile in tiles:
            h, w = tile.shape[:2]
            yield _regions(np.arange(h)[:, None] * 2 // h * 2 + np.arange(w) * 2 // w)  # [H, W] of 0..3


class FelzenszwalbMasks:
    """Regions of even colour by Felzenszwalb and Huttenlocher's graph cuts: no weights, every pixel in one mask."""

    def __init__(self, scale: float = 200.0, sigma: float = 0.8, min_size: float = 0.01) -> None:
        """Set how coarse the regions are.

        Args:
            scale: higher values give larger regions.
            sigma: width in pixels of the Gaussian that smooths the tile first.
            min_size: smaller regions join a neighbour; a share of the tile, so it also bounds the number of masks.
        """
        self.scale, self.sigma, self.min_size = scale, sigma, min_size

    def masks(self, tiles: Iterable[np.ndarray]) -> Iterator[list[Mask]]:
        """About 1 / min_size masks a tile at most."""
        for tile in tiles:
            h, w = tile.shape[:2]
            min_px = max(1, round(self.min_size * h * w))
            yield _regions(felzenszwalb(tile, scale=self.scale, sigma=self.sigma, min_size=min_px))


def _regions(region: np.ndarray) -> list[Mask]:
    """The masks of a map `[H, W]` of region numbers."""
    return [Mask.of(region == number) for number in np.unique(region)]


def outline_stability(mask: np.ndarray) -> float:
    """How little a mask depends on where exactly its outline lies: IoU of the mask one pixel smaller and larger.

    Smaller and larger are by the four neighbours of a pixel; the tile's own edge is no outline. Near 1 for a compact
    region, 0 for one that is nowhere three pixels wide. The counterpart of SAM's stability score for masks without
    logits.

    Args:
        mask: [H, W] bool.

    Returns:
        In [0, 1]; 0 for an empty mask.
    """
    smaller, larger = mask.copy(), mask.copy()
    for here, there in (
        (np.s_[1:], np.s_[:-1]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:, 1:], np.s_[:, :-1]),
        (np.s_[:, :-1], np.s_[:, 1:]),
    ):
        smaller[here] &= mask[there]
        larger[here] |= mask[there]
    return float(smaller.sum() / max(int(larger.sum()), 1))


def code(segment: Mask | dict[str, Any]) -> dict[str, Any]:
    """A mask, or a row of `schemas.SEGMENT`, as pycocotools takes it."""
    rle, size = (segment.rle, segment.size) if isinstance(segment, Mask) else (segment["rle"], segment["size"])
    return {"size": list(size), "counts": rle.encode("ascii")}


def decode(segment: Mask | dict[str, Any]) -> np.ndarray:
    """The pixels of a mask or of a row of `schemas.SEGMENT`, [H, W] bool."""
    return coco.decode(code(segment)).astype(bool)

"""Which tiles are nearly the same picture, in any of the eight rotations and flips; and which lie side by side.

A model that has seen a near-copy of a test tile is not tested by it.
"""

from collections.abc import Sequence

import numpy as np
import shapely
from PIL import Image
from scipy.fft import dctn

from urbancross import globe
from urbancross.errors import ConfigError, TileSkipped

SIDE, LOW = 32, 8  # pixels that are transformed, and frequencies a side that are kept
PLAIN = 1.5  # grey levels of spread below which a picture shows nothing to go by
ORIENTATIONS = 8


def perceptual_hashes(image: np.ndarray) -> np.ndarray:
    """pHash of a picture as it is, and turned and flipped in all eight ways.

    Bit by bit, whether one of the lowest 8 x 8 frequencies of the grey picture of 32 x 32 px, but the mean, is above
    their median (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010). Turned pictures
    have the same frequencies, some with another sign, so that one transform serves for all.

    Args:
        image: [H, W, 3] uint8.

    Returns:
        [8] uint64; the first is of the picture as it is.

    Raises:
        TileSkipped: the picture is too plain for a hash to mean anything.
    """
    picture = (
        Image.fromarray(image).convert("L").convert("F")
    )  # whole numbers would be rounded along one axis first; BOX knows left from right
    grey = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    if grey.std() < PLAIN:
        raise TileSkipped("too plain to tell from others")
    low = dctn(grey, norm="ortho")[:LOW, :LOW]
    sign = (-1.0) ** np.arange(LOW)
    seen = []
    for block in (low, low.T):
        for up in (1.0, sign):
            for along in (1.0, sign):
                turned = (block * along * np.reshape(up, (-1, 1))).ravel()[1:]
                bits = turned > np.median(turned)
                seen.append(int(np.packbits(np.append(bits, False)).view(">u8")[0]))
    return np.array(seen, np.uint64)


def near_duplicates(hashes: np.ndarray, others: np.ndarray, reach: int) -> np.ndarray:
    """Pairs whose hashes differ in at most `reach` bits, the second in any orientation.

    Two hashes that differ in so few bits agree in at least one of reach + 1 parts, and only those that do are compared.

    Args:
        hashes: [N] uint64.
        others: [M, 8] uint64.
        reach: bits.

    Returns:
        [P, 2] int64, rows of `hashes` and of `others`, each pair once, in order.
    """
    if not 0 <= reach < 16:
        raise ConfigError(f"hashes that differ in {reach} bits; wanted 0 to 15")
    flat, row = others.ravel(), np.repeat(np.arange(len(others)), others.shape[1])
    found = [np.empty((0, 2), np.int64)]
    edges = np.linspace(0, 64, reach + 2).astype(int)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        mask = np.uint64((1 << high) - (1 << low))
        order = np.argsort(flat & mask, kind="stable")
        parts = (flat & mask)[order]
        first, last = (np.searchsorted(parts, hashes & mask, side=side) for side in ("left", "right"))
        for start in range(0, len(hashes), 1024):
            here = slice(start, start + 1024)
            counts = (last - first)[here]
            mine = np.repeat(np.arange(len(hashes))[here], counts)
            begins = np.repeat(first[here] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
            theirs = order[begins + np.arange(len(mine))]
            near = np.bitwise_count(hashes[mine] ^ flat[theirs]) <= reach
            found.append(np.unique(np.stack([mine[near], row[theirs[near]]], axis=1), axis=0))
    return np.unique(np.concatenate(found), axis=0)


def neighbours_in_place(
    bounds: Sequence[Sequence[float]], others: Sequence[Sequence[float]], tiles: float
) -> np.ndarray:
    """Pairs of which one lies within so many of its own widths of the other.

    Args:
        bounds: [N] west, south, east, north in degrees.
        others: [M] likewise.
        tiles: width of the buffer, in widths of the first of a pair.

    Returns:
        [P, 2] int64, each pair once, in order.
    """
    if not len(bounds) or not len(others):
        return np.empty((0, 2), np.int64)
    tree = shapely.STRtree([globe.box(box) for box in others])
    pairs = tree.query([globe.box(_widened(box, tiles)) for box in bounds], predicate="intersects").T
    return np.unique(pairs, axis=0)


def _widened(bounds: Sequence[float], tiles: float) -> list[float]:
    west, south, east, north = bounds
    width, height = (east - west) % 360, north - south
    # Edges that only touch are neighbours with a buffer of 0 too; a hair less than the buffer leaves the next ring out.
    by = np.array([-tiles * width, -tiles * height, tiles * width, tiles * height]) * (1 - 1e-9)
    grown = np.array([west, south, west + width, north]) + by
    return [float(grown[0]), max(float(grown[1]), -90.0), float(grown[2]), min(float(grown[3]), 90.0)]

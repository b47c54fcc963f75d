"""Which tiles are the same picture or nearly so, in any of the eight rotations and flips; which lie side by side.

A model that has seen a near-copy of a test tile is not tested by it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
import shapely
from PIL import Image
from scipy.fft import dctn

from urbancross import globe
from urbancross.errors import ConfigError, TileSkipped

SIDE, LOW = 32, 8  # pixels that are transformed, and frequencies a side that are kept
PLAIN = 1.5  # grey levels of spread below which a picture shows nothing to go by
ORIENTATIONS = 8
CANDIDATES = 1 << 20  # pairs that are compared at once


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


def digest_of(image: np.ndarray) -> bytes:
    """16 bytes that pictures `[H, W, 3]` uint8 have in common if they are the same pixel for pixel."""
    return hashlib.blake2b(str(image.shape).encode() + np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


def near_duplicates(hashes: np.ndarray, others: np.ndarray, reach: int) -> np.ndarray:
    """Pairs whose hashes differ in at most `reach` bits, the second in any orientation.

    Of reach + 2 parts, two hashes that differ in so few bits agree in at least two, and only those that do are
    compared: of a million tiles and a reach of 4, some dozen for each.

    Args:
        hashes: [N] uint64.
        others: [M, K] uint64.
        reach: bits.

    Returns:
        [P, 2] int64, rows of `hashes` and of `others`, each pair once, in order.
    """
    if not 0 <= reach < 16:
        raise ConfigError(f"hashes that differ in {reach} bits; wanted 0 to 15")
    flat, row = others.ravel(), np.repeat(np.arange(len(others)), others.shape[1])
    found = [np.empty((0, 2), np.int64)]
    edges = np.linspace(0, 64, reach + 3).astype(int).tolist()
    parts = [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]
    for one, other in combinations(parts, 2):
        mask = one | other
        order = np.argsort(flat & mask, kind="stable")
        keys = (flat & mask)[order]
        first, last = (np.searchsorted(keys, hashes & mask, side=side) for side in ("left", "right"))
        for here in _chunks(last - first):
            counts = (last - first)[here]
            mine = np.repeat(np.arange(len(hashes))[here], counts)
            begins = np.repeat(first[here] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
            theirs = order[begins + np.arange(len(mine))]
            near = np.bitwise_count(hashes[mine] ^ flat[theirs]) <= reach
            if near.any():
                found.append(np.unique(np.stack([mine[near], row[theirs[near]]], axis=1), axis=0))
    return np.unique(np.concatenate(found), axis=0)


def _chunks(counts: np.ndarray) -> Iterator[slice]:
    """Runs of queries that have some candidates together, one query's at least."""
    ends, start = np.cumsum(counts), 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + CANDIDATES, side="right")), start + 1)
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True)
class Copies:
    """Which of N tiles show what an earlier one shows.

    Attributes:
        of: [N] the earliest tile that is no copy itself; -1: this one is none.
        exact: [N] bool, pixel for pixel.
        distance: [N] bits in which the hashes differ.
    """

    of: np.ndarray
    exact: np.ndarray
    distance: np.ndarray


def copies(digests: np.ndarray, hashes: np.ndarray, hashed: np.ndarray, reach: int) -> Copies:
    """Go through tiles in order, and keep each that is neither pixel for pixel nor nearly one that was kept.

    What comes later changes nothing: a tile's answer hangs on those before it.

    Args:
        digests: [N] of the pixels, equal for equal pictures; empty where a tile has none.
        hashes: [N, K] uint64, see `perceptual_hashes`; the first one as it is, the others as far as turns count.
        hashed: [N] bool, where there are hashes.
        reach: bits in which those of near-copies may differ.
    """
    n = len(digests)
    of, exact, distance = np.full(n, -1), np.zeros(n, bool), np.zeros(n, np.int32)
    twin = _firsts(digests)  # the first of the same pixels
    twin[digests == b""] = np.flatnonzero(digests == b"")
    own = np.flatnonzero(hashed & (twin == np.arange(n)))
    like = own[_firsts(hashes[own, 0])]  # the first of the same hash: whatever is near to one is near to the other
    first = own[like == own]
    pairs = first[near_duplicates(hashes[first, 0], hashes[first], reach)]
    for later, earlier in pairs[pairs[:, 1] < pairs[:, 0]].tolist():  # by the later, then by the earlier
        if of[later] < 0 and of[earlier] < 0:
            of[later], distance[later] = earlier, np.bitwise_count(hashes[later, 0] ^ hashes[earlier]).min()
    later = own[like != own]
    _follow(of, distance, later, like[like != own])
    later = np.flatnonzero(twin != np.arange(n))
    exact[later] = of[twin[later]] < 0
    _follow(of, distance, later, twin[later])
    return Copies(of, exact, distance)


def _firsts(values: np.ndarray) -> np.ndarray:
    """Of each value, where it stands first: `[N]`."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which]


def _follow(of: np.ndarray, distance: np.ndarray, later: np.ndarray, earlier: np.ndarray) -> None:
    """Tiles that are what an earlier one is: copies of that, or of what that is a copy of."""
    of[later] = np.where(of[earlier] < 0, earlier, of[earlier])
    distance[later] = distance[earlier]


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

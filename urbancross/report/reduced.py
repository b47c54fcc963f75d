"""Vectors in few coordinates of a byte each, for pages that hold many of them. Pure: arrays in, arrays out."""

from dataclasses import dataclass

import numpy as np

BLOCK = 8192  # vectors that are multiplied at a time
LIKES = 0.3  # weight of tiles among the queries, beside texts
FLOOR = 1e-3  # of the strongest direction, what is added to all
FAINT = 1e-9  # of the strongest pair of directions, below which one says nothing


@dataclass(frozen=True)
class Codes:
    """
    Attributes:
        codes: [N, d] int8.
        scale: [d] float32: a coordinate is its code times this.
    """

    codes: np.ndarray
    scale: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """[N, d] float32."""
        return self.codes.astype(np.float32) * self.scale


@dataclass(frozen=True)
class Reduction:
    """Matrices that take tiles and queries to d coordinates, whose product is nearly that of the vectors.

    Attributes:
        tiles, queries: [d, D].
        as_query: [d, d]: what makes the coordinates of a tile those of the query that finds its like.
        metric: [d, d]: x metric x is the squared length of what coordinates x of a query stand for.
    """

    tiles: np.ndarray
    queries: np.ndarray
    as_query: np.ndarray
    metric: np.ndarray


def reduction(vectors: np.ndarray, texts: np.ndarray, width: int, most: int) -> Reduction:
    """The d = min(most, D) coordinates that change the products of tiles and queries least.

    Queries are texts like those given, and tiles. What tiles vary in most is often not what texts speak of, so that the
    chief directions of the tiles alone would lose the order of texts' answers. No mean is taken off.

    Args:
        vectors: [N, D] of tiles.
        texts: [P, D].
        width: coordinates of a vector that say how a tile looks: those that a tile as a query has.
        most: d.
    """
    seen = vectors * (np.arange(vectors.shape[1]) < width)
    asked = _moment(seen) if not len(texts) else LIKES * _moment(seen) + (1 - LIKES) * _moment(texts)
    (root, inverse), (asked_root, asked_inverse) = _roots(_moment(vectors)), _roots(asked)
    left, strength, right = np.linalg.svd(asked_root @ root)
    d = min(most, int((strength > strength[0] * FAINT).sum()))
    queries = left[:, :d].T @ asked_inverse
    tiles = strength[:d, None] * (right[:d] @ inverse)
    as_query = queries @ _moment(seen, vectors) @ tiles.T @ np.linalg.pinv(tiles @ _moment(vectors) @ tiles.T)
    metric = np.linalg.inv(queries @ queries.T)
    return Reduction(*(np.asarray(found, np.float32) for found in (tiles, queries, as_query, metric)))


def _moment(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    """Mean product of rows, `[D, D]`."""
    b = a if b is None else b
    parts = (a[i : i + BLOCK].astype(float).T @ b[i : i + BLOCK] for i in range(0, len(a), BLOCK))
    return np.asarray(sum(parts)) / len(a)


def _roots(moment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its square root and the inverse of that; directions in which there is little count as if there were a bit."""
    values, found = np.linalg.eigh(moment)
    values = values.clip(0) + FLOOR * values.max()
    return (found * values**0.5) @ found.T, (found * values**-0.5) @ found.T


def coded(coordinates: np.ndarray) -> Codes:
    """Coordinates `[N, d]` as bytes, each direction at its own scale."""
    widest = np.abs(coordinates).max(axis=0, initial=0)
    scale = (np.where(widest > 0, widest, 1) / 127).astype(np.float32)
    return Codes(np.rint(coordinates / scale).astype(np.int8), scale)

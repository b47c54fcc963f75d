"""Vectors in few coordinates of a byte each, for pages that hold many of them. Pure: arrays in, arrays out."""

from dataclasses import dataclass

import numpy as np

BLOCK = 8192  # vectors that are multiplied at a time


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


def directions(vectors: np.ndarray, most: int) -> np.ndarray:
    """The orthonormal directions `[d, D]` that keep most of vectors `[N, D]`, d = min(most, D), the chief first.

    No mean is taken off: it is a direction like others, and so products with any vector are kept.
    """
    width = vectors.shape[1]
    moment = np.zeros((width, width))
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        moment += block.T @ block
    _, found = np.linalg.eigh(moment)
    return np.ascontiguousarray(found.T[::-1][:most], np.float32)


def coded(coordinates: np.ndarray) -> Codes:
    """Coordinates `[N, d]` as bytes, each direction at its own scale."""
    widest = np.abs(coordinates).max(axis=0, initial=0)
    scale = (np.where(widest > 0, widest, 1) / 127).astype(np.float32)
    return Codes(np.rint(coordinates / scale).astype(np.int8), scale)


def as_query(basis: np.ndarray, width: int) -> np.ndarray:
    """`[d, d]`: what makes the coordinates of a tile those of the query that finds its like.

    A tile as a query says only how it looks: the first `width` coordinates of its vector.
    """
    seen = basis[:, :width]
    return np.asarray(seen @ seen.T, np.float32)

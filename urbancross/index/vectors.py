"""Vectors as they were embedded, on disk and read where they are wanted, with codes that say where that is."""

from collections.abc import Iterator, Sequence

import numpy as np

from urbancross.index.codes import Codes

STEPS = 32_767  # of an int16 that is 1: finer than float16 where a unit vector's coordinates are, and quicker to read
BLOCK = 65_536  # vectors that are compared at a time
IN_CACHE = 512  # that are turned into float32 at a time
FEW = 20_000  # that are all compared, where filters leave no more


class Vectors:
    """
    Attributes:
        parts: each `[n, D]`, float32 or as `stored` in int16, memory-mapped.
        codes: of all of them, in order; None: every search compares them all.
        owners: [N] int64, ascending: the tile that each segment is of; None: the vectors are those of tiles.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], codes: Codes | None = None, owners: np.ndarray | None = None
    ) -> None:
        self.parts, self.codes, self.owners = parts, codes, owners
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """`[n, D]` float32 of ascending ids."""
        cuts = np.searchsorted(ids, self.starts)
        found = [
            part[ids[cuts[i] : cuts[i + 1]] - self.starts[i]]
            for i, part in enumerate(self.parts)
            if cuts[i] < cuts[i + 1]
        ]
        return floats(np.concatenate(found)) if found else np.empty((0, self.width), np.float32)

    @property
    def width(self) -> int:
        return int(self.parts[0].shape[1]) if self.parts else 0

    @property
    def few(self) -> bool:
        """So few that all are compared, with codes or without."""
        return len(self) <= FEW

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """The first id of a block, and its vectors as float32."""
        for start, part in zip(self.starts, self.parts, strict=False):
            for row in range(0, len(part), BLOCK):
                yield int(start) + row, floats(part[row : row + BLOCK])

    def scores(self, ids: np.ndarray, query: np.ndarray) -> np.ndarray:
        """`[n]` inner products of ascending ids with a query `[D]`."""
        found = [self.rows(ids[i : i + IN_CACHE]) @ query for i in range(0, len(ids), IN_CACHE)]
        return np.concatenate(found) if found else np.empty(0, np.float32)

    def near(self, query: np.ndarray, count: int, probes: int, allowed: np.ndarray | None, least: int) -> np.ndarray:
        """Ascending ids of vectors that may be the nearest: all where those allowed are few, or there are no codes.

        Args:
            count: of ids that the codes choose.
            allowed: [N] bool; None: all.
            least: look in more and more lists until so many are found.
        """
        total = len(self) if allowed is None else int(np.count_nonzero(allowed))
        if self.codes is None or total <= max(FEW, least):
            return np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
        while True:
            ids = self.codes.search(query, max(count, least), probes, allowed)
            if len(ids) >= least or probes >= self.codes.lists.nlist:
                return np.sort(ids)
            probes *= 2


def stored(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors `[n, D]` in half the space, to 1/65,534 a coordinate."""
    return np.rint(vectors * STEPS).clip(-STEPS, STEPS).astype(np.int16)


def floats(rows: np.ndarray) -> np.ndarray:
    """Rows of a part as float32."""
    if rows.dtype != np.int16:
        return np.asarray(rows, np.float32)
    found = rows.astype(np.float32)
    found /= STEPS
    return found


def nearest(vectors: Vectors, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids `[Q, top]` of the nearest of all vectors to queries `[Q, D]`, every one compared."""
    scores = np.full((len(queries), top), -np.inf, np.float32)
    ids = np.full((len(queries), top), -1, np.int64)
    for start, block in vectors.blocks():
        new = queries @ block.T
        some = np.argpartition(-new, min(top, len(block)) - 1, axis=1)[:, :top]
        scores = np.concatenate([scores, np.take_along_axis(new, some, axis=1)], axis=1)
        ids = np.concatenate([ids, some + start], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        scores, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(ids, order, axis=1)
    return scores, ids

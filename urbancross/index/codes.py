"""Vectors as short codes in inverted lists (faiss): which are worth comparing in full, found without reading them all.

A projection onto the directions in which the vectors vary most comes first. That makes codes of four bits a direction
better than those of several directions together, and the lists four times as fast to train.
"""

import math
from typing import Any

import faiss
import numpy as np

SAMPLE_PER_LIST = 50  # vectors that a list's centre is the mean of, about
ROUNDS = 8  # of k-means
LEAST_WIDTH = 64  # below it, vectors are coded as they are
EVEN = 16  # directions are filled up with none to a multiple of it: with 4 or 6, faiss 1.15.1 writes past its memory

# Of the width of the vectors, the share that is coded: pq, 4 bits a direction of what the centre leaves; int8, a byte;
# binary, a bit and two floats a vector (RaBitQ, arXiv 2405.12497).
KINDS = {"pq": 1 / 4, "int8": 1 / 2, "binary": 1.0}


class Codes:
    """
    Attributes:
        projection: [D, d].
        lists: faiss.IndexIVF over vectors `[N, d]`, ids 0 ... N - 1.
    """

    def __init__(self, projection: np.ndarray, lists: Any) -> None:
        self.projection, self.lists = projection, lists

    @classmethod
    def train(cls, sample: np.ndarray, kind: str, lists: int, seed: int = 0) -> "Codes":
        """Of no vectors yet.

        Args:
            sample: [n, D] float32, some of those that will be coded.
            kind: a key of `KINDS`.
        """
        width = sample.shape[1]
        coded = width if width <= LEAST_WIDTH else max(int(width * KINDS[kind]) // 8 * 8, LEAST_WIDTH)
        _, directions = np.linalg.eigh(np.cov(sample.T))
        projection = directions[:, ::-1][:, :coded]
        if kind == "binary":  # whose bits want directions that all say the same
            turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(coded, coded)))
            projection = projection @ turn
        projection = np.pad(projection, ((0, 0), (0, -coded % EVEN)))
        projection = np.ascontiguousarray(projection, np.float32)
        index = _empty(kind, projection.shape[1], lists)
        index.cp.niter, index.cp.seed = ROUNDS, seed
        index.train(sample @ projection)
        return cls(projection, index)

    def of(self, vectors: np.ndarray) -> "Codes":
        """The codes of `[n, D]` vectors, by the same training."""
        lists = faiss.clone_index(self.lists)
        lists.reset()
        if len(vectors):  # binary codes of none are an error to faiss
            lists.add(vectors @ self.projection)
        return Codes(self.projection, lists)

    def append(self, other: "Codes") -> None:
        """Take over the codes of another, of the same training; its ids are counted on."""
        self.lists.merge_from(other.lists, self.lists.ntotal)

    def search(self, query: np.ndarray, count: int, probes: int, allowed: np.ndarray | None = None) -> np.ndarray:
        """Ids of up to `count` vectors that a query `[D]` may be nearest to, in no order.

        Args:
            probes: lists to look in, the nearest first.
            allowed: [N] bool.
        """
        told: Any = faiss.SearchParametersIVF(nprobe=min(probes, self.lists.nlist))  # type: ignore[call-arg]
        if allowed is not None:
            bits: Any = np.packbits(allowed, bitorder="little")
            told.sel = faiss.IDSelectorBitmap(bits)  # type: ignore[call-arg]
        _, ids = self.lists.search((query @ self.projection)[None], count, params=told)
        return ids[0][ids[0] >= 0]

    def to_bytes(self) -> bytes:
        return faiss.serialize_index(self.lists).tobytes()

    @classmethod
    def from_bytes(cls, projection: np.ndarray, data: Any) -> "Codes":
        return cls(projection, faiss.deserialize_index(np.frombuffer(data, np.uint8)))


def _empty(kind: str, width: int, lists: int) -> Any:
    centres: Any = faiss.IndexFlatIP(width)
    inner = faiss.METRIC_INNER_PRODUCT
    found: Any
    if kind == "pq":
        found = faiss.IndexIVFPQFastScan(centres, width, lists, width, 4, inner)
    elif kind == "int8":
        found = faiss.IndexIVFScalarQuantizer(centres, width, lists, faiss.ScalarQuantizer.QT_8bit, inner, False)
    else:
        found = faiss.IndexIVFRaBitQFastScan(centres, width, lists, inner)
    found.own_fields = True  # so that one is kept as long as the other
    centres.this.disown()
    return found


def lists_for(count: int) -> int:
    """A power of two near the root of the number of vectors: 1,024 lists for a million."""
    return 1 << max(round(math.log2(max(count, 1)) / 2), 4)

"""Vectors in clusters, as tiles of a country are, and their codes as an index keeps them."""

import numpy as np

from urbancross.index.codes import Codes
from urbancross.index.vectors import Vectors, stored

PARTS = (1500, 0, 900, 600)


def clustered(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Unit vectors `[count, width]` in some forty clusters, the same for every seed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, width))
    found = centres[rng.integers(40, size=count)] + 0.8 * rng.normal(size=(count, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def coded(whole: np.ndarray, kind: str, parts: tuple[int, ...] = PARTS) -> Vectors:
    """In several parts, whose codes are made one by one and merged from their bytes."""
    cut = np.split(whole, np.cumsum(parts)[:-1])
    trained = Codes.train(whole[:: max(len(whole) // 2000, 1)], kind, 32)
    codes: Codes | None = None
    for part in cut:
        found = Codes.from_bytes(trained.projection, np.frombuffer(trained.of(part).to_bytes(), np.uint8))
        if codes is None:
            codes = found
        else:
            codes.append(found)
    return Vectors([stored(part) for part in cut], codes)

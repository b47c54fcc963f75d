"""A batch of tiles to vectors, with a given encoder."""

from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from urbancross import schemas
from urbancross.tiles import decode


class Encoder(Protocol):
    """Tiles to unit vectors; `models.dual_encoder.DualEncoder` is one."""

    width: int

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """B tiles `[H, W, 3]` uint8 to `[B, D]` float32."""
        ...


def embed_tiles(encoder: Encoder, tiles: pa.Table) -> pa.Table:
    """Encode one batch: a row of `schemas.embeddings(D)` per tile, in order."""
    rows: list[dict[str, Any]] = schemas.each_tile(tiles.to_pylist(), lambda row: {"vector": decode(row["image"])})
    done = [row for row in rows if row["failure"] is None]
    if done:
        for row, vector in zip(done, encoder.encode_images([row["vector"] for row in done]), strict=True):
            row["vector"] = vector
    return pa.Table.from_pylist(rows, schema=schemas.embeddings(encoder.width))

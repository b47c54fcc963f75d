"""A batch of tiles, or of their segments, to vectors, with a given encoder."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from urbancross import schemas
from urbancross.errors import TileSkipped
from urbancross.tiles import decode


class Encoder(Protocol):
    """Tiles and crops to unit vectors; `models.dual_encoder.DualEncoder` is one."""

    @property
    def vector_width(self) -> int:
        """D."""
        ...

    @property
    def fill(self) -> tuple[int, int, int]:
        """The colour that says nothing."""
        ...

    def encode_images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """B tiles `[H, W, 3]` uint8 to `[B, D]` float32."""
        ...

    def encode_segments(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """B crops `[h, w, 3]` uint8 to `[B, D]` float32."""
        ...


def looks(vectors: np.ndarray, width: int) -> np.ndarray:
    """How tiles look: the coordinates of `[N, vector_width]` that no query bank added, as unit vectors `[N, D]`."""
    seen = vectors[:, :width]
    return seen / np.linalg.norm(seen, axis=1, keepdims=True).clip(1e-12)


def embed_tiles(encoder: Encoder, tiles: pa.Table) -> pa.Table:
    """Encode one batch: a row of `schemas.embeddings(D)` per tile, in order."""
    rows: list[dict[str, Any]] = schemas.each_tile(tiles.to_pylist(), lambda row: {"vector": decode(row["image"])})
    done = [row for row in rows if row["failure"] is None]
    if done:
        for row, vector in zip(done, encoder.encode_images([row["vector"] for row in done]), strict=True):
            row["vector"] = vector
    return pa.Table.from_pylist(rows, schema=schemas.embeddings(encoder.vector_width))


def embed_segments(encoder: Encoder, tiles: pa.Table, segments: pa.Table, max_segments: int) -> pa.Table:
    """Encode the segments of one batch: a row of `schemas.segment_embeddings(D)` per tile, in order.

    The first `max_segments` by rank, an order that knows nothing of captions.
    """
    from urbancross.segments.crops import crop  # and scikit-image, which tiles do without

    rows = tiles.to_pylist()
    for row, cut in zip(rows, segments.to_pylist(), strict=True):
        row["failure"] = row["failure"] or cut["failure"]
        row["segments"] = sorted(cut["segments"] or [], key=lambda segment: segment["rank"])[:max_segments]

    def cut_out(row: dict[str, Any]) -> dict[str, Any]:
        if not row["segments"]:
            raise TileSkipped("no segment")
        tile = decode(row["image"])
        return {"vectors": [crop(tile, segment, fill=encoder.fill) for segment in row["segments"]]}

    out = schemas.each_tile(rows, cut_out)
    done = [row for row in out if row["failure"] is None]
    seen = encoder.encode_segments([piece for row in done for piece in row["vectors"]])
    for row in done:
        row["vectors"], seen = list(seen[: len(row["vectors"])]), seen[len(row["vectors"]) :]
    return pa.Table.from_pylist(out, schema=schemas.segment_embeddings(encoder.vector_width))

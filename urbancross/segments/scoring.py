"""How well the segments of a tile fit its captions: for training only.

Choosing the segments of a tile by the tile's own caption at search or in a test would let the answer in.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from urbancross import schemas
from urbancross.captions.words import phrases
from urbancross.errors import TileSkipped
from urbancross.segments.crops import crop
from urbancross.tiles import decode


class CropEncoder(Protocol):
    """Crops and texts to unit vectors of one space; `models.dual_encoder.DualEncoder` is one."""

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean colour, which preprocessing turns into zeros."""
        ...

    def encode_segments(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """B crops `[h, w, 3]` uint8 to `[B, D]` float32."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """B texts to `[B, D]` float32."""
        ...


def fit(segments: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of every segment with all phrases together, and which phrase fits it best.

    The query is q = normalise(mean of the unit phrase vectors), the score s_k = cos(q, z_k) (UrbanCross, arXiv
    2404.14241, with each phrase of equal weight).

    Args:
        segments: [S, D] unit vectors z_k.
        texts: [P, D] unit vectors of the phrases, P > 0.

    Returns:
        [S] scores in [-1, 1], and [S] numbers of phrases.
    """
    mean = texts.mean(axis=0)
    query = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return segments @ query, (segments @ texts.T).argmax(axis=1)


def rank_tiles(encoder: CropEncoder, tiles: pa.Table, segments: pa.Table, captions: pa.Table) -> pa.Table:
    """A batch: a row of `schemas.RANKS` per tile, in order; aligned tables of tiles, segments and captions go in."""
    rows = tiles.to_pylist()
    for row, cut, told in zip(rows, segments.to_pylist(), captions.to_pylist(), strict=True):
        row["failure"] = row["failure"] or told["failure"]
        row["segments"] = sorted(cut["segments"] or [], key=lambda segment: segment["rank"])
        row["captions"] = told["captions"]

    def cut_out(row: dict[str, Any]) -> dict[str, Any]:
        texts = list(dict.fromkeys(phrase for caption in row["captions"] or () for phrase in phrases(caption)))
        if not texts:
            raise TileSkipped("no caption")
        if not row["segments"]:
            raise TileSkipped("no segment")
        tile = decode(row["image"])
        return {"phrases": texts, "scores": [crop(tile, segment, fill=encoder.fill) for segment in row["segments"]]}

    out = schemas.each_tile(rows, cut_out)
    done = [row for row in out if row["failure"] is None]
    if done:
        seen = encoder.encode_segments([piece for row in done for piece in row["scores"]])  # [all S, D]
        read = encoder.encode_texts([text for row in done for text in row["phrases"]])  # [all P, D]
        for row in done:
            count, said = len(row["scores"]), len(row["phrases"])
            scores, best = fit(seen[:count], read[:said])
            row["scores"], row["phrases"] = scores, [row["phrases"][i] for i in best]
            seen, read = seen[count:], read[said:]
    return pa.Table.from_pylist(out, schema=schemas.RANKS)

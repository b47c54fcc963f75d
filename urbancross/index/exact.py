"""The best tiles of a table of embeddings, every vector compared; shards are read one after the other."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from urbancross import storage
from urbancross.index.facts import Filters, facts_of
from urbancross.storage import Place


class Found(NamedTuple):
    """A tile that fits: where its row is in every table of the archive."""

    score: float
    shard: str
    row: int


class Candidates(NamedTuple):
    """What fits best, best first and ties in the order of the table; and among how many tiles it was looked for."""

    found: list[Found]
    compared: int


def best(
    archive: Place,
    embeddings: str,
    query: np.ndarray,
    top: int,
    filters: Filters | None = None,
    segments: str | None = None,
    segment_weight: float = 0.0,
    names: Sequence[str] | None = None,
) -> Candidates:
    """The `top` tiles with the highest score for a vector `[D]`.

    The score is (1 - a) cos(tile, query) + a max_k cos(segment k, query), a the `segment_weight`; of a tile without
    segments the first cosine alone.

    Args:
        segments: table of segment embeddings.
        names: shards to look in; default: all.
    """
    found: list[Found] = []
    compared = 0
    for name in storage.shards(archive / embeddings) if names is None else names:
        rows = storage.read_shard(archive / embeddings / name, ["vector", "failure"])
        keep = pc.is_null(rows["failure"]).to_numpy()
        if filters:
            keep = keep & filters.allowed(facts_of(archive, [name]))
        use = np.flatnonzero(keep)
        compared += len(use)
        if not len(use):
            continue
        vectors = rows["vector"].take(pa.array(use)).combine_chunks().flatten().to_numpy().reshape(len(use), -1)
        scores = vectors @ query
        if segments is not None and segment_weight and storage.exists(archive / segments / name):
            told = storage.read_shard(archive / segments / name, ["vectors"])["vectors"].take(pa.array(use))
            scores = fused(scores, best_of_segments(told, query), segment_weight)
        order = np.argsort(-scores, kind="stable")[:top]
        found = first([*found, *(Found(float(scores[i]), name, int(use[i])) for i in order)], top)
    return Candidates(found, compared)


def first(found: list[Found], top: int) -> list[Found]:
    return sorted(found, key=lambda tile: (-tile.score, tile.shard, tile.row))[:top]


def fused(tiles: np.ndarray, segments: np.ndarray, weight: float) -> np.ndarray:
    """Scores of tiles and of the best of their segments (NaN: none) as one, `[tiles]`."""
    return tiles + weight * (np.where(np.isnan(segments), tiles, segments) - tiles)


def best_of_segments(vectors: pa.ChunkedArray, query: np.ndarray) -> np.ndarray:
    """The highest cosine among the segments of each tile, `[tiles]`; NaN where there is none."""
    lists = pa.concat_arrays(vectors.chunks) if vectors.num_chunks else pa.array([], vectors.type)
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    scores = lists.flatten().flatten().to_numpy().reshape(-1, len(query)) @ query
    return best_of(scores, counts)


def best_of(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The highest of runs of scores, so many each: `[runs]`; NaN of an empty run."""
    out = np.full(len(counts), np.nan, np.float32)
    if len(scores):
        out[counts > 0] = np.maximum.reduceat(scores, (np.cumsum(counts) - counts)[counts > 0])
    return out

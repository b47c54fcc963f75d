"""A tile that was found, with what speaks for it: caption phrase, tags, best segment, place and time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from urbancross import storage, tables
from urbancross.captions.words import phrases
from urbancross.embedding import looks
from urbancross.index.exact import Found
from urbancross.storage import Place

AT_ONCE = 8  # hits whose evidence is read at the same time
MOST_PHRASES = 64  # that are compared with a query


@dataclass(frozen=True)
class Hit:
    """A tile that was found, and what is known of it."""

    rank: int
    tile_id: str
    score: float  # cosine in [-1, 1]
    split: str | None
    bounds: list[float] | None
    captions: list[str]
    tags: list[str]
    shard: str
    row: int
    where: dict[str, Any] | None = None  # the segment that fits best: its rank, score, and box in pixels
    phrase: str | None = None  # of its captions, what fits best
    domain: str | None = None
    datetime: str | None = None
    gsd_m: float | None = None
    number: int | None = None  # its place in the order of the archive, from 0


class TextEncoder(Protocol):
    width: int

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray: ...


class Evidence:
    """Reads what an archive knows of single tiles.

    Attributes:
        segments: table of segment embeddings; with it every hit says where in the tile.
    """

    def __init__(self, archive: Place, segments: str | None = None) -> None:
        self.archive, self.segments = archive, segments
        self.captions = storage.tables(archive, "captions")
        names = storage.shards(archive / "tiles")
        counts = tables.row_counts(archive, "tiles", names)
        starts = np.cumsum([0, *(counts[name] for name in names)])
        self.starts = {name: int(start) for name, start in zip(names, starts, strict=False)}
        self.names, self.total, self._ends = names, int(starts[-1]), starts[1:]

    def address(self, number: int) -> tuple[str, int] | None:
        """Shard and row of a tile by its place in the order of the archive; None when there are not so many."""
        if not 0 <= number < self.total:
            return None
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return self.names[shard], number - self.starts[self.names[shard]]

    def hits(self, found: Sequence[Found], query: np.ndarray, texts: TextEncoder | None = None) -> list[Hit]:
        """In order.

        Args:
            query: the vector `[D]` that they were found by.
            texts: what encodes captions, to choose the phrase that fits the query best.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            hits = list(pool.map(lambda rank: self._hit(rank, found[rank - 1], query), range(1, len(found) + 1)))
        return hits if texts is None else with_phrases(hits, query, texts)

    def _hit(self, rank: int, found: Found, query: np.ndarray) -> Hit:
        score, shard, row = found
        columns = ["tile_id", "split", "bounds", "domain", "datetime", "gsd_m"]
        told = self._row("tiles", shard, columns, row)
        captions: list[str] = []
        for table in self.captions:
            if self._has(table, shard):
                captions = self._row(table, shard, ["captions"], row)["captions"] or []
                break
        tags: list[str] = []
        if self._has("geotags", shard):
            near = self._row("geotags", shard, ["center_tags", "surrounding_tags"], row)
            tags = [*(near["center_tags"] or []), *(near["surrounding_tags"] or [])]
        hit = Hit(
            rank,
            told["tile_id"],
            round(score, 6),
            told["split"],
            told["bounds"],
            captions,
            tags,
            shard,
            row,
            domain=told["domain"],
            datetime=told["datetime"],
            gsd_m=told["gsd_m"],
            number=self.starts[shard] + row,
        )
        return hit if self.segments is None else replace(hit, where=self.where(shard, row, query))

    def where(self, shard: str, row: int, query: np.ndarray) -> dict[str, Any] | None:
        """The segment of a tile that fits a query best; None where it has none, or they were not embedded yet."""
        if self.segments is None or not self._has(self.segments, shard):
            return None
        vectors = self._row(self.segments, shard, ["vectors"], row)["vectors"]
        if not vectors:
            return None
        scores = np.asarray(vectors, np.float32) @ query
        rank = int(scores.argmax())
        (segment,) = (segment for segment in self.cut(shard, row) if segment["rank"] == rank)
        return {"rank": rank, "score": round(float(scores[rank]), 6), "box": segment["box"]}

    def cut(self, shard: str, row: int) -> list[dict[str, Any]]:
        """The segments of a tile, rows of `schemas.SEGMENT`: those embedded, or of the archive's only table."""
        table = self._segments_table()
        if table is None or not self._has(table, shard):
            return []
        return self._row(table, shard, ["segments"], row)["segments"] or []

    def _segments_table(self) -> str | None:
        if self.segments is not None:
            sources = tables.fingerprint_of(self.archive, self.segments)["sources"]
            return next(name for name in sources if name.startswith("segments@"))
        cut = storage.tables(self.archive, "segments")
        return cut[0] if len(cut) == 1 else None

    def picture(self, shard: str, row: int) -> bytes | None:
        """The encoded image of a tile; None where it has none."""
        return self._row("tiles", shard, ["image"], row)["image"]

    def _has(self, table: str, shard: str) -> bool:
        return storage.exists(self.archive / table / shard)

    def _row(self, table: str, shard: str, columns: list[str], row: int) -> dict[str, Any]:
        return storage.read_row(self.archive / table / shard, columns, row)


def with_phrases(
    hits: list[Hit],
    query: np.ndarray,
    texts: TextEncoder,
    compared: Callable[[list[str]], list[str]] = lambda distinct: distinct[:MOST_PHRASES],
) -> list[Hit]:
    """Each hit with the phrase of its captions that is nearest to the query, hubness left aside.

    Args:
        compared: of the phrases of all hits, the best hits' first, those to compare.
    """
    told = {hit.number: list(dict.fromkeys(part for text in hit.captions for part in phrases(text))) for hit in hits}
    distinct = compared(list(dict.fromkeys(part for parts in told.values() for part in parts)))
    if not distinct:
        return hits
    vectors = looks(texts.encode_texts(distinct), texts.width)
    scores = dict(zip(distinct, vectors @ query[: texts.width], strict=True))
    best = {
        number: max((part for part in parts if part in scores), key=lambda part: scores[part], default=None)
        for number, parts in told.items()
    }
    return [replace(hit, phrase=best[hit.number]) for hit in hits]

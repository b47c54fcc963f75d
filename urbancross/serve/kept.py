"""What is known of single tiles, read once: groups of rows are kept as they were read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import corners, storage
from urbancross.evidence import AT_ONCE, Evidence, Hit, TextEncoder, with_phrases
from urbancross.index.exact import Found
from urbancross.serve.newest import Newest
from urbancross.serve.remembering import Remembering
from urbancross.storage import Place

ROWS_BYTES = 256 << 20  # of rows of tables that are kept


class Rows:
    """Single rows of shards, read by the groups they lie in, which are kept."""

    def __init__(self, most_bytes: int = ROWS_BYTES) -> None:
        self._groups: Newest[pa.Table] = Newest(most_bytes)
        self._ends: Newest[np.ndarray] = Newest(100_000)

    def row(self, place: Place, columns: Sequence[str], row: int) -> dict[str, Any]:
        """As `storage.read_row`."""
        ends = self._ends.get(place)
        if ends is not None:
            group = int(np.searchsorted(ends, row, side="right"))
            kept = self._groups.get((place, group, *columns))
            if kept is not None:
                return _row(kept, row - (int(ends[group - 1]) if group else 0))
        with storage.parquet(place) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(counts)
            group = int(np.searchsorted(ends, row, side="right"))
            if group == len(counts) or set(columns) - set(file.schema_arrow.names):
                return storage.read_row(place, list(columns), row)  # which says what is wrong
            table = file.read_row_group(group, columns=list(columns))
        self._ends.put(place, ends)
        self._groups.put((place, group, *columns), table, table.nbytes)
        return _row(table, row - (int(ends[group - 1]) if group else 0))


def _row(table: pa.Table, row: int) -> dict[str, Any]:
    return table.slice(row, 1).to_pylist()[0]


class KeptEvidence(Evidence):
    """Evidence whose rows are read once; what joins the archive later is seen after a new start."""

    def __init__(self, archive: Place, segments: str | None, rows: Rows) -> None:
        super().__init__(archive, segments)
        self.rows = rows
        self._readers = ThreadPoolExecutor(AT_ONCE, "evidence")
        self._there: dict[tuple[str, str], bool] = {}

    def hits(self, found: Sequence[Found], query: np.ndarray, texts: TextEncoder | None = None) -> list[Hit]:
        hits = list(self._readers.map(lambda rank: self._hit(rank, found[rank - 1], query), range(1, len(found) + 1)))
        if isinstance(texts, Remembering):
            return with_phrases(hits, query, texts, texts.affordable)
        return hits if texts is None else with_phrases(hits, query, texts)

    def _row(self, table: str, shard: str, columns: list[str], row: int) -> dict[str, Any]:
        if columns == ["image"]:  # each is wanted once, as a rule, and they are large
            return super()._row(table, shard, columns, row)
        return self.rows.row(self.archive / table / shard, columns, row)

    def _has(self, table: str, shard: str) -> bool:
        if (table, shard) not in self._there:
            self._there[table, shard] = super()._has(table, shard)
        return self._there[table, shard]

    def _segments_table(self) -> str | None:
        return self._segments_of

    @cached_property
    def _segments_of(self) -> str | None:
        return super()._segments_table()

    def footprint(self, shard: str, row: int) -> bytes | None:
        """What a tile covers as WKB in degrees; None where it has no place."""
        return self._row("tiles", shard, ["geometry"], row)["geometry"]

    def corners(self, hits: Sequence[Hit]) -> list[list[list[float]] | None]:
        """Of each tile's picture, as `corners.corners`; None where it stands upright in its bounds, or has none."""
        if not self._says_transforms:
            return [None] * len(hits)
        told = [self._row("tiles", hit.shard, corners.COLUMNS, hit.row) for hit in hits]
        found = np.round(corners.corners(pa.Table.from_pylist(told, schema=corners.SCHEMA)), 7)
        return [None if np.isnan(ends).any() else ends.tolist() for ends in found]

    @cached_property
    def _says_transforms(self) -> bool:  # tables of an earlier version do not
        known = storage.read_schema(self.archive / "tiles" / self.names[0]).names if self.names else []
        return set(corners.COLUMNS) <= set(known)

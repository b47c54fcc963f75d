"""What is known of every tile, a column a fact; and filters over that: place, time, domain, split, tags."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from shapely.geometry.base import BaseGeometry

from urbancross import globe, storage
from urbancross.index.moments import Span, span_of
from urbancross.storage import Place

WORD = pa.dictionary(pa.int32(), pa.string())

FACTS = pa.schema(
    [
        pa.field("tile_id", pa.string()),
        pa.field("shard", pa.int32()),  # which of the shards that a part is of
        pa.field("row", pa.int32()),  # in that shard
        pa.field("west", pa.float64()),  # degrees; NaN where a tile has no place; west > east across the antimeridian
        pa.field("south", pa.float64()),
        pa.field("east", pa.float64()),
        pa.field("north", pa.float64()),
        pa.field("from_us", pa.int64()),  # microseconds since 1970; null where a tile has no time
        pa.field("to_us", pa.int64()),
        pa.field("domain", WORD),
        pa.field("split", WORD),
        pa.field("tags", pa.list_(WORD)),  # at its centre or around it
    ]
)


@dataclass(frozen=True)
class Filters:
    """Which tiles are asked; what is None or empty leaves all.

    Attributes:
        area: a (multi)polygon in degrees; only tiles that meet it.
        since, until: only tiles whose time meets the span from the start of the first to the end of the second.
        tags: each `key=value`, or a key alone for any value; a tile has to have all of them.
    """

    bbox: globe.Bounds | None = None
    area: BaseGeometry | None = None
    since: Span | None = None
    until: Span | None = None
    domain: str | None = None
    split: str | None = None
    tags: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.bbox, self.area, self.since, self.until, self.domain, self.split, self.tags))

    def allowed(self, facts: pa.Table) -> np.ndarray:
        """`[rows]` bool: which rows of `FACTS` may be found."""
        keep = np.ones(facts.num_rows, bool)
        for name, wanted in (("domain", self.domain), ("split", self.split)):
            if wanted is not None:
                keep &= named(facts[name], wanted)
        if self.bbox is not None:
            keep &= meeting(facts, self.bbox)
        if self.since is not None:
            keep &= _true(pc.greater_equal(facts["to_us"], self.since[0]))
        if self.until is not None:
            keep &= _true(pc.less_equal(facts["from_us"], self.until[1]))
        for tag in self.tags:
            keep &= tagged(facts["tags"], tag)
        if self.area is not None and keep.any():
            keep &= in_area(facts, self.area, keep)
        return keep


def named(words: pa.ChunkedArray, wanted: str) -> np.ndarray:
    """`[rows]` bool: which rows have a word; compared once in each chunk's dictionary."""
    found = []
    for chunk in words.chunks:
        place = chunk.dictionary.index(wanted).as_py()
        found.append(_true(pc.equal(chunk.indices, place)) if place >= 0 else np.zeros(len(chunk), bool))
    return np.concatenate(found) if found else np.zeros(0, bool)


def _true(values: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False))


def _degrees(facts: pa.Table) -> tuple[np.ndarray, ...]:
    return tuple(facts[name].to_numpy() for name in ("west", "south", "east", "north"))


def meeting(facts: pa.Table, bbox: globe.Bounds) -> np.ndarray:
    """`[rows]` bool: which tiles have a place in common with a box; as `globe.meets`, for all at once."""
    west, south, east, north = _degrees(facts)
    keep = (south <= bbox[3]) & (north >= bbox[1])
    spans = [(bbox[0], bbox[2])] if bbox[0] <= bbox[2] else [(bbox[0], 180.0), (-180.0, bbox[2])]
    across = west > east
    found = np.zeros(len(west), bool)
    for first, last in spans:
        found |= np.where(across, (first <= east) | (last >= west), (west <= last) & (east >= first))
    return keep & found


def in_area(facts: pa.Table, area: BaseGeometry, among: np.ndarray) -> np.ndarray:
    """`[rows]` bool: which tiles, of those `among` which it matters, meet an area."""
    keep = np.zeros(facts.num_rows, bool)
    near = among & meeting(facts, area.bounds)
    shapely.prepare(area)
    west, south, east, north = _degrees(facts)
    plain = near & (west <= east)
    keep[plain] = shapely.intersects(area, shapely.box(west[plain], south[plain], east[plain], north[plain]))
    for i in np.flatnonzero(near & (west > east)):
        keep[i] = shapely.intersects(area, globe.box((west[i], south[i], east[i], north[i])))
    return keep


def tagged(tags: pa.ChunkedArray, wanted: str) -> np.ndarray:
    """`[rows]` bool: which rows have a tag, or any value of a key."""
    keep, start = np.zeros(len(tags), bool), 0
    for chunk in tags.chunks:
        words = chunk.flatten()
        match = pc.equal if "=" in wanted else pc.starts_with
        told = match(words.dictionary, wanted if "=" in wanted else f"{wanted}=").to_numpy(zero_copy_only=False)
        if told.any():
            parents = pc.list_parent_indices(chunk).to_numpy()
            keep[start + parents[told[words.indices.to_numpy()]]] = True
        start += len(chunk)
    return keep


def facts_of(archive: Place, names: Sequence[str], numbers: Sequence[int] | None = None) -> pa.Table:
    """`FACTS` of every tile of some shards, those that failed too, in order.

    Args:
        numbers: what `shard` says of each name; default: counted from 0.
    """
    spans: dict[str | None, Span | None] = {None: None}
    parts = [
        _facts(archive, name, number, spans) for number, name in zip(numbers or range(len(names)), names, strict=True)
    ]
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks() if parts else FACTS.empty_table()


def _facts(archive: Place, name: str, number: int, spans: dict[str | None, Span | None]) -> pa.Table:
    tiles = storage.read_shard(archive / "tiles" / name, ["tile_id", "bounds", "datetime", "domain", "split"])
    count = tiles.num_rows
    bounds = np.full((count, 4), np.nan)
    told = tiles["bounds"].combine_chunks()
    has = told.is_valid().to_numpy(zero_copy_only=False)
    bounds[has] = told.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    for text in tiles["datetime"].unique().to_pylist():
        if text not in spans:
            spans[text] = _span_or_none(text)
    times = [spans[text] or (None, None) for text in tiles["datetime"].to_pylist()]
    columns: list[pa.Array] = [tiles["tile_id"].combine_chunks()]
    columns += [pa.array(np.full(count, number, np.int32)), pa.array(np.arange(count, dtype=np.int32))]
    columns += [pa.array(bounds[:, i]) for i in range(4)]
    columns += [pa.array([time[i] for time in times], pa.int64()) for i in range(2)]
    columns += [tiles[column].combine_chunks().dictionary_encode().cast(WORD) for column in ("domain", "split")]
    return pa.table([*columns, _tags(archive, name, count)], schema=FACTS)


def _tags(archive: Place, name: str, count: int) -> pa.Array:
    if not storage.exists(archive / "geotags" / name):
        return pa.array([[]] * count, FACTS.field("tags").type)
    told = storage.read_shard(archive / "geotags" / name, ["center_tags", "surrounding_tags"])
    both = [
        [*(c or []), *(s or [])]
        for c, s in zip(*(told[column].to_pylist() for column in told.column_names), strict=True)
    ]
    return pa.array(both, FACTS.field("tags").type)


def _span_or_none(text: str) -> Span | None:
    try:
        return span_of(text)
    except (ValueError, OverflowError):
        return None

"""An archive in a few facts: where and when its tiles are, and what there is to filter by."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from urbancross import storage
from urbancross.archive import Archive
from urbancross.index.facts import facts_of

MOST_TAGS = 200
MOST_CELLS = 3000


def facts_of_all(archive: Archive) -> pa.Table:
    """`facts.FACTS` of every tile: from the index where it has them."""
    index = archive.index
    known = index.shards if index else set()
    others = [name for name in storage.shards(archive.place / "tiles") if name not in known]
    parts = [index.facts] if index else []
    return pa.concat_tables([*parts, facts_of(archive.place, others)])


def summary(facts: pa.Table) -> dict[str, Any]:
    """What a page has to know to offer filters."""
    west, south, east, north = degrees(facts)
    return {
        "bounds": bounds_of(west, south, east, north) if len(west) else None,
        "domains": words(facts["domain"]),
        "splits": words(facts["split"]),
        "since": moment(pc.min(facts["from_us"]).as_py()),
        "until": moment(pc.max(facts["to_us"]).as_py()),
        "tags": commonest(facts["tags"], MOST_TAGS),
    }


def degrees(facts: pa.Table) -> tuple[np.ndarray, ...]:
    """West, south, east and north of the tiles that have a place."""
    told = np.stack([facts[name].to_numpy() for name in ("west", "south", "east", "north")])
    return tuple(told[:, np.isfinite(told).all(axis=0)])


def bounds_of(west: np.ndarray, south: np.ndarray, east: np.ndarray, north: np.ndarray) -> list[float]:
    """Of all boxes together: what lies outside is the widest gap around the globe, so that west > east may be."""
    order = np.argsort(west)
    firsts = west[order]
    lasts = np.maximum.accumulate(np.where(east < west, east + 360, east)[order])
    gaps = np.append(firsts[1:], firsts[0] + 360) - lasts
    lats = [float(south.min()), float(north.max())]
    if gaps.max() <= 0:
        return [-180.0, lats[0], 180.0, lats[1]]
    last = int(gaps.argmax())
    first = (last + 1) % len(firsts)
    return [into_range(float(firsts[first])), lats[0], into_range(float(lasts[last])), lats[1]]


def into_range(lon: float) -> float:
    return lon if -180 <= lon <= 180 else (lon + 180) % 360 - 180


def cells(facts: pa.Table, most: int = MOST_CELLS) -> list[list[float]]:
    """Where tiles lie: for each cell of a grid, as fine as `most` cells allow, the mean longitude and latitude of its
    tiles, and how many there are."""
    west, south, east, north = degrees(facts)
    if not len(west):
        return []
    lons = (west + np.where(east < west, east + 360, east)) / 2
    lons, lats = np.where(lons > 180, lons - 360, lons), (south + north) / 2
    side = max(float(np.ptp(lons)), float(np.ptp(lats)), 0.01) / 4096
    while True:
        columns, rows = np.floor((lons + 180) / side), np.floor((lats + 90) / side)
        of = (columns * (math.ceil(180 / side) + 1) + rows).astype(np.int64)
        _, cell, counts = np.unique(of, return_inverse=True, return_counts=True)
        if len(counts) <= most:
            break
        side *= 2
    mean_lon, mean_lat = (np.bincount(cell, values) / counts for values in (lons, lats))
    return [
        [round(lon, 6), round(lat, 6), int(count)]
        for lon, lat, count in zip(mean_lon.tolist(), mean_lat.tolist(), counts.tolist(), strict=True)
    ]


def words(column: pa.ChunkedArray) -> list[str]:
    return sorted({word for chunk in column.chunks for word in chunk.unique().to_pylist() if word is not None})


def commonest(tags: pa.ChunkedArray, most: int) -> list[str]:
    counts: dict[str, int] = {}
    for chunk in tags.chunks:
        found = chunk.flatten()
        for told in found.value_counts().to_pylist():
            if told["values"] is not None:
                counts[told["values"]] = counts.get(told["values"], 0) + told["counts"]
    return sorted(counts, key=lambda tag: (-counts[tag], tag))[:most]


def moment(microseconds: int | None) -> str | None:
    """ISO 8601, of microseconds since 1970."""
    if microseconds is None:
        return None
    return f"{np.datetime64(microseconds, 'us').astype('datetime64[s]')}Z"

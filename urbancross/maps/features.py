"""The features of a map as the archive's tables hold them: the tags that can be seen, and a shape in degrees."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from urbancross import globe
from urbancross.schemas import BBOX, COVERING

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # as its map calls it: way/123
        pa.field("tags", pa.list_(pa.string()), nullable=False),  # those that can be seen, as "key=value"
        pa.field("geometry", pa.binary(), nullable=False),  # WKB, valid, cut at the antimeridian; degrees
        pa.field("bbox", BBOX, nullable=False),
    ]
)


def geoparquet() -> pa.Schema:
    """`SCHEMA` with GeoParquet 1.1 metadata: QGIS, DuckDB and GeoPandas open the table, and skip row groups by bbox."""
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": [], "covering": COVERING}  # no crs: OGC:CRS84
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return SCHEMA.with_metadata({b"geo": json.dumps(geo).encode()})


@dataclass(frozen=True)
class Features:
    """Things on a map, side by side.

    Attributes:
        shapes: `[N]` shapely geometries in degrees.
        vocabulary: all their tags as `key=value`, in order of the alphabet.
        codes: the tags of one after the other, as places in the vocabulary.
        ends: `[N + 1]` where in `codes` the tags of each begin, and where the last one's end.
    """

    shapes: np.ndarray
    vocabulary: list[str]
    codes: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.shapes)

    def tags_of(self, i: int) -> list[str]:
        return [self.vocabulary[code] for code in self.codes[self.ends[i] : self.ends[i + 1]]]


def encode(
    ids: Sequence[str], tags: Sequence[tuple[str, ...]], shapes: np.ndarray, wkb: Sequence[bytes] | None = None
) -> pa.Table:
    """Features as rows of `SCHEMA`, in order, their shapes fit to be joined; those without a place are left out.

    Polygons that cross themselves are repaired, and what crosses the antimeridian is cut there.

    Args:
        ids: what the map calls each.
        tags: the visible tags of each, as `key=value`.
        shapes: `[N]` shapely geometries in degrees.
        wkb: the shapes as bytes, where the caller has them.
    """
    told = list(wkb) if wkb is not None else list(shapely.to_wkb(shapes))
    boxes = shapely.bounds(shapes)
    wide = boxes[:, 2] - boxes[:, 0] > 180
    changed = np.flatnonzero(wide | ~shapely.is_valid(shapes))
    if len(changed):
        better = _of_one_kind(shapely.make_valid(globe.cut(shapes[changed])))
        boxes[changed] = shapely.bounds(better)
        for i, bytes_ in zip(changed, shapely.to_wkb(better), strict=True):
            told[i] = bytes_
    number: dict[tuple[str, ...], int] = {}  # maps repeat themselves: few combinations of tags are ever new
    codes = [number.setdefault(some, len(number)) for some in tags]
    table = pa.table(
        [
            pa.array(ids, pa.string()),
            pa.array(list(number), pa.list_(pa.string())).take(pa.array(codes, pa.int32())),
            pa.array(told, pa.binary()),
            pa.StructArray.from_arrays([np.ascontiguousarray(edge) for edge in boxes.T], fields=list(BBOX)),
        ],
        schema=SCHEMA,
    )
    placed = ~np.isnan(boxes[:, 0])
    return table if placed.all() else table.filter(pa.array(placed))


def _of_one_kind(shapes: np.ndarray) -> np.ndarray:
    """What a repair leaves of a polygon: its areas, without the lines and points into which slivers fall."""
    for i in np.flatnonzero(shapely.get_type_id(shapes) == shapely.GeometryType.GEOMETRYCOLLECTION):
        parts = shapely.get_parts(shapes[i])
        dimensions = shapely.get_dimensions(parts)
        shapes[i] = shapely.union_all(parts[dimensions == dimensions.max(initial=-1)])
    return shapes


def decode(table: pa.Table) -> Features:
    """Rows of `SCHEMA` as features."""
    tags = table["tags"].combine_chunks()
    told = tags.flatten().dictionary_encode()
    words = np.array(told.dictionary.to_pylist(), dtype=object)
    order = np.argsort(words)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    shapes = shapely.from_wkb(table["geometry"].to_numpy())
    offsets = tags.offsets.to_numpy()
    return Features(
        np.asarray(shapes, dtype=object), list(words[order]), place[told.indices.to_numpy()], offsets - offsets[0]
    )


def boxes(table: pa.Table) -> np.ndarray:
    """`[N, 4]` xmin, ymin, xmax, ymax of rows of `SCHEMA`."""
    column = table["bbox"].combine_chunks()
    return np.column_stack([column.field(name).to_numpy() for name in ("xmin", "ymin", "xmax", "ymax")])

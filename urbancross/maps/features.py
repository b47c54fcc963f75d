"""The features of a map as the archive's tables hold them: the tags that can be seen, and a shape in degrees."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from urbancross import globe

BBOX = pa.struct([pa.field(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
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
    covering = {"bbox": {name: ["bbox", name] for name in ("xmin", "ymin", "xmax", "ymax")}}
    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": [], "covering": covering}  # no crs: OGC:CRS84
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return SCHEMA.with_metadata({b"geo": json.dumps(geo).encode()})


@dataclass(frozen=True)
class Features:
    """Things on a map, side by side.

    Attributes:
        ids: what the map calls each.
        tags: the visible tags of each, as `key=value`; never none.
        shapes: `[N]` shapely geometries in degrees.
    """

    ids: list[str]
    tags: list[tuple[str, ...]]
    shapes: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def tidy(shapes: np.ndarray) -> np.ndarray:
    """Shapes that can be joined: polygons that cross themselves repaired, what crosses the antimeridian cut there."""
    shapes = globe.cut(shapes)
    wrong = np.flatnonzero(~shapely.is_valid(shapes))
    shapes[wrong] = shapely.make_valid(shapes[wrong])
    return shapes


def encode(features: Features) -> pa.Table:
    """Features as rows of `SCHEMA`, in order; those without a place are left out."""
    boxes = shapely.bounds(features.shapes)
    placed = ~np.isnan(boxes[:, 0])
    number: dict[tuple[str, ...], int] = {}  # maps repeat themselves: few combinations of tags are ever new
    codes = [number.setdefault(tags, len(number)) for tags in features.tags]
    table = pa.table(
        [
            pa.array(features.ids, pa.string()),
            pa.array(list(number), pa.list_(pa.string())).take(pa.array(codes, pa.int32())),
            pa.array(shapely.to_wkb(features.shapes), pa.binary()),
            pa.StructArray.from_arrays([np.ascontiguousarray(edge) for edge in boxes.T], fields=list(BBOX)),
        ],
        schema=SCHEMA,
    )
    return table if placed.all() else table.filter(pa.array(placed))


def decode(table: pa.Table) -> Features:
    """Rows of `SCHEMA` as features."""
    column = table["tags"].combine_chunks()
    ends, flat = column.offsets.to_numpy(), column.values.to_pylist()
    tags = [tuple(flat[start:stop]) for start, stop in zip(ends[:-1], ends[1:], strict=True)]
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    return Features(table["id"].to_pylist(), tags, np.asarray(shapes, dtype=object))


def boxes(table: pa.Table) -> np.ndarray:
    """`[N, 4]` xmin, ymin, xmax, ymax of rows of `SCHEMA`."""
    column = table["bbox"].combine_chunks()
    return np.column_stack([column.field(name).to_numpy() for name in ("xmin", "ymin", "xmax", "ymax")])


def concat(parts: Sequence[Features]) -> Features:
    """Several as one, in order."""
    shapes = [part.shapes for part in parts if len(part)]
    return Features(
        [name for part in parts for name in part.ids],
        [tags for part in parts for tags in part.tags],
        np.concatenate(shapes) if shapes else np.empty(0, dtype=object),
    )

"""Hits as files: GeoJSON (RFC 7946) and GeoParquet."""

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely
from shapely.geometry.base import BaseGeometry

from urbancross import globe
from urbancross.evidence import Hit
from urbancross.schemas import BBOX
from urbancross.segments.layers import geo

ROWS = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("phrase", pa.string()),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("domain", pa.string()),
        pa.field("split", pa.string()),
        pa.field("datetime", pa.string()),
        pa.field("gsd_m", pa.float64()),
        pa.field("geometry", pa.binary()),
        pa.field("bbox", BBOX),
    ]
)
TOLD = [name for name in ROWS.names if name not in ("geometry", "bbox")]


def shape_of(hit: Hit, footprint: bytes | None) -> BaseGeometry | None:
    """What a tile covers, outer rings counter-clockwise; None: it has no place."""
    if footprint is None and hit.bounds is None:
        return None
    found = shapely.from_wkb(footprint) if footprint is not None else globe.box(hit.bounds or ())
    return shapely.orient_polygons(found)


def geojson(hits: Sequence[Hit], footprints: Sequence[bytes | None]) -> bytes:
    """A collection of features, those without a place too: their geometry is null."""
    features = []
    for hit, footprint in zip(hits, footprints, strict=True):
        shape = shape_of(hit, footprint)
        feature: dict[str, Any] = {
            "type": "Feature",
            "id": hit.tile_id,
            "geometry": None if shape is None else shapely.geometry.mapping(shape),
            "properties": {name: getattr(hit, name) for name in TOLD},
        }
        if hit.bounds is not None:
            feature["bbox"] = hit.bounds
        features.append(feature)
    return json.dumps({"type": "FeatureCollection", "features": features}, ensure_ascii=False).encode()


def geoparquet(hits: Sequence[Hit], footprints: Sequence[bytes | None]) -> bytes:
    """A row a hit, best first."""
    rows = []
    for hit, footprint in zip(hits, footprints, strict=True):
        shape = shape_of(hit, footprint)
        rows.append(
            {name: getattr(hit, name) for name in TOLD}
            | {
                "geometry": None if shape is None else shapely.to_wkb(shape),
                "bbox": None if hit.bounds is None else dict(zip(BBOX.names, hit.bounds, strict=True)),
            }
        )
    schema = ROWS.with_metadata({b"geo": geo(pyproj.CRS.from_user_input(globe.CRS84))})
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out, compression="zstd")
    return out.getvalue()


KINDS = {
    "geojson": (geojson, "application/geo+json"),
    "parquet": (geoparquet, "application/vnd.apache.parquet"),
}

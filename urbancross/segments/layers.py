"""Polygons of segments -> GeoParquet, a file for each reference system."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from urbancross import globe, schemas, storage
from urbancross.errors import TileError
from urbancross.schemas import BBOX, COVERING
from urbancross.segments import shapes

DEGREES = "EPSG:4326"  # of tiles that know their bounds alone
ROW_GROUP = 4096  # rows that are written together, and up to a batch of tiles more
TOLD = ["domain", "split", "datetime", "gsd_m"]  # columns of `tiles` that every segment carries
ROWS = [
    pa.field("tile_id", pa.string(), nullable=False),
    *(schemas.TILES.field(name) for name in TOLD),
    pa.field("placed_by", pa.string(), nullable=False),  # transform: to the pixel; bounds: north up in their box
    pa.field("rank", pa.int32()),
    pa.field("score", pa.float32()),
    pa.field("predicted_iou", pa.float32()),
    pa.field("stability", pa.float32()),
    pa.field("area_px", pa.int32()),  # of the mask, also where the outline is simplified
    pa.field("area_m2", pa.float64()),  # of the polygon, on the ellipsoid
    pa.field("engine", pa.string()),
    pa.field("segments", pa.string(), nullable=False),  # the table that they are from
]
RANKED = [pa.field("caption_score", pa.float32()), pa.field("phrase", pa.string())]
SHAPES = [pa.field("geometry", pa.binary(), nullable=False), pa.field("bbox", BBOX, nullable=False)]


class Layer(NamedTuple):
    """A reference system, and how files call it."""

    name: str
    crs: pyproj.CRS


@lru_cache(maxsize=256)
def layer_of(crs: str) -> Layer:
    """
    Raises:
        TileError: it is no reference system.
    """
    try:
        found = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise TileError(f"its reference system cannot be read: {str(error).splitlines()[0]}") from None
    code = found.to_authority(min_confidence=100)
    return Layer("-".join(code) if code else f"crs-{storage.digest_text(found.to_wkt())[:8]}", found)


def areas_m2(layer: Layer, drawn: np.ndarray, middles: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """What shapes of a reference system cover on the ellipsoid, each seen on an equal-area map about its tile.

    Args:
        drawn: `[N]` shapes.
        middles: `[M]` points, the middles of tiles.
        tile: `[N]` which tile each shape is of.
    """
    to_degrees = pyproj.Transformer.from_crs(layer.crs, DEGREES, always_xy=True)
    corners, shape = shapely.get_coordinates(drawn, return_index=True)
    centres = np.column_stack(to_degrees.transform(*shapely.get_coordinates(middles).T))
    lonlat = np.column_stack(to_degrees.transform(*corners.T))
    with np.errstate(invalid="ignore"):  # a place that the system does not know gives infinity, and no area
        flat = globe.plane(lonlat, centres, tile[shape])
    return shapely.area(shapely.set_coordinates(drawn.copy(), flat))


class Files:
    """A GeoParquet file per reference system, written row group by row group."""

    def __init__(self, folder: Path, maker: dict[str, Any]) -> None:
        self.folder, self.maker = folder, maker
        self.engines = {table: told.get("settings", {}).get("engine") for table, told in maker["made_by"].items()}
        ranked = any(table.startswith("ranks@") for table in maker["made_by"])
        self.schema = pa.schema([*ROWS, *(RANKED if ranked else []), *SHAPES])
        self.writers: dict[str, pq.ParquetWriter] = {}
        self.crs: dict[str, pyproj.CRS] = {}
        self.waiting: dict[str, list[pa.Table]] = {}
        self.rows: Counter[str] = Counter()

    def add(self, tiles: Sequence[dict[str, Any]]) -> None:
        """Take the polygons of tiles, as `polygons_of` gives them; those that failed have none."""
        done = [tile for tile in tiles if tile["failure"] is None]
        for layer in dict.fromkeys(tile["layer"] for tile in done):
            self._add(layer, [tile for tile in done if tile["layer"] == layer])

    def _add(self, layer: Layer, tiles: Sequence[dict[str, Any]]) -> None:
        drawn = np.concatenate([tile["shapes"] for tile in tiles])
        tile = np.repeat(np.arange(len(tiles)), [len(tile["shapes"]) for tile in tiles])
        areas = areas_m2(layer, drawn, np.array([tile["middle"] for tile in tiles]), tile)
        if layer.crs.is_geographic:
            drawn = shapes.cut_at_antimeridian(drawn)
        rows = [
            {
                **row,
                "area_m2": area if np.isfinite(area) else None,
                "engine": self.engines.get(row["segments"]),
                "geometry": wkb,
                "bbox": dict(zip(BBOX.names, box, strict=True)),
            }
            for row, area, wkb, box in zip(
                (row for tile in tiles for row in tile["rows"]),
                areas.tolist(),
                shapely.to_wkb(drawn),
                shapely.bounds(drawn).tolist(),
                strict=True,
            )
        ]
        name = f"segments-{layer.name}.parquet"
        self.crs[name] = layer.crs
        self.rows[name] += len(rows)
        self.waiting.setdefault(name, []).append(pa.Table.from_pylist(rows, schema=self.schema))
        if sum(table.num_rows for table in self.waiting[name]) >= ROW_GROUP:
            self._write(name)

    def _write(self, name: str) -> None:
        if name not in self.writers:
            schema = storage.with_made_by(self.schema.with_metadata({b"geo": geo(self.crs[name])}), self.maker)
            self.writers[name] = pq.ParquetWriter(self.folder / name, schema, compression="zstd")
        rows = pa.concat_tables(self.waiting.pop(name))
        self.writers[name].write_table(rows, row_group_size=rows.num_rows)

    def close(self) -> None:
        for name in list(self.waiting):
            self._write(name)
        for writer in self.writers.values():
            writer.close()


@contextmanager
def layers(folder: Path, maker: dict[str, Any]) -> Iterator[Files]:
    """Files of a folder, whole when the block ends."""
    files = Files(folder, maker)
    try:
        yield files
    finally:
        files.close()


def geo(crs: pyproj.CRS) -> bytes:
    """GeoParquet 1.1 metadata; whatever the system's own order of axes, x is easting or longitude."""
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon", "MultiPolygon"],
        "crs": crs.to_json_dict(),
        "orientation": "counterclockwise",
        "covering": COVERING,
    }
    return json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}).encode()

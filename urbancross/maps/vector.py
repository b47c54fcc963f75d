"""GeoParquet and GeoJSON as batches of features, read piece by piece, in any coordinate reference system."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import shapely

from urbancross import globe
from urbancross.errors import ConfigError
from urbancross.maps import overture
from urbancross.maps.features import encode
from urbancross.maps.visible import HIDDEN, KEYS, tag_list

BATCH = 16_384
CHUNK = 1 << 20  # characters of a GeoJSON file read at a time
LINES = (".geojsonl", ".geojsons", ".ndjson", ".jsonl")
KNOWN = "GeoParquet (.parquet), GeoJSON (.geojson, .json) or GeoJSON lines (.geojsonl)"
COLUMNS = {*KEYS, *HIDDEN, "tags", "source_tags", "id", "osm_id", "type", "theme", "version", "subtype", "class"}
COLUMNS |= {"categories", "taxonomy", "basic_category", "is_underground", "has_parts", "road_flags", "rail_flags"}
COLUMNS |= {"road_surface", "is_intermittent"}


@dataclass
class Batch:
    """What was read: properties, and shapes in the file's own system."""

    rows: Sequence[Mapping[str, Any]]
    shapes: np.ndarray
    to_degrees: pyproj.Transformer | None
    path: str
    first: int  # number of the first row in the file
    ids: list[str] = field(default_factory=list)

    def table(self) -> pa.Table:
        """Those with a tag that can be seen, as rows of `features.SCHEMA`."""
        dimensions = shapely.get_dimensions(self.shapes)
        ids, tags, kept = [], [], []
        for i, row in enumerate(self.rows):
            seen = tuple(tag_list(tags_of(row, self.path, int(dimensions[i])))) if dimensions[i] >= 0 else ()
            if seen:
                name = row.get("id") or row.get("osm_id")
                ids.append(str(name) if name is not None else f"row/{self.first + i}")
                tags.append(seen)
                kept.append(i)
        shapes = shapely.force_2d(self.shapes[kept])
        if self.to_degrees is not None:
            shapes = shapely.transform(
                shapes,
                lambda xy: np.column_stack(self.to_degrees.transform(*xy.T)),
            )
        return encode(ids, tags, shapes)


def tags_of(row: Mapping[str, Any], path: str, dimension: int) -> dict[str, str]:
    """A feature's tags: from a column of tags, from Overture's classes, or from columns named like keys."""
    for column in ("tags", "source_tags"):
        found = _as_tags(row.get(column))
        if found:
            return found
    kind = overture.type_of(row, path)
    if kind is not None:
        return overture.tags_of(row, kind, dimension)
    return {key: str(row[key]) for key in (*KEYS, *HIDDEN) if row.get(key) not in (None, "")}


def _as_tags(told: Any) -> dict[str, str]:
    """A map column, a struct, or JSON, as a dictionary."""
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except ValueError:
            return {}
    if isinstance(told, list) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in told):
        told = dict(told)
    if not isinstance(told, Mapping):
        return {}
    return {str(key): str(value) for key, value in told.items() if value is not None}


def read(path: Path) -> Iterator[Batch]:
    """Read a file of features, in the order of the file.

    Raises:
        ConfigError: the file is missing, of another kind, broken, has no geometry, or does not say where it lies.
    """
    if not path.is_file():
        raise ConfigError(f"no features at {path}; pass {KNOWN} with --features")
    with open(path, "rb") as file:
        magic = file.read(4)
    if magic == b"PAR1" or path.suffix.lower() in (".parquet", ".geoparquet"):
        return _parquet(path)
    if path.suffix.lower() in (".json", ".geojson", *LINES):
        return _geojson(path)
    raise ConfigError(f"{path} is of no kind that --features reads; pass {KNOWN}, or an .osm.pbf file with --osm")


def _parquet(path: Path) -> Iterator[Batch]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            geometry, to_degrees = _place_of(path, schema)
            columns = [name for name in schema.names if name in COLUMNS or name == geometry]
            first = 0
            for batch in file.iter_batches(BATCH, columns=columns):
                shapes = shapely.from_wkb(batch.column(geometry).to_numpy(zero_copy_only=False))
                rows = batch.drop_columns([geometry]).to_pylist()
                yield Batch(rows, np.asarray(shapes, dtype=object), to_degrees, str(path), first)
                first += batch.num_rows
    except (pa.ArrowException, OSError, shapely.GEOSException) as error:
        raise ConfigError(
            f"{path} cannot be read as GeoParquet ({_plain(error)}); download it again, or write it with geopandas"
        ) from error


def _place_of(path: Path, schema: pa.Schema) -> tuple[str, pyproj.Transformer | None]:
    """The geometry column of a GeoParquet file, and the way from its coordinates to degrees."""
    told = (schema.metadata or {}).get(b"geo")
    try:
        geo = json.loads(told) if told else {}
        name = geo.get("primary_column", "geometry")
        column = geo.get("columns", {}).get(name)
    except (ValueError, AttributeError):
        geo, name, column = {}, "geometry", None
    if not isinstance(column, dict) or name not in schema.names:
        raise ConfigError(
            f"{path} is Parquet without GeoParquet's geometry column; write it with geopandas' to_parquet or "
            "DuckDB's spatial extension"
        )
    if column.get("encoding", "WKB") != "WKB":
        raise ConfigError(f"{path} keeps its geometry as {column['encoding']}, WKB wanted; write it again as WKB")
    if "crs" in column and column["crs"] is None:
        raise ConfigError(
            f"{path} does not say its coordinate reference system; set it (geopandas: set_crs) and write the file again"
        )
    return name, _to_degrees(path, column.get("crs"))


def _to_degrees(path: Path, crs: Any) -> pyproj.Transformer | None:
    """Coordinates are x before y in both formats, whatever order the system itself has."""
    if crs is None:
        return None
    try:
        known = pyproj.CRS.from_user_input(crs)
        found = pyproj.Transformer.from_crs(known, globe.CRS84, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise ConfigError(
            f"{path} names a coordinate reference system that PROJ does not know ({_plain(error)}); write it anew in "
            "longitude and latitude"
        ) from None
    return None if known.is_geographic and known.to_authority() in (("OGC", "CRS84"), ("EPSG", "4326")) else found


def _geojson(path: Path) -> Iterator[Batch]:
    try:
        with open(path, encoding="utf-8-sig") as text:
            objects = _Objects(text)
            found = iter(objects)
            batch: list[dict[str, Any]] = []
            first = 0
            for told in found:
                batch.append(told)
                if len(batch) == BATCH:
                    yield _of_objects(path, batch, objects.crs, first)
                    first, batch = first + len(batch), []
            if not first and not batch:
                raise ConfigError(f"{path} holds no feature; pass {KNOWN}")
            if batch:
                yield _of_objects(path, batch, objects.crs, first)
    except (ValueError, RecursionError, OSError, shapely.GEOSException) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be read as GeoJSON ({_plain(error)}); mend it or write it again") from error


def _of_objects(path: Path, found: list[dict[str, Any]], crs: Any, first: int) -> Batch:
    name = crs.get("properties", {}).get("name") if isinstance(crs, dict) else None
    shapes = shapely.from_geojson([json.dumps(told["geometry"]) if told.get("geometry") else None for told in found])
    rows = [{**(told.get("properties") or {}), **({"id": told["id"]} if "id" in told else {})} for told in found]
    return Batch(rows, np.asarray(shapes, dtype=object), _to_degrees(path, name), str(path), first)


class _Objects:
    """The features of a FeatureCollection, or of lines of features, one after the other; the text is never whole.

    Attributes:
        crs: the member of that name which GDAL writes before the features.
    """

    def __init__(self, text: TextIO) -> None:
        self.text, self.held, self.crs = text, "", None
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        chunk = self.text.read(max(CHUNK, len(self.held)))  # twice as much each time, for one very large feature
        self.held += chunk
        return bool(chunk)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.more()
        self.held = self.held.lstrip()
        if not self.held.startswith("{"):
            raise ValueError("it does not begin with {")
        at = self.begin()
        while True:
            at = self.skip(at)
            if at >= len(self.held):
                if not self.more():
                    return
                continue
            if self.held[at] == "]":
                return
            try:
                told, end = self.decoder.raw_decode(self.held, at)
            except ValueError:
                self.held, at = self.held[at:], 0
                if not self.more():
                    raise ValueError("it is cut short, or no JSON") from None
                continue
            if not isinstance(told, dict) or "geometry" not in told:
                raise ValueError("a feature has no geometry")
            yield told
            at = end
            if at > CHUNK:
                self.held, at = self.held[at:], 0

    def skip(self, at: int) -> int:
        while at < len(self.held) and self.held[at] in " \t\r\n,\x1e":
            at += 1
        return at

    def begin(self) -> int:
        """Where the first feature begins; keeps the reference system that is told before."""
        while '"geometry"' not in self.held and "[" not in self.held.partition('"features"')[2] and self.more():
            pass
        start = self.held.find('"features"')
        if start < 0 or '"geometry"' in self.held[:start]:
            return 0  # lines of features, or a single one
        head = self.held[:start]
        if '"crs"' in head:
            self.crs = self.decoder.raw_decode(self.held, head.index(":", head.index('"crs"')) + 1 + _blanks(head))[0]
        return self.held.index("[", start) + 1


def _blanks(head: str) -> int:
    after = head[head.index(":", head.index('"crs"')) + 1 :]
    return len(after) - len(after.lstrip())


def _plain(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

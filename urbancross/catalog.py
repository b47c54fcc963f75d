"""An archive as a STAC Collection: a folder with collection.json, and its tiles as items in one stac-geoparquet file.

Where STAC has no word for what is not known, the widest that is certain stands there: a tile without bounds has no
geometry, and one without a time lies between the first picture from the air and the writing of its shard.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyproj

from urbancross import globe, schemas, storage, tables
from urbancross.index.moments import Span, span_of
from urbancross.storage import Place

COLLECTION, ITEMS = "collection.json", "items.parquet"
STAC_VERSION, GEOPARQUET_VERSION = "1.1.0", "1.1.0"
TABLE = "https://stac-extensions.github.io/table/v1.2.0/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
PARQUET = "application/vnd.apache.parquet"
FIRST_FROM_THE_AIR = datetime(1858, 1, 1, tzinfo=UTC)
WORLD = (-180.0, -90.0, 180.0, 90.0)
READ = ["domain", "bounds", "geometry", "bbox", "crs", "transform", "gsd_m", "datetime", "split"]
TIME = pa.timestamp("us", "UTC")
ASSET = pa.struct(
    [
        pa.field("href", pa.string()),
        pa.field("type", pa.string()),
        pa.field("roles", pa.list_(pa.string())),
        pa.field("urbancross:row", pa.int32()),  # of the shard, from 0
    ]
)
LINK = pa.struct([pa.field(name, pa.string()) for name in ("href", "rel", "type", "title")])


@dataclass
class Seen:
    """What the items that were written have in common.

    Attributes:
        boxes: of tiles that have a place, merged along the equator now and then.
        known: first and last moment of tiles that say their time; `all` of the others too.
    """

    boxes: list[globe.Bounds] = field(default_factory=list)
    known: list[Span] = field(default_factory=list)
    all: list[Span] = field(default_factory=list)
    gsd_m: list[float] = field(default_factory=list)
    words: dict[str, Counter[str]] = field(default_factory=lambda: {"domain": Counter(), "split": Counter()})
    codes: set[str] = field(default_factory=set)
    failures: list[str | None] = field(default_factory=list)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        boxes = [tuple(row["bounds"]) for row in rows if row["bounds"] is not None]
        self.boxes = [globe.around(boxes)] if (boxes := [*self.boxes, *boxes]) else []
        self.known = _hull([*self.known, *(row["span"] for row in rows if row["dated"])])
        self.all = _hull([*self.all, *(row["span"] for row in rows)])
        sizes = [row["gsd_m"] for row in rows if row["gsd_m"] is not None]
        self.gsd_m = [min(found), max(found)] if (found := [*self.gsd_m, *sizes]) else []
        for word, counts in self.words.items():
            counts.update(row[word] for row in rows if row[word] is not None)
        self.codes |= {code for row in rows if (code := reference(row["crs"])[0]) is not None}


def write(archive: Place, folder: Path, out: Path, licence: str, split: str | None) -> Seen:
    """Write both files into a folder that will be `out`; the failures of all tiles are in what was seen.

    Raises:
        ConfigError: there is no table of tiles.
    """
    names = tables.require_shards(archive, "tiles")
    embedded = [table for table in storage.tables(archive, "embeddings") if storage.shards(archive / table)]
    keys = {"embeddings" if len(embedded) == 1 else table: table for table in embedded}
    schema, name, seen = _schema(keys), archive.name or "archive", Seen()
    with pq.ParquetWriter(folder / ITEMS, schema, compression="zstd") as writer:
        for shard in names:
            rows = [row for row in _rows(archive, shard) if split in (None, row["split"])]
            seen.failures += [row["failure"] for row in rows]
            done = [row for row in rows if row["failure"] is None]
            made = [table for table in embedded if storage.exists(archive / table / shard)]
            vectors = {table: _there(archive, table, shard) for table in made}
            seen.add(done)
            items = [_item(row, archive, out, shard, name, keys, vectors) for row in done]
            if items:
                writer.write_table(pa.Table.from_pylist(items, schema=schema))
        collection = _collection(archive, out, name, licence, keys, seen)
        told = {"version": GEOPARQUET_VERSION, "collections": {name: collection}}
        writer.add_key_value_metadata({"stac-geoparquet": json.dumps(told)})
    (folder / COLLECTION).write_text(json.dumps(collection, indent=2) + "\n")
    return seen


def _rows(archive: Place, shard: str) -> Iterator[dict[str, Any]]:
    written = datetime.fromtimestamp(storage.modified_s(archive / "tiles" / shard), UTC)
    unknown = (_microseconds(FIRST_FROM_THE_AIR), _microseconds(written))
    table = tables.read_rows(archive, "tiles", shard, ["tile_id", "failure", *READ])
    for number, row in enumerate(table.to_pylist()):
        span = _span_or_none(row["datetime"])
        yield row | {"row": number, "span": span or unknown, "dated": span is not None}


@lru_cache(maxsize=4096)
def _span_or_none(text: str | None) -> Span | None:
    try:
        return None if text is None else span_of(text)
    except (ValueError, OverflowError):
        return None


def _hull(spans: Sequence[Span]) -> list[Span]:
    return [(min(first for first, _ in spans), max(last for _, last in spans))] if spans else []


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def _there(archive: Place, table: str, shard: str) -> list[bool]:
    return storage.read_shard(archive / table / shard, ["failure"])["failure"].is_null().to_pylist()


@lru_cache(maxsize=256)
def reference(crs: str | None) -> tuple[str | None, str | None]:
    """A reference system as its code, or as WKT2 where it has none; neither where it cannot be read."""
    try:
        found = None if crs is None else pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError:
        found = None
    if found is None:
        return None, None
    code = found.to_authority(min_confidence=100)
    return (":".join(code), None) if code else (None, found.to_wkt())


def _item(
    row: dict[str, Any],
    archive: Place,
    out: Path,
    shard: str,
    collection: str,
    keys: dict[str, str],
    vectors: dict[str, list[bool]],
) -> dict[str, Any]:
    code, wkt2 = reference(row["crs"])
    placed = row["transform"] is not None and (code or wkt2) is not None
    first, last = row["span"]
    moment = first == last
    assets: dict[str, Any] = {"image": _asset(archive, out, "tiles", shard, row["row"], "data")}
    for key, table in keys.items():
        has = table in vectors and vectors[table][row["row"]]
        assets[key] = _asset(archive, out, table, shard, row["row"], "embeddings") if has else None
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": [PROJECTION] if placed else [],
        "id": row["tile_id"],
        "geometry": row["geometry"],
        "bbox": row["bbox"],
        "links": [
            {"href": f"./{COLLECTION}", "rel": rel, "type": "application/json", "title": None}
            for rel in ("collection", "parent", "root")
        ],
        "assets": assets,
        "collection": collection,
        "datetime": first if moment else None,
        "start_datetime": None if moment else first,
        "end_datetime": None if moment else last,
        "gsd": row["gsd_m"],
        "proj:code": code if placed else None,
        "proj:wkt2": wkt2 if placed else None,
        "proj:transform": row["transform"] if placed else None,
        "urbancross:domain": row["domain"],
        "urbancross:split": row["split"],
        "urbancross:dated": row["dated"],
    }


def _asset(archive: Place, out: Path, table: str, shard: str, row: int, role: str) -> dict[str, Any]:
    return {"href": href(archive / table / shard, out), "type": PARQUET, "roles": [role], "urbancross:row": row}


def href(place: Place, out: Path) -> str:
    """Where a place lies, as seen from the folder `out`; an address where it is no local one."""
    return Path(os.path.relpath(place, out)).as_posix() if isinstance(place, Path) else str(place)


def _schema(keys: dict[str, str]) -> pa.Schema:
    column = {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"], "covering": schemas.COVERING}
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    texts = ("type", "stac_version", "id", "collection", "proj:code", "proj:wkt2", "urbancross:domain")
    fields = [
        *(pa.field(name, pa.string()) for name in texts),
        pa.field("urbancross:split", pa.string()),
        pa.field("urbancross:dated", pa.bool_()),  # false: nobody says when; start and end are only the widest bounds
        pa.field("stac_extensions", pa.list_(pa.string())),
        pa.field("geometry", pa.binary()),
        pa.field("bbox", schemas.BBOX),
        pa.field("links", pa.list_(LINK)),
        pa.field("assets", pa.struct([pa.field(key, ASSET) for key in ("image", *keys)])),
        *(pa.field(name, TIME) for name in ("datetime", "start_datetime", "end_datetime")),
        pa.field("gsd", pa.float64()),
        pa.field("proj:transform", pa.list_(pa.float64())),
    ]
    return pa.schema(fields, metadata={b"geo": json.dumps(geo).encode()})


def _collection(archive: Place, out: Path, name: str, licence: str, keys: dict[str, str], seen: Seen) -> dict[str, Any]:
    domains, splits = (sorted(seen.words[word]) for word in ("domain", "split"))
    found = {table: _table(archive, out, table) for table in tables.of_tiles(archive) if _has_shards(archive, table)}
    mirror = {
        "href": f"./{ITEMS}",
        "type": PARQUET,
        "title": "All items, a row a tile",
        "description": "In the order of the archive's shards: scene by scene, row by row in a scene.",
        "roles": ["collection-mirror"],
    }
    counts = {"tiles": len(seen.failures), "items": sum(seen.words["domain"].values()), **dict(seen.words["split"])}
    items = {"image": {"type": PARQUET, "roles": ["data"], "title": "The tile, encoded, in a row of a shard"}}
    items |= {key: {"type": PARQUET, "roles": ["embeddings"], "title": f"Its vector in {t}"} for key, t in keys.items()}
    summaries: dict[str, Any] = {"urbancross:domain": domains, "urbancross:split": splits}
    summaries |= {"proj:code": sorted(seen.codes)} if seen.codes else {}
    summaries |= {"gsd": {"minimum": seen.gsd_m[0], "maximum": seen.gsd_m[1]}} if seen.gsd_m else {}
    spans = [*seen.all, *(span for span in seen.known if [span] != seen.all)]
    return {
        "type": "Collection",
        "stac_version": STAC_VERSION,
        "stac_extensions": [TABLE],
        "id": name,
        "title": f"Tiles of {', '.join(domains) or name}",
        "description": f"{counts['items']:,} tiles of imagery of {', '.join(domains) or name}, searchable by text.",
        "license": licence,
        "extent": {
            "spatial": {"bbox": [list(seen.boxes[0] if seen.boxes else WORLD)]},
            "temporal": {"interval": [[_iso(first), _iso(last)] for first, last in spans] or [[None, None]]},
        },
        "summaries": {key: value for key, value in summaries.items() if value},
        "links": [{"href": f"./{COLLECTION}", "rel": "root", "type": "application/json"}],
        "item_assets": items,
        "assets": {"items": mirror, **found},
        "urbancross:counts": counts,
    }


def _has_shards(archive: Place, table: str) -> bool:
    return bool(storage.shards(archive / table))


def _iso(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1_000_000, UTC).isoformat().replace("+00:00", "Z")


def _table(archive: Place, out: Path, table: str) -> dict[str, Any]:
    """A table as an asset of the collection, by the table extension; of embeddings, what compares with them too."""
    names = storage.shards(archive / table)
    schema = storage.read_schema(archive / table / names[0])
    told: dict[str, Any] = {
        "href": href(archive / table, out),
        "type": PARQUET,
        "title": table,
        "roles": ["data"],
        "table:columns": [{"name": column.name, "type": str(column.type)} for column in schema],
        "table:row_count": sum(tables.row_counts(archive, table, names).values()),
    }
    if "geometry" in schema.names:
        told["table:primary_geometry"] = "geometry"
    kind = table.partition("@")[0]
    if kind in ("embeddings", "segment_embeddings"):
        maker = storage.made_by(schema)
        vector = schema.field("vector" if kind == "embeddings" else "vectors").type
        vector = vector if kind == "embeddings" else vector.value_type
        told |= {
            "emb:type": "chip",
            "emb:dimensions": vector.list_size,
            "data_type": {"float": "float32", "halffloat": "float16"}.get(
                str(vector.value_type), str(vector.value_type)
            ),
            "emb:fit_for_use": ["retrieval"],
            "urbancross:similarity": "cosine",  # of unit vectors, the inner product
            "urbancross:checkpoint": maker.get("settings", {}).get("checkpoint"),  # fingerprint of the weights
        }
    return told

"""`export --stac` on archives made by hand: what pystac, GeoPandas and DuckDB read of the two files."""

import json
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import shapely
from pystac.extensions.table import TableExtension

from urbancross import catalog, cli, schemas, storage, tables, tiles
from urbancross.config import ExportConfig
from urbancross.distributed.ingest import geoparquet
from urbancross.errors import ConfigError

UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 6_000_000.0)
NAME = "part-{:05d}.parquet"


def tile(name: str, bounds: list[float] | None = None, **known: Any) -> dict[str, Any]:
    (bbox,) = schemas.boxes([bounds]).to_pylist()
    place = {"bounds": bounds, "geometry": tiles.footprint(bounds), "bbox": bbox}
    return {"tile_id": name, "domain": "north", "image": b"x", "split": "train", **place, **known}


def write(archive: Path, rows: list[dict[str, Any]], vectors: bool = True) -> Path:
    """An archive of two tiles a shard, and a vector for all but the last tile that could have one."""
    made = {"table": "embeddings@m", "settings": {"checkpoint": "f00d"}, "notes": {"width": 4}}
    embedded = storage.with_made_by(schemas.embeddings(4), made)
    for number, start in enumerate(range(0, len(rows), 2)):
        some = rows[start : start + 2]
        shard = pa.Table.from_pylist(some, schema=geoparquet(schemas.TILES))
        storage.publish_shard(archive / "tiles" / NAME.format(number), shard)
        if vectors:
            told = [
                {"tile_id": row["tile_id"], "vector": [1, 0, 0, 0]}
                if row is not rows[-1]
                else {"tile_id": row["tile_id"], "failure": "failed:x"}
                for row in some
            ]
            storage.publish_shard(archive / "embeddings@m" / NAME.format(number), pa.Table.from_pylist(told, embedded))
    return archive


def export(archive: Path, out: Path, **settings: Any) -> str:
    return str(cli.call("export", ExportConfig(archive=str(archive), out=str(out), stac=True, **settings)))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write(
        tmp_path / "fiji",
        [
            tile(
                "a", [178, -18, 179, -17], datetime="2024-06-01T10:00:00Z", crs="EPSG:32760", transform=UTM, gsd_m=10.0
            ),
            tile("b", [179.5, -18, -179.5, -17], datetime="2024-06-02", gsd_m=2.0, split="test"),
            tile("c"),
            tile("d", failure="failed:corrupt image", image=None),
            tile("e", [-179, -18, -178, -17], datetime="some day", crs="no system"),
        ],
    )


def items_of(out: Path) -> list[dict[str, Any]]:
    """Rows of items.parquet as the STAC items that they stand for."""
    own = {"type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets", "collection"}
    found = []
    for row in pq.read_table(out / "items.parquet").to_pylist():
        item = {key: value for key, value in row.items() if key in own}
        shape = row["geometry"] and shapely.from_wkb(row["geometry"])
        item["geometry"] = shape and json.loads(shapely.to_geojson(shape))
        item["bbox"] = list(row["bbox"].values()) if row["bbox"] else None
        item = {key: value for key, value in item.items() if key == "geometry" or value is not None}
        item["assets"] = {key: value for key, value in row["assets"].items() if value}
        item["links"] = [{key: value for key, value in link.items() if value} for link in row["links"]]
        properties = {k: v for k, v in row.items() if k not in own and (v is not None or k == "datetime")}
        item["properties"] = {
            key: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
            for key, value in properties.items()
        }
        found.append(item)
    return found


def problems(found: dict[str, Any], kind: str) -> list[str]:
    """By the JSON schemas of STAC that pystac carries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pystac.validation.local_validator import LocalValidator

        return [error.message for error in LocalValidator()._validator(kind, "1.1.0").iter_errors(found)]


def test_pystac_reads_the_collection_and_it_fits_the_schema(archive: Path, tmp_path: Path, capsys):
    line = export(archive, tmp_path / "stac", licence="CC-BY-4.0")
    assert line == "read 5 = written 4 + done before 0 + failed 1"
    assert f"{tmp_path}/stac/collection.json: 4 items in items.parquet" in capsys.readouterr().out
    told = json.loads((tmp_path / "stac" / "collection.json").read_text())
    assert problems(told, "collection") == []
    assert problems({**told, "license": None}, "collection") != []
    found = pystac.Collection.from_file(str(tmp_path / "stac" / "collection.json"))
    assert (found.id, found.license) == ("fiji", "CC-BY-4.0")
    assert found.extent.spatial.bboxes == [[178, -18, -178, -17]]  # the short way, across the antimeridian
    whole, known = found.extent.temporal.intervals
    assert known == [datetime(2024, 6, 1, 10, tzinfo=UTC), datetime(2024, 6, 2, 23, 59, 59, 999999, tzinfo=UTC)]
    assert whole[0] == datetime(1858, 1, 1, tzinfo=UTC)
    assert abs((whole[1] - datetime.now(UTC)).total_seconds()) < 600
    assert told["summaries"] == {
        "urbancross:domain": ["north"], "urbancross:split": ["test", "train"], "proj:code": ["EPSG:32760"],
        "gsd": {"minimum": 2.0, "maximum": 10.0},
    }  # fmt: skip
    assert told["urbancross:counts"] == {"tiles": 5, "items": 4, "train": 3, "test": 1}
    assert set(told["item_assets"]) == {"image", "embeddings"}
    mirror = found.assets["items"]
    assert (mirror.roles, mirror.media_type) == (["collection-mirror"], "application/vnd.apache.parquet")
    assert Path(mirror.get_absolute_href() or "").samefile(tmp_path / "stac" / "items.parquet")
    table = TableExtension.ext(found.assets["tiles"])
    assert [column.name for column in table.columns or []] == schemas.TILES.names
    assert (table.row_count, table.primary_geometry) == (5, "geometry")
    assert Path(found.assets["tiles"].get_absolute_href() or "").samefile(archive / "tiles")
    vectors = found.assets["embeddings@m"].extra_fields
    assert (vectors["emb:dimensions"], vectors["data_type"], vectors["urbancross:checkpoint"]) == (4, "float32", "f00d")
    assert vectors["urbancross:similarity"] == "cosine"


def test_every_item_fits_the_schema_and_leads_to_its_row(archive: Path, tmp_path: Path):
    export(archive, tmp_path / "out" / "stac")
    items = items_of(tmp_path / "out" / "stac")
    assert [problems(item, "item") for item in items] == [[], [], [], []]
    jsonschema.Draft7Validator({}).validate(items)
    a, b, c, e = (pystac.Item.from_dict(item) for item in items)
    assert (a.datetime, a.properties["proj:code"]) == (datetime(2024, 6, 1, 10, tzinfo=UTC), "EPSG:32760")
    assert a.properties["proj:transform"] == list(UTM)
    assert b.bbox == [179.5, -18, -179.5, -17]
    halves = shapely.MultiPolygon([shapely.box(179.5, -18, 180, -17), shapely.box(-180, -18, -179.5, -17)])
    assert shapely.geometry.shape(b.geometry).equals(halves)
    assert b.datetime is None
    assert (b.common_metadata.start_datetime, b.properties["urbancross:dated"]) == (
        datetime(2024, 6, 2, tzinfo=UTC),
        True,
    )
    assert (c.geometry, c.bbox, c.properties["urbancross:dated"]) == (None, None, False)
    assert c.common_metadata.start_datetime == datetime(1858, 1, 1, tzinfo=UTC)
    assert (e.properties["urbancross:dated"], e.stac_extensions) == (False, [])
    assert [sorted(item.assets) for item in (a, b, c, e)] == [["embeddings", "image"]] * 3 + [["image"]]
    for item in (a, b, c, e):
        for asset in item.assets.values():
            shard = pq.read_table(tmp_path / "out" / "stac" / asset.href)
            assert shard["tile_id"][asset.extra_fields["urbancross:row"]].as_py() == item.id


def test_the_items_are_geoparquet_and_stac_geoparquet_that_others_open(archive: Path, tmp_path: Path):
    export(archive, tmp_path / "stac")
    file = tmp_path / "stac" / "items.parquet"
    metadata = pq.read_metadata(file).metadata
    told = json.loads(metadata[b"stac-geoparquet"])
    assert told["version"] == "1.1.0"
    assert told["collections"] == {"fiji": json.loads((tmp_path / "stac" / "collection.json").read_text())}
    assert json.loads(metadata[b"geo"])["columns"]["geometry"]["covering"]["bbox"]["xmax"] == ["bbox", "xmax"]
    frame = geopandas.read_parquet(file)
    assert frame.crs.to_epsg() == 4326 or frame.crs.to_string() == "OGC:CRS84"
    assert frame.geometry.isna().tolist() == [False, False, True, False]
    rows = duckdb.sql(f"select id from '{file}' where datetime >= '2024-06-01T00:00:00Z' and gsd = 10").fetchall()
    assert rows == [("a",)]
    asset = duckdb.sql(
        f"select assets.image.href, assets.image['urbancross:row'] from '{file}' where id = 'b'"
    ).fetchall()
    assert asset == [("../fiji/tiles/part-00000.parquet", 1)]


def test_an_archive_without_places_times_or_vectors_is_a_collection_too(tmp_path: Path):
    archive = write(tmp_path / "plain", [tile("a", split=None), tile("b", split=None)], vectors=False)
    export(archive, archive / "stac")
    told = json.loads((archive / "stac" / "collection.json").read_text())
    assert problems(told, "collection") == []
    assert told["extent"]["spatial"]["bbox"] == [[-180, -90, 180, 90]]
    assert len(told["extent"]["temporal"]["interval"]) == 1
    assert told["license"] == "other"
    items = items_of(archive / "stac")
    assert [problems(item, "item") for item in items] == [[], []]
    assert items[0]["assets"]["image"]["href"] == "../tiles/part-00000.parquet"
    assert "stac" not in told["assets"]  # the folder lies in the archive and is no table of it
    with pytest.raises(ConfigError, match="exists already"):
        export(archive, archive / "stac")


def test_a_split_and_an_archive_without_usable_tiles(archive: Path, tmp_path: Path):
    assert export(archive, tmp_path / "test", split="test") == "read 1 = written 1 + done before 0 + failed 0"
    empty = write(tmp_path / "empty", [tile("d", failure="failed:corrupt image", image=None)], vectors=False)
    with pytest.raises(ConfigError, match=r"has no tile to export \(1 × corrupt image\)"):
        export(empty, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_what_an_s3_archive_holds_is_told_by_address(tmp_path: Path):
    assert (
        catalog.href(storage.place("s3://bucket/fiji/tiles/a.parquet"), tmp_path) == "s3://bucket/fiji/tiles/a.parquet"
    )


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"stac": True, "tile": "a"}, "give one of them"),
        ({"stac": True, "simplify": 1}, "--simplify means nothing to --stac"),
        ({"tile": "a", "split": "test"}, "--split means nothing to --tile"),
        ({"licence": "MIT"}, "--licence means nothing to segments; it goes with --stac"),
    ],
)
def test_flags_that_do_not_go_together_are_named(settings: dict[str, Any], wanted: str):
    with pytest.raises(ValueError, match=wanted):
        ExportConfig(archive="a", out="b", **settings)


def test_tiles_of_an_earlier_version_get_their_boxes_from_their_bounds(archive: Path, tmp_path: Path):
    export(archive, tmp_path / "now")
    for name in storage.shards(archive / "tiles"):
        shard = storage.read_shard(archive / "tiles" / name)
        (archive / "tiles" / name).unlink()
        storage.publish_shard(archive / "tiles" / name, shard.drop_columns(["bbox"]))
    export(archive, tmp_path / "then")
    boxes = [pq.read_table(tmp_path / out / "items.parquet")["bbox"].to_pylist() for out in ("now", "then")]
    assert boxes[0] == boxes[1]
    name = storage.shards(archive / "tiles")[0]
    alone = tables.read_rows(archive, "tiles", name, ["tile_id", "bbox"])  # bounds were not asked for
    assert alone.column_names == ["tile_id", "bbox"]
    assert alone["bbox"][1].as_py() == {"xmin": 179.5, "ymin": -18.0, "xmax": -179.5, "ymax": -17.0}
    assert tables.read_rows(archive, "tiles", name).column("bbox").null_count == 0

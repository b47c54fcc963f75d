"""STAC of every kind to the same scenes, and to one line where it cannot be."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import web as testweb
from test_sources import write_scene
from web import SECRET, Web

from urbancross import schemas, sources, stac
from urbancross.errors import ConfigError
from urbancross.scenes import remote
from urbancross.scenes.grids import Pixels
from urbancross.scenes.rasters import BETWEEN
from urbancross.scenes.remote import Access
from urbancross.scenes.tiling import Tiling
from urbancross.splits import Shares
from urbancross.stac import Asked

COG = "image/tiff; application=geotiff; profile=cloud-optimized"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_scene(tmp_path / "scenes" / f"{name}.tif")
    return tmp_path


def item(name: str, day: int, href: str, collection: str | None = "north", **assets: dict[str, Any]) -> dict[str, Any]:
    told = {"data": {"href": href, "type": COG, "roles": ["data"]}, "preview": {"href": "p.png", "type": "image/png"}}
    told |= {"thumbnail": {"href": "t.tif", "type": COG, "roles": ["thumbnail"]}}
    found = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "links": [],
        "collection": collection,
    }
    west = 10.0 * day
    found |= {"bbox": [west, 50, west + 1, 51], "properties": {"datetime": f"2024-06-{day:02d}T10:00:00Z"}}
    found["geometry"] = {"type": "Point", "coordinates": [west, 50]}
    return found | {"assets": told | assets}


def write(path: Path, told: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))
    return str(path)


def rows_of(source: str, asked: Asked = sources.EVERYTHING, access: Access = remote.PLAIN) -> list[dict[str, Any]]:
    rows = sources.plan(source, None, "north", Tiling(Pixels(2), access=access), Shares("train"), asked=asked)
    pa.Table.from_pylist(rows, schema=schemas.PLAN)
    return rows


def test_an_item_an_item_collection_a_catalog_and_a_collection_lead_to_the_same_tiles(folder: Path):
    a, b = item("a", 1, "../scenes/a.tif"), item("b", 2, "../scenes/b.tif")
    write(folder / "items" / "a.json", a)
    found = rows_of(str(folder / "items" / "a.json"))
    assert [row["tile_id"] for row in found] == [f"north/a/{row:05d}-{col:05d}" for row in (0, 1) for col in (0, 1, 2)]
    assert {row["source"] for row in found} == {str(folder / "scenes" / "a.tif")}
    assert {row["datetime"] for row in found} == {"2024-06-01T10:00:00Z"}
    assert found[0]["source_version"].startswith(f"{(folder / 'scenes' / 'a.tif').stat().st_size}-")

    both = rows_of(write(folder / "items" / "all.json", {"type": "FeatureCollection", "features": [b, a]}))
    assert both[:6] == found
    assert len(both) == 12

    catalog = pystac.Catalog("all", "of a test")
    extent = pystac.Extent(pystac.SpatialExtent([[0, 0, 1, 1]]), pystac.TemporalExtent([[None, None]]))
    collection = pystac.Collection("north", "of a test", extent)
    catalog.add_child(collection)
    for told in (b, a):
        made = pystac.Item.from_dict(told)
        made.assets["data"].href = str(folder / "scenes" / f"{made.id}.tif")
        collection.add_item(made)
    catalog.normalize_hrefs(str(folder / "catalog"))
    catalog.make_all_asset_hrefs_relative()
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
    for name in ("catalog.json", "north/collection.json"):
        walked = rows_of(str(folder / "catalog" / name))
        assert [row["tile_id"] for row in walked] == [row["tile_id"] for row in both]
        assert {Path(row["source"]).resolve() for row in walked} == {Path(row["source"]).resolve() for row in both}


def test_a_stac_geoparquet_file_leads_to_the_same_tiles(folder: Path):
    told = [item("a", 1, "scenes/a.tif"), item("b", 2, "scenes/b.tif")]
    wanted = rows_of(write(folder / "all.json", {"type": "FeatureCollection", "features": told}))
    rows = [
        {
            **{"id": each["id"], "collection": "north", "datetime": datetime(2024, 6, day, 10, tzinfo=UTC)},
            "assets": each["assets"] | {"absent": None if day == 1 else {"href": "x.tif", "roles": ["metadata"]}},
            "bbox": dict(zip(("xmin", "ymin", "xmax", "ymax"), each["bbox"], strict=True)),
        }
        for day, each in enumerate(told, start=1)
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "items.parquet")
    assert rows_of(str(folder / "items.parquet")) == wanted
    east = rows_of(str(folder / "items.parquet"), Asked(bbox="20,50,21,51"))
    assert {row["tile_id"].split("/")[1] for row in east} == {"b"}
    late = Asked(datetime="2024-06-02/..", collections=("north",), max_items=1)
    assert {row["tile_id"].split("/")[1] for row in rows_of(str(folder / "items.parquet"), late)} == {"b"}


def test_which_asset_is_read_is_clear_or_asked_for(folder: Path):
    def source(**assets: dict[str, Any]) -> str:
        return write(folder / "item.json", item("a", 1, "scenes/a.tif", **assets))

    def read(asset: str | None = None, **assets: dict[str, Any]) -> str:
        return rows_of(source(**assets), Asked(asset))[0]["source"].replace(f"{folder}/", "")

    assert read() == "scenes/a.tif"
    assert read(visual={"href": "scenes/b.tif", "type": COG}) == "scenes/b.tif"
    assert read("data", visual={"href": "scenes/b.tif", "type": COG}) == "scenes/a.tif"
    with pytest.raises(
        ConfigError,
        match="item north/a has several rasters: data, other; give --asset NAME, or --asset RED,GREEN,BLUE",
    ):
        read(other={"href": "scenes/b.tif", "type": COG, "roles": ["data"]})
    with pytest.raises(
        ConfigError, match="no scene can be used, a: no asset B04, it has data, preview, thumbnail; give"
    ):
        read("B04")
    none = item("a", 1, "a.png")
    none["assets"] = {"preview": none["assets"]["preview"]}
    with pytest.raises(ConfigError, match=r"a: no GeoTIFF among its assets \(preview\); name one with --asset"):
        rows_of(write(folder / "item.json", none))
    # one of two items lacks it: a failed row, and the rest goes on
    found = rows_of(
        write(folder / "all.json", {"type": "FeatureCollection", "features": [none, item("b", 2, "scenes/b.tif")]})
    )
    assert [row["tile_id"] for row in found if row["failure"]] == ["north/a"]
    assert len(found) == 7


@pytest.fixture
def api(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)
    remote.web_of.cache_clear()
    with testweb.served(folder / "scenes") as server:
        server.items = [item(name, day, f"{server.url}/files/{name}.tif") for day, name in enumerate("cab", start=1)]
        yield server


def test_an_api_is_searched_page_by_page(api: Web, folder: Path):
    found = rows_of(f"{api.url}/stac")
    assert [row["tile_id"] for row in found[::6]] == [f"north/{name}/00000-00000" for name in "abc"]
    assert len(api.asked) == 2
    assert found[0]["source"] == f"{api.url}/files/a.tif"
    assert found[0]["source_version"].startswith(f'{(folder / "scenes/a.tif").stat().st_size}-"')
    here = rows_of(write(folder / "a.json", item("a", 2, "scenes/a.tif")))
    for name in ("tile_id", "window", "bounds", "crs", "transform", "gsd_m", "datetime", "colours"):
        assert [row[name] for row in found[:6]] == [row[name] for row in here]

    api.asked.clear()
    asked = Asked(
        None,
        ("north",),
        "1,2,3,4",
        "2024-06",
        ("eo:cloud_cover<10", '{"eo:cloud_cover": {"gte": 1}}'),
        '{"op": "=", "args": [1, 1]}',
        1,
    )
    assert {row["tile_id"].split("/")[1] for row in rows_of(f"{api.url}/stac", asked)} == {"c"}
    assert api.asked == [
        {
            **{"collections": ["north"], "bbox": [1.0, 2.0, 3.0, 4.0], "limit": 1},
            "datetime": "2024-06-01T00:00:00Z/2024-06-30T23:59:59Z",
            **{"query": {"eo:cloud_cover": {"lt": 10.0, "gte": 1}}, "filter": {"op": "=", "args": [1, 1]}},
            "filter-lang": "cql2-json",
        }
    ]
    api.seen.clear()
    rows_of(f"{api.url}/stac", Asked(filter="eo:cloud_cover < 10"))
    assert api.count("GET /stac/search?limit=100&filter=eo%3Acloud_cover+%3C+10&filter-lang=cql2-text") > 0


def test_what_is_no_stac_is_told_in_one_line(api: Web, folder: Path):
    def problem(source: str, **asked: Any) -> str:
        with pytest.raises(ConfigError) as told:
            rows_of(source, Asked(**asked))
        assert "\n" not in str(told.value)
        assert SECRET not in str(told.value)
        return str(told.value)

    root = f"{api.url}/stac"
    assert problem(root, collections=("south",)).endswith(" has none of this name, but north")
    assert "--query cloudless: want a property, one of" in problem(root, query=("cloudless",))
    assert "no item is as asked for; check --max-items" in (setattr(api, "items", []) or problem(root, max_items=3))
    assert "no answer of a STAC API (404); check the URL" in problem(f"{root}/nowhere")
    assert "is no STAC Item, ItemCollection, Collection, Catalog or API" in problem(f"{api.url}/sign?href=x")
    api.conforms = ["https://api.stacspec.org/v1.0.0/core"]
    assert "not a STAC API that searches items" in problem(root)
    api.conforms = testweb.CONFORMS[:2]
    assert "--filter: the API at" in problem(root, filter="a = 1")
    api.server_close()
    assert "no answer of a STAC API; check the URL" in problem("http://127.0.0.1:9/stac")
    assert problem(f"{root}?token={SECRET}") == (
        "--source: its URL holds a credential (token), which would be kept; leave it out"
    )
    assert "(a password)" in problem(f"https://me:{SECRET}@host/stac")
    good = write(folder / "good.json", item("a", 1, "scenes/a.tif"))
    assert "--query and --filter are for a STAC API" in problem(good, query=("a<1",))
    assert "no item is as asked for; check --datetime" in problem(good, datetime="2023")
    assert "--datetime yesterday: " in problem(good, datetime="yesterday")
    assert "--bbox 1,2: want west,south,east,north" in problem(good, bbox="1,2")
    assert "--asset is for STAC, which" in problem(str(folder / "scenes"), asset="visual")
    for name, told in {
        "feature": {"type": "Feature", "properties": {}},
        "features": {"type": "FeatureCollection", "features": [{"type": "Feature"}]},
        "no list": {"type": "FeatureCollection"},
        "catalog": {"type": "Catalog", "id": "x"},
    }.items():
        line = problem(write(folder / "bad" / f"{name}.json", told))
        assert f"{name}.json" in line
        assert "is no STAC" in line
    links = [{"rel": "item", "href": "./gone.json"}]
    lost = {"type": "Catalog", "id": "x", "description": "", "stac_version": "1.0.0", "links": links}
    assert "does not resolve to a STAC object" in problem(write(folder / "bad" / "lost.json", lost))
    pq.write_table(pa.table({"id": ["a"]}), folder / "other.parquet")
    assert "no column assets, so it is no stac-geoparquet" in problem(str(folder / "other.parquet"))
    (folder / "cut.parquet").write_bytes(b"PAR1")
    assert "is no Parquet file" in problem(str(folder / "cut.parquet"))
    assert "gs cannot be read; http(s)://, s3:// and files can" in problem(
        write(folder / "far.json", item("a", 1, "gs://bucket/a.tif"))
    )


def test_a_signature_in_an_href_is_refused_or_left_out(api: Web, folder: Path, caplog: pytest.LogCaptureFixture):
    told = item("a", 1, f"{api.url}/files/a.tif?sig={SECRET}&v=2&se=2024")
    source = write(folder / "signed.json", told)
    with pytest.raises(
        ConfigError, match=r"holds a credential \(sig, se\), which would be kept; give --sign-url"
    ) as line:
        rows_of(source)
    assert SECRET not in str(line.value)
    api.signed = "another"
    access = Access(1, f"{api.url}/sign?href={{href}}")
    told["assets"]["data"]["href"] = f"{api.url}/files/a.tif?sig={SECRET}"
    rows = rows_of(write(folder / "signed.json", told), Asked(signed=True), access)
    assert caplog.messages == ["1 URLs held a signature (sig), which the plan does not keep"]
    assert {row["source"] for row in rows} == {f"{api.url}/files/a.tif"}
    assert SECRET not in repr(rows)
    assert "another" not in repr(rows)


def test_bands_in_assets_of_their_own_are_planned_as_one_scene(folder: Path):
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin

    profile = {"driver": "GTiff", "width": 4, "height": 4, "count": 1, "dtype": "uint8", "crs": "EPSG:32635"}
    assets = {}
    for value, name in enumerate(("B04", "B03", "B02"), start=1):
        with rasterio.open(folder / f"{name}.tif", "w", transform=from_origin(5e5, 6e6, 10, 10), **profile) as raster:
            raster.write(np.full((1, 4, 4), value, np.uint8))
        assets[name] = {"href": f"{name}.tif", "type": COG, "roles": ["data"]}
    rows = rows_of(write(folder / "bands.json", item("a", 1, "scenes/a.tif", **assets)), Asked("B04,B03,B02"))
    assert rows[0]["source"] == BETWEEN.join(str(folder / f"{name}.tif") for name in assets)
    assert rows[0]["colours"]["bands"] == (1, 2, 3)
    assert len(rows[0]["source_version"].split()) == 3


def test_remote_scenes_are_planned_in_order_and_one_that_is_gone_is_a_failed_row(api: Web):
    api.items = [item(f"{n:02d}", 1, f"{api.url}/files/{'abc'[n % 3]}.tif") for n in range(24)]
    api.items[7]["assets"]["data"]["href"] = f"{api.url}/files/gone.tif"
    api.fault("503", times=40, every=2)
    rows = rows_of(f"{api.url}/stac", access=Access(20))
    names = [row["tile_id"].split("/")[1] for row in rows]
    assert names == sorted(names)
    assert [row["failure"] for row in rows if row["failure"]] == [f"failed:not found (404): {api.url}/files/gone.tif"]


def test_stac_that_nothing_was_asked_of_leaves_other_sources_alone(folder: Path):
    assert stac.scenes(str(folder / "scenes"), Asked()) is None
    assert stac.scenes(write(folder / "dataset_rsicd.json", {"images": []}), Asked()) is None

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import shapely

from urbancross.errors import ConfigError
from urbancross.maps import vector
from urbancross.maps.features import SCHEMA, boxes, decode

PARK = shapely.box(24.93, 60.16, 24.95, 60.17)


def read(path: Path) -> list[tuple[list[str], shapely.Geometry]]:
    found = decode(pa.concat_tables([SCHEMA.empty_table(), *(batch.table() for batch in vector.read(path))]))
    return [(found.tags_of(i), found.shapes[i]) for i in range(len(found))]


def parquet(path: Path, shapes: list[Any], columns: dict[str, Any], crs: Any = "absent", **geo: Any) -> Path:
    table = pa.table({**columns, "geom": pa.array(list(shapely.to_wkb(np.array(shapes, dtype=object))), pa.binary())})
    column = {"encoding": "WKB", "geometry_types": [], **({} if crs == "absent" else {"crs": crs}), **geo}
    told = {"version": "1.1.0", "primary_column": "geom", "columns": {"geom": column}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(told)}), path)
    return path


def collection(path: Path, *features: dict[str, Any], **more: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", **more, "features": features}))
    return path


def feature(shape: shapely.Geometry, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "properties": properties, "geometry": json.loads(shapely.to_geojson(shape))}


def moved(shape: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A shape in degrees as files in another system hold it: x before y, whatever the system's own order."""
    there = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    return shapely.transform(shape, lambda xy: np.column_stack(there.transform(*xy.T)))


@pytest.mark.parametrize("crs", ["EPSG:3067", "EPSG:3035", "EPSG:4326", "EPSG:4258", "EPSG:31468", "EPSG:3857"])
def test_geoparquet_in_any_system_lands_where_it_lies(tmp_path, crs):
    """3035, 4326, 4258 and 31468 name north before east in their definitions; GeoParquet holds x before y."""
    told = pyproj.CRS(crs).to_json_dict()
    path = parquet(tmp_path / "map.parquet", [moved(PARK, crs)], {"leisure": ["park"]}, crs=told)
    ((tags, shape),) = read(path)
    assert tags == ["leisure=park"]
    np.testing.assert_allclose(shape.bounds, PARK.bounds, atol=2e-5)  # of a datum 3 m away, at worst


@pytest.mark.parametrize("crs", ["EPSG:3067", "EPSG:3035", "EPSG:4326"])
def test_geojson_in_the_system_that_gdal_names_lands_where_it_lies(tmp_path, crs):
    name = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{crs[5:]}"}}
    path = collection(tmp_path / "map.geojson", feature(moved(PARK, crs), leisure="park"), crs=name)
    ((_, shape),) = read(path)
    np.testing.assert_allclose(shape.bounds, PARK.bounds, atol=2e-5)


def test_tags_come_from_columns_from_a_map_and_from_json(tmp_path):
    as_map = pa.array(
        [[("landuse", "forest"), ("name", "Oak Hill")], [("shop", "bakery")]], pa.map_(pa.string(), pa.string())
    )
    for name, columns in {
        "map": {"tags": as_map},
        "json": {"tags": ['{"landuse": "forest", "name": "Oak Hill"}', "{}"]},
        "columns": {"landuse": ["forest", None], "name": ["Oak Hill", "x"]},
    }.items():
        path = parquet(tmp_path / f"{name}.parquet", [PARK, PARK], columns)
        assert [tags for tags, _ in read(path)] == [["landuse=forest"]], name


def test_overture_says_what_openstreetmap_would(tmp_path):
    line, point = shapely.LineString([(24.9, 60.1), (25.0, 60.2)]), shapely.Point(24.9, 60.1)
    base, building = {"theme": "base"}, {"theme": "buildings", "type": "building"}
    segment, place = {"theme": "transportation", "type": "segment"}, {"theme": "places", "type": "place"}
    bridge = [{"values": ["is_bridge"], "between": None}]
    told = [
        (PARK, {**building, "class": "school"}, ["building=school"]),
        (PARK, {**building, "class": None}, ["building=yes"]),
        (PARK, {**building, "is_underground": True}, None),
        (line, {**segment, "subtype": "road", "class": "primary"}, ["highway=primary"]),
        (
            line,
            {**segment, "subtype": "rail", "class": "standard_gauge", "rail_flags": bridge},
            ["railway=rail", "bridge=yes"],
        ),
        (
            line,
            {
                **segment, "subtype": "road", "class": "motorway",
                "road_flags": [{"values": ["is_tunnel"], "between": None}],
            },
            None,
        ),
        (point, {"theme": "transportation", "type": "connector"}, None),
        (PARK, {**base, "type": "land_use", "subtype": "residential", "class": "residential"}, ["landuse=residential"]),
        (PARK, {**base, "type": "land_use", "subtype": "park", "class": "park"}, ["leisure=park"]),
        (PARK, {**base, "type": "land_use", "subtype": "golf", "class": "bunker"}, ["golf=bunker"]),
        (PARK, {**base, "type": "land_use", "subtype": "protected", "class": "nature_reserve"}, None),
        (PARK, {**base, "type": "land", "subtype": "forest", "class": "wood"}, ["natural=wood"]),
        (PARK, {**base, "type": "land", "subtype": "forest", "class": "forest"}, ["landuse=forest"]),
        (PARK, {**base, "type": "water", "subtype": "lake", "class": "lake"}, ["water=lake", "natural=water"]),
        (line, {**base, "type": "water", "subtype": "river", "class": "river"}, ["waterway=river"]),
        (PARK, {**base, "type": "infrastructure", "subtype": "pier", "class": "pier"}, ["man_made=pier"]),
        (line, {**base, "type": "infrastructure", "subtype": "airport", "class": "runway"}, ["aeroway=runway"]),
        (line, {**base, "type": "infrastructure", "subtype": "power", "class": "power_line"}, ["power=line"]),
        (point, {**place, "categories": {"primary": "fire_department"}}, ["amenity=fire_station"]),
        (point, {**place, "categories": {"primary": "bakery"}}, None),
        (PARK, {**base, "type": "land", "class": "x", "source_tags": {"natural": "scrub"}}, ["natural=scrub"]),
    ]  # fmt: skip
    for shape, properties, wanted in told:
        path = collection(tmp_path / "overture.geojson", feature(shape, **properties))
        assert [tags for tags, _ in read(path)] == ([wanted] if wanted else []), properties


def test_overtures_files_are_known_by_their_folder_or_columns(tmp_path):
    folder = tmp_path / "theme=base" / "type=land_use"
    folder.mkdir(parents=True)
    path = parquet(folder / "part.parquet", [PARK], {"id": ["a"], "subtype": ["park"], "class": ["park"]})
    assert [tags for tags, _ in read(path)] == [["leisure=park"]]
    path = parquet(tmp_path / "x.parquet", [PARK], {"id": ["b"], "has_parts": [False], "class": ["hangar"]})
    assert [tags for tags, _ in read(path)] == [["building=hangar"]]
    assert next(iter(vector.read(path))).table()["id"].to_pylist() == ["b"]


def test_geojson_is_read_piece_by_piece_whatever_the_pieces(tmp_path, monkeypatch):
    shapes = [shapely.box(x, 0, x + 0.5, 0.5) for x in range(40)]
    features = [feature(shape, landuse="forest", note="a ] in , the { text") for shape in shapes]
    path = collection(tmp_path / "map.geojson", *features)
    lines = tmp_path / "map.geojsonl"
    lines.write_text("\n".join(json.dumps(each) for each in features) + "\n")
    for chunk in (7, 64, 1 << 20):
        monkeypatch.setattr(vector, "CHUNK", chunk)
        monkeypatch.setattr(vector, "BATCH", 16)
        for file in (path, lines):
            assert [len(batch.rows) for batch in vector.read(file)] == [16, 16, 8]
            assert [shape.bounds for _, shape in read(file)] == [shape.bounds for shape in shapes]


def test_a_shape_across_the_antimeridian_is_cut_and_its_box_says_so(tmp_path):
    reef = shapely.Polygon([(179.5, -17), (-179.5, -17), (-179.5, -16), (179.5, -16)])  # as maps tell it
    path = parquet(tmp_path / "map.parquet", [reef], {"natural": ["reef"]})
    table = next(iter(vector.read(path))).table()
    assert boxes(table).tolist() == [[-180, -17, 180, -16]]
    assert shapely.area(decode(table).shapes[0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("absent.parquet", None, "no features at .*; pass GeoParquet"),
        ("map.shp", b"\0\0\x27\x0a", "of no kind that --features reads"),
        ("cut.parquet", b"PAR1 and no more", "cannot be read as GeoParquet"),
        ("cut.geojson", b'{"type": "FeatureCollection", "features": [{"type": "Fea', "cut short"),
        ("text.geojson", b"hello", "cannot be read as GeoJSON"),
        ("empty.geojson", b'{"type": "FeatureCollection", "features": []}', "holds no feature"),
        ("bare.geojson", b'{"type": "FeatureCollection", "features": [{"properties": {}}]}', "has no geometry"),
    ],
)
def test_a_file_that_is_missing_or_broken_is_one_line_that_names_it(tmp_path, name, content, wanted):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=wanted) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_geoparquet_that_does_not_say_where_it_lies_is_refused(tmp_path):
    path = parquet(tmp_path / "map.parquet", [PARK], {"leisure": ["park"]}, crs=None)
    with pytest.raises(ConfigError, match="does not say its coordinate reference system; set it"):
        read(path)
    pq.write_table(pa.table({"leisure": ["park"]}), path)
    with pytest.raises(ConfigError, match="without GeoParquet's geometry column"):
        read(path)
    parquet(path, [PARK], {"leisure": ["park"]}, crs="EPSG:999999")
    with pytest.raises(ConfigError, match="PROJ does not know"):
        read(path)

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
import shapely

from urbancross.errors import ConfigError
from urbancross.maps import osm as osm_reader
from urbancross.maps.features import SCHEMA, decode

TREE = '<node id="9" version="1" lon="0.05" lat="0.05"><tag k="natural" v="tree"/></node>'
# A square of 0.1 degrees (nodes 1-4) with a smaller one inside (5-8), and a node in the middle.
NODES = {
    1: (0.0, 0.0),
    2: (0.1, 0.0),
    3: (0.1, 0.1),
    4: (0.0, 0.1),
    5: (0.04, 0.04),
    6: (0.06, 0.04),
    7: (0.06, 0.06),
    8: (0.04, 0.06),
}


def osm(ways: str = "", relations: str = "", nodes: str = "", without: tuple[int, ...] = ()) -> str:
    points = "".join(
        f'<node id="{i}" version="1" lon="{x}" lat="{y}"/>' for i, (x, y) in NODES.items() if i not in without
    )
    return f'<osm version="0.6">{points}{nodes}{ways}{relations}</osm>'


def way(number: int, refs: list[int], **tags: str) -> str:
    inner = "".join(f'<nd ref="{r}"/>' for r in refs) + "".join(f'<tag k="{k}" v="{v}"/>' for k, v in tags.items())
    return f'<way id="{number}" version="1">{inner}</way>'


def features(path: Path) -> list[tuple[list[str], shapely.Geometry]]:
    tables = [batch.table() for batch in osm_reader.read(path)]
    found = decode(pa.concat_tables(tables or [SCHEMA.empty_table()]))
    return [(found.tags_of(i), found.shapes[i]) for i in range(len(found))]


def read(tmp_path: Path, text: str) -> list[tuple[list[str], shapely.Geometry]]:
    path = tmp_path / "map.osm"
    path.write_text(text)
    return features(path)


OUTER, INNER = [1, 2, 3, 4, 1], [5, 6, 7, 8, 5]


def test_a_closed_way_is_an_area_or_a_loop_by_its_tags_and_never_both(tmp_path):
    found = read(tmp_path, osm(way(1, OUTER, landuse="farmland") + way(2, INNER, highway="residential")))
    assert [(tags, shape.geom_type) for tags, shape in found] == [
        (["landuse=farmland"], "Polygon"),
        (["highway=residential"], "LineString"),
    ]
    assert found[0][1].equals(shapely.box(0, 0, 0.1, 0.1))


def test_a_multipolygon_relation_is_assembled_with_its_hole(tmp_path):
    relation = (
        '<relation id="1" version="1"><member type="way" ref="1" role="outer"/>'
        '<member type="way" ref="2" role="inner"/><tag k="type" v="multipolygon"/>'
        '<tag k="natural" v="water"/></relation>'
    )
    (lake,) = read(tmp_path, osm(way(1, OUTER) + way(2, INNER), relation))
    assert lake[0] == ["natural=water"]
    assert lake[1].area == pytest.approx(0.1**2 - 0.02**2)


def test_features_that_cannot_be_seen_are_not_read(tmp_path):
    node = '<node id="9" version="1" lon="0.05" lat="0.05"><tag k="{}" v="{}"/></node>'
    assert read(tmp_path, osm(nodes=node.format("natural", "tree")))[0][1].equals(shapely.Point(0.05, 0.05))
    for key, value in [("name", "Oak"), ("shop", "bakery"), ("highway", "crossing"), ("amenity", "bench")]:
        assert read(tmp_path, osm(nodes=node.format(key, value))) == []
    assert read(tmp_path, osm(way(1, OUTER))) == []


def test_one_tag_is_read_as_one_among_many_and_never_for_another_of_the_same_value(tmp_path):
    keys = ["highway", "railway", "building", "building", "railway", "highway"]
    more = [{}, {}, {}, {"name": "One"}, {"name": "Two"}, {"name": "Three"}]
    ways = [way(i, OUTER, **{key: "platform"}, **tags) for i, (key, tags) in enumerate(zip(keys, more, strict=True), 1)]
    assert [tags for tags, _ in read(tmp_path, osm("".join(ways)))] == [[f"{key}=platform"] for key in keys]


def test_a_way_that_leaves_the_extract_keeps_the_part_inside(tmp_path):
    found = read(tmp_path, osm(way(1, [1, 2, 3], highway="track") + way(2, [3, 4], highway="path"), without=(3,)))
    assert [shape.wkt for _, shape in found] == ["LINESTRING (0 0, 0.1 0)"]


def test_compressed_files_read_alike(tmp_path):
    text = osm(way(1, OUTER, building="house"))
    path = tmp_path / "map.osm.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert features(path) == read(tmp_path, text)


@pytest.mark.parametrize("content", [None, b"", b"<html></html>", osm(way(1, OUTER, building="yes")).encode()[:-20]])
def test_a_file_that_is_missing_or_broken_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "map.osm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        list(osm_reader.read(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_way_across_the_antimeridian_is_cut_there(tmp_path):
    ends = '<node id="11" version="1" lon="179.99" lat="-16.8"/><node id="12" version="1" lon="-179.98" lat="-16.8"/>'
    ((_, road),) = read(tmp_path, osm(way(1, [11, 12], highway="track"), nodes=ends))
    assert sorted(part.bounds for part in road.geoms) == [(-180, -16.8, -179.98, -16.8), (179.99, -16.8, 180, -16.8)]


def test_a_polygon_that_crosses_itself_is_repaired(tmp_path):
    ((_, wood),) = read(tmp_path, osm(way(1, [1, 3, 2, 4, 1], natural="wood")))
    assert wood.is_valid
    assert wood.area == pytest.approx(0.1**2 / 2)


def test_what_an_element_is_called_leads_back_to_the_map(tmp_path):
    path = tmp_path / "map.osm"
    path.write_text(osm(way(7, OUTER, landuse="farmland"), nodes=TREE))
    assert [name for batch in osm_reader.read(path) for name in batch.ids] == ["node/9", "way/7"]


def test_nodes_on_disk_make_no_difference(tmp_path, monkeypatch):
    text = osm(way(1, OUTER, landuse="farmland") + way(2, INNER, highway="residential"))
    held = read(tmp_path, text)
    monkeypatch.setattr(osm_reader, "NODES_ON_DISK_BYTES", 0)
    assert read(tmp_path, text) == held

import gzip
from pathlib import Path

import pytest
import shapely

from urbancross.errors import ConfigError, TileError
from urbancross.geotags import Feature, FeatureIndex, is_area, read_osm, visible

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


def read(tmp_path: Path, text: str) -> list[Feature]:
    path = tmp_path / "map.osm"
    path.write_text(text)
    return read_osm(path)


def square(west: float, south: float, side: float, **tags: str) -> Feature:
    return Feature(tags, shapely.box(west, south, west + side, south + side))


OUTER, INNER = [1, 2, 3, 4, 1], [5, 6, 7, 8, 5]


def test_a_closed_way_is_an_area_or_a_loop_by_its_tags_and_never_both(tmp_path):
    found = read(tmp_path, osm(way(1, OUTER, landuse="farmland") + way(2, INNER, highway="residential")))
    assert [(f.tags, f.geometry.geom_type) for f in found] == [
        ({"landuse": "farmland"}, "Polygon"),
        ({"highway": "residential"}, "LineString"),
    ]
    assert found[0].geometry.equals(shapely.box(0, 0, 0.1, 0.1))


def test_a_multipolygon_relation_is_assembled_with_its_hole(tmp_path):
    relation = (
        '<relation id="1" version="1"><member type="way" ref="1" role="outer"/>'
        '<member type="way" ref="2" role="inner"/><tag k="type" v="multipolygon"/>'
        '<tag k="natural" v="water"/></relation>'
    )
    (lake,) = read(tmp_path, osm(way(1, OUTER) + way(2, INNER), relation))
    assert lake.tags["natural"] == "water"
    assert lake.geometry.area == pytest.approx(0.1**2 - 0.02**2)


def test_features_that_cannot_be_seen_are_not_read(tmp_path):
    node = '<node id="9" version="1" lon="0.05" lat="0.05"><tag k="{}" v="{}"/></node>'
    assert read(tmp_path, osm(nodes=node.format("natural", "tree")))[0].geometry.equals(shapely.Point(0.05, 0.05))
    for key, value in [("name", "Oak"), ("shop", "bakery"), ("highway", "crossing"), ("amenity", "bench")]:
        assert read(tmp_path, osm(nodes=node.format(key, value))) == []
    assert read(tmp_path, osm(way(1, OUTER))) == []


def test_a_way_that_leaves_the_extract_keeps_the_part_inside(tmp_path):
    found = read(tmp_path, osm(way(1, [1, 2, 3], highway="track") + way(2, [3, 4], highway="path"), without=(3,)))
    assert [f.geometry.wkt for f in found] == ["LINESTRING (0 0, 0.1 0)"]


def test_compressed_files_read_alike(tmp_path):
    text = osm(way(1, OUTER, building="house"))
    path = tmp_path / "map.osm.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert read_osm(path) == read(tmp_path, text)


@pytest.mark.parametrize("content", [None, b"", b"<html></html>", osm(way(1, OUTER, building="yes")).encode()[:-20]])
def test_a_file_that_is_missing_or_broken_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "map.osm"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_osm(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_what_is_seen_from_above_remains_of_the_tags():
    assert visible({"name": "Main", "maxspeed": "30", "highway": "residential", "bridge": "no"}) == {
        "highway": "residential"
    }
    assert visible({"building": "yes", "addr:street": "Main", "amenity": "cafe"}) == {"building": "yes"}
    assert visible({"sport": "tennis;chess"}) == {"sport": "tennis"}
    assert visible({"highway": "motorway", "tunnel": "yes"}) == {}
    assert visible({"highway": "motorway", "tunnel": "no"}) == {"highway": "motorway"}


def test_the_area_tag_decides_and_otherwise_one_area_tag_is_enough():
    assert is_area({"highway": "pedestrian", "area": "yes"})
    assert not is_area({"highway": "pedestrian"})
    assert not is_area({"building": "yes", "area": "no"})
    assert is_area({"barrier": "hedge", "landuse": "meadow"})
    assert not is_area({"natural": "coastline"})
    assert is_area({"railway": "station"})


def test_the_centre_is_what_lies_under_it_smallest_first_and_the_rest_goes_by_area():
    index = FeatureIndex(
        [
            square(0.0, 0.0, 1.0, landuse="residential"),  # under the centre, covers everything
            square(0.45, 0.45, 0.1, amenity="school"),  # under the centre, small
            square(0.0, 0.0, 0.1, leisure="park"),
            square(0.6, 0.6, 0.3, natural="wood"),
            square(5.0, 5.0, 1.0, natural="water"),  # elsewhere
        ]
    )
    assert index.tags_of((0, 0, 1, 1)) == (["amenity=school", "landuse=residential"], ["natural=wood", "leisure=park"])


def test_without_anything_under_the_centre_the_nearest_feature_is_central():
    index = FeatureIndex([square(0.0, 0.0, 0.3, natural="wood"), square(0.6, 0.6, 0.1, leisure="park")])
    assert index.tags_of((0, 0, 1, 1)) == (["leisure=park"], ["natural=wood"])


def test_nearness_and_size_are_in_metres_not_degrees():
    # At 60 degrees north a degree of longitude is half as long: 0.3 east is nearer than 0.2 north.
    index = FeatureIndex(
        [
            Feature({"leisure": "park"}, shapely.Point(0.3, 60.0)),
            Feature({"natural": "tree"}, shapely.Point(0.0, 60.2)),
        ]
    )
    assert index.tags_of((-0.5, 59.5, 0.5, 60.5))[0] == ["leisure=park"]


def test_many_small_features_of_one_tag_outweigh_a_larger_one():
    houses = [square(0.1 * i, 0.0, 0.05, building="house") for i in range(8)]  # 0.02 in all
    index = FeatureIndex([square(0.4, 0.4, 0.2, amenity="school"), square(0.0, 0.5, 0.12, leisure="park"), *houses])
    assert index.tags_of((0, 0, 1, 1))[1] == ["building=house", "leisure=park"]


def test_only_the_part_inside_the_tile_counts_and_an_edge_is_not_inside():
    index = FeatureIndex(
        [
            square(0.4, 0.4, 0.2, amenity="school"),
            square(0.95, 0.0, 5.0, natural="water"),  # 0.05 inside, however large
            square(0.0, 0.7, 0.3, natural="wood"),  # 0.09
            square(0.0, 1.0, 1.0, leisure="park"),  # touches the northern edge
        ]
    )
    assert index.tags_of((0, 0, 1, 1))[1] == ["natural=wood", "natural=water"]


def test_lines_weigh_by_their_width_and_points_come_last():
    index = FeatureIndex(
        [
            square(0.0049, 0.0049, 0.0002, amenity="school"),
            Feature({"highway": "motorway"}, shapely.LineString([(0, 0.002), (0.01, 0.002)])),
            Feature({"highway": "path"}, shapely.LineString([(0, 0.001), (0.01, 0.001)])),
            Feature({"aeroway": "helipad"}, shapely.Point(0.008, 0.008)),
        ]
    )
    assert index.tags_of((0, 0, 0.01, 0.01))[1] == ["highway=motorway", "highway=path", "aeroway=helipad"]


def test_a_road_through_the_centre_is_under_it_within_half_its_width():
    near, far = 5 / 111_320, 20 / 111_320  # metres; a motorway is 25 m wide
    for off, centre in [(near, ["natural=wood", "highway=motorway"]), (far, ["natural=wood"])]:
        road = Feature({"highway": "motorway"}, shapely.LineString([(0, 0.5 + off), (1, 0.5 + off)]))
        wood = square(0.499, 0.499, 0.002, natural="wood")
        assert FeatureIndex([road, wood]).tags_of((0, 0, 1, 1))[0] == centre


def test_no_tag_is_told_twice_and_the_cap_holds_for_both_lists_together():
    index = FeatureIndex(
        [square(0.4, 0.4, 0.2, leisure="pitch", sport="tennis;soccer"), square(0, 0, 0.1, leisure="pitch")]
        + [square(0.1 * i, 0.8, 0.01 * (9 - i), landuse=use) for i, use in enumerate(["grass", "forest", "meadow"])]
    )
    assert index.tags_of((0, 0, 1, 1), max_tags=5) == (
        ["leisure=pitch", "sport=tennis", "sport=soccer"],
        ["landuse=grass", "landuse=forest"],
    )
    assert index.tags_of((0, 0, 1, 1), max_tags=2) == (["leisure=pitch", "sport=tennis"], [])


def test_a_place_without_features_has_no_tags(tmp_path):
    assert FeatureIndex([]).tags_of((0, 0, 1, 1)) == ([], [])
    assert FeatureIndex(read(tmp_path, osm())).tags_of((0, 0, 1, 1)) == ([], [])
    assert FeatureIndex([square(5, 5, 1, natural="wood")]).tags_of((0, 0, 1, 1)) == ([], [])


def test_a_polygon_that_crosses_itself_is_repaired():
    bow_tie = shapely.Polygon([(0.2, 0.2), (0.8, 0.8), (0.8, 0.2), (0.2, 0.8)])
    assert FeatureIndex([Feature({"natural": "wood"}, bow_tie)]).tags_of((0, 0, 1, 1)) == (["natural=wood"], [])


def test_bounds_that_enclose_nothing_are_refused():
    with pytest.raises(TileError, match="west < east"):
        FeatureIndex([]).tags_of((1, 0, 0, 1))

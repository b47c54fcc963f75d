import math

import numpy as np
import pytest
import shapely

from urbancross import globe
from urbancross.errors import TileError
from urbancross.geotags import Tiles, tag_tiles
from urbancross.maps.features import decode, encode
from urbancross.maps.visible import tag_list

Thing = tuple[dict[str, str], shapely.Geometry]


def square(west: float, south: float, side: float, **tags: str) -> tuple[dict[str, str], shapely.Geometry]:
    return tags, shapely.box(west, south, west + side, south + side)


def feature(tags: dict[str, str], shape: shapely.Geometry) -> Thing:
    return tags, shape


def told(things: list[Thing], outlines: list[shapely.Geometry], **settings) -> list[dict]:
    ids = [str(number) for number in range(len(things))]
    table = encode(
        ids, [tuple(tag_list(tags)) for tags, _ in things], np.array([shape for _, shape in things], dtype=object)
    )
    return tag_tiles(Tiles.at(np.array(outlines, dtype=object)), decode(table), **settings)


class Index:
    """Asks for one tile at a time, by its bounds."""

    def __init__(self, things: list[Thing]) -> None:
        self.things = things

    def tags_of(self, bounds: tuple[float, ...], max_tags: int = 12) -> tuple[list[str], list[str]]:
        (found,) = told(self.things, [globe.box(bounds)], max_tags=max_tags, nearby=0)
        assert found["nearby_tags"] == []
        return found["center_tags"], found["surrounding_tags"]


def test_the_centre_is_what_lies_under_it_smallest_first_and_the_rest_goes_by_area():
    index = Index(
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
    index = Index([square(0.0, 0.0, 0.3, natural="wood"), square(0.6, 0.6, 0.1, leisure="park")])
    assert index.tags_of((0, 0, 1, 1)) == (["leisure=park"], ["natural=wood"])


def test_nearness_and_size_are_in_metres_not_degrees():
    # At 60 degrees north a degree of longitude is half as long: 0.3 east is nearer than 0.2 north.
    index = Index(
        [
            feature({"leisure": "park"}, shapely.Point(0.3, 60.0)),
            feature({"natural": "tree"}, shapely.Point(0.0, 60.2)),
        ]
    )
    assert index.tags_of((-0.5, 59.5, 0.5, 60.5))[0] == ["leisure=park"]


def test_many_small_features_of_one_tag_outweigh_a_larger_one():
    houses = [square(0.1 * i, 0.0, 0.05, building="house") for i in range(8)]  # 0.02 in all
    index = Index([square(0.4, 0.4, 0.2, amenity="school"), square(0.0, 0.5, 0.12, leisure="park"), *houses])
    assert index.tags_of((0, 0, 1, 1))[1] == ["building=house", "leisure=park"]


def test_only_the_part_inside_the_tile_counts_and_an_edge_is_not_inside():
    index = Index(
        [
            square(0.4, 0.4, 0.2, amenity="school"),
            square(0.95, 0.0, 5.0, natural="water"),  # 0.05 inside, however large
            square(0.0, 0.7, 0.3, natural="wood"),  # 0.09
            square(0.0, 1.0, 1.0, leisure="park"),  # touches the northern edge
        ]
    )
    assert index.tags_of((0, 0, 1, 1))[1] == ["natural=wood", "natural=water"]


def test_lines_weigh_by_their_width_and_points_come_last():
    index = Index(
        [
            square(0.0049, 0.0049, 0.0002, amenity="school"),
            feature({"highway": "motorway"}, shapely.LineString([(0, 0.002), (0.01, 0.002)])),
            feature({"highway": "path"}, shapely.LineString([(0, 0.001), (0.01, 0.001)])),
            feature({"aeroway": "helipad"}, shapely.Point(0.008, 0.008)),
        ]
    )
    assert index.tags_of((0, 0, 0.01, 0.01))[1] == ["highway=motorway", "highway=path", "aeroway=helipad"]


def test_a_road_through_the_centre_is_under_it_within_half_its_width():
    near, far = 5 / 111_320, 20 / 111_320  # metres; a motorway is 25 m wide
    for off, centre in [(near, ["natural=wood", "highway=motorway"]), (far, ["natural=wood"])]:
        road = feature({"highway": "motorway"}, shapely.LineString([(0, 0.5 + off), (1, 0.5 + off)]))
        wood = square(0.499, 0.499, 0.002, natural="wood")
        assert Index([road, wood]).tags_of((0, 0, 1, 1))[0] == centre


def test_no_tag_is_told_twice_and_the_cap_holds_for_both_lists_together():
    index = Index(
        [square(0.4, 0.4, 0.2, leisure="pitch", sport="tennis;soccer"), square(0, 0, 0.1, leisure="pitch")]
        + [square(0.1 * i, 0.8, 0.01 * (9 - i), landuse=use) for i, use in enumerate(["grass", "forest", "meadow"])]
    )
    assert index.tags_of((0, 0, 1, 1), max_tags=5) == (
        ["leisure=pitch", "sport=tennis", "sport=soccer"],
        ["landuse=grass", "landuse=forest"],
    )
    assert index.tags_of((0, 0, 1, 1), max_tags=2) == (["leisure=pitch", "sport=tennis"], [])


def test_a_place_without_features_has_no_tags():
    assert Index([]).tags_of((0, 0, 1, 1)) == ([], [])
    assert Index([square(5, 5, 1, natural="wood")]).tags_of((0, 0, 1, 1)) == ([], [])


BOX = shapely.box(0, 0, 1, 1)


def test_each_tag_says_how_many_features_of_the_tile_carry_it():
    houses = [square(0.1 * i, 0.0, 0.05, building="house") for i in range(8)]
    under = square(0.45, 0.45, 0.1, building="house", amenity="school")
    (found,) = told([*houses, under, square(0, 0.7, 0.2, leisure="park"), square(3, 3, 1, building="house")], [BOX])
    assert found["center_tags"] == ["amenity=school", "building=house"]
    assert found["center_counts"] == [1, 9]
    assert found["surrounding_tags"] == ["leisure=park"]
    assert found["surrounding_counts"] == [1]


def test_many_tiles_at_once_are_told_what_each_is_told_alone():
    rng = np.random.default_rng(0)
    kinds = ["wood", "water", "scrub", "heath", "sand"]
    things = [square(x, y, 0.4 * s, natural=kinds[i % 5]) for i, (x, y, s) in enumerate(rng.random((60, 3)) * 4)]
    boxes = [shapely.box(x, y, x + 1, y + 1) for x in range(4) for y in range(4)]
    assert told(things, boxes) == [told(things, [box])[0] for box in boxes]


def test_nearby_tags_lie_outside_and_fade_with_the_distance():
    things = [
        square(0.4, 0.4, 0.2, amenity="school"),
        square(1.5, 0, 0.5, natural="wood"),  # half a side away, a quarter of a tile: 0.25 / e^0.5 = 0.15
        square(2.5, 0, 0.6, leisure="park"),  # 1.5 sides away, 0.36 of a tile: 0.36 / e^1.5 = 0.08
        square(1.5, 0.6, 0.3, amenity="school"),  # told already
        square(3.5, 0, 1, natural="water"),  # farther than two sides
    ]
    (found,) = told(things, [BOX], nearby=2.0)
    assert found["surrounding_tags"] == []
    assert found["nearby_tags"] == ["natural=wood", "leisure=park"]
    assert told(things, [BOX], nearby=1.0)[0]["nearby_tags"] == ["natural=wood"]
    assert told(things, [BOX], nearby=0.0)[0]["nearby_tags"] == []


def test_a_tile_that_has_enough_tags_of_its_own_looks_no_farther():
    things = [square(0.4, 0.4, 0.2, amenity="school"), square(1.2, 0, 0.5, natural="wood")]
    assert told(things, [BOX], max_tags=1)[0]["nearby_tags"] == []
    assert told(things, [BOX], max_tags=2)[0]["nearby_tags"] == ["natural=wood"]


def at(place: tuple[float, float], east_m: float, north_m: float, side_m: float) -> shapely.Geometry:
    """A square on the ground, given in metres about a place; cut at the antimeridian."""
    along, no = np.linspace(-1, 1, 32, endpoint=False), np.ones(32)
    ring = np.column_stack([np.hstack([along, no, -along, -no]), np.hstack([-no, along, no, -along])])
    xy = ring * side_m / 2 + [east_m, north_m]
    return globe.outline(*globe.unplane(xy, np.array([place])).T)[0]


@pytest.mark.parametrize(
    "place",
    [
        (10.0, 50.0),
        (180.0, -16.8),
        (-180.0, -16.8),
        (-179.9995, 66.0),
        (0.0, 0.0),
        (37.0, 89.999),
        (12.0, -90.0),
        (55.0, 90.0),
    ],
    ids=str,
)
def test_the_same_ground_has_the_same_tags_wherever_it_lies(place):
    """Fiji and Chukotka, where the antimeridian runs through the tile, and both poles."""
    things = [
        feature({"landuse": "residential"}, at(place, 0, 0, 900)),
        feature({"amenity": "school"}, at(place, 10, -10, 60)),
        feature({"natural": "wood"}, at(place, -350, 0, 150)),  # west, whatever its longitude
        feature({"natural": "water"}, at(place, 350, 0, 140)),  # east
        feature({"leisure": "park"}, at(place, 0, 300, 120)),
        feature({"natural": "scrub"}, at(place, 1000, 0, 200)),  # 400 m outside
        feature({"natural": "heath"}, at(place, -6000, 0, 500)),  # out of reach
    ]
    (found,) = told(things, [at(place, 0, 0, 1000)])
    assert found["center_tags"] == ["amenity=school", "landuse=residential"]
    assert found["surrounding_tags"] == ["natural=wood", "natural=water", "leisure=park"]
    assert found["nearby_tags"] == ["natural=scrub"]
    assert [*found["center_counts"], *found["surrounding_counts"]] == [1] * 5


def test_an_outline_that_is_no_box_keeps_what_lies_beside_it_out():
    diamond = shapely.Polygon([(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)])
    things = [square(0.45, 0.45, 0.1, amenity="school"), square(0.0, 0.0, 0.2, natural="wood")]
    assert told(things, [diamond], nearby=0)[0]["surrounding_tags"] == []
    assert told(things, [BOX], nearby=0)[0]["surrounding_tags"] == ["natural=wood"]


def test_an_outline_that_encloses_nothing_is_refused():
    with pytest.raises(TileError, match="encloses nothing"):
        Tiles.at(np.array([shapely.box(0, 0, 0, 1)], dtype=object))


def test_areas_and_lengths_are_those_on_the_ellipsoid():
    """Of a degree at 60 north: 55.8 km of the parallel, 111.4 km of the meridian."""
    cell = np.array([shapely.box(24, 60, 25, 61)], dtype=object)
    assert globe.areas_m2(cell)[0] == pytest.approx(6_122_000_000, rel=1e-3)
    lines = np.array([shapely.LineString([(24, 60), (25, 60)]), shapely.LineString([(24, 60), (24, 61)])], dtype=object)
    assert globe.lengths_m(lines) == pytest.approx([55_800, 111_420], rel=1e-3)
    apart = shapely.union(lines[0], shapely.LineString([(24, 61), (24, 62)]))  # the way between them is no part of it
    assert globe.lengths_m(np.array([apart, lines[0]])) == pytest.approx([167_240, 55_800], rel=1e-3)
    cap = np.array([globe.outline(np.arange(0, 360, 5.0), np.full(72, 89.0))[0]], dtype=object)
    assert globe.areas_m2(cap)[0] == pytest.approx(math.pi * 111_694**2, rel=1e-3)

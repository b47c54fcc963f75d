"""Geo-tags of real places: all tiles agree with the slow join, and ten were checked by hand."""

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import shapely

from urbancross.geotags import Tiles, tag_tiles
from urbancross.maps import osm
from urbancross.maps.features import Features, decode
from urbancross.maps.order import in_order


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


places, slow_join = _load("places"), _load("slow_join")

GRIDS = {
    "helsinki": (24.935, 60.164, 24.953, 60.179),
    "berlin": (13.3477, 52.5130, 13.3528, 52.5157),
    "liechtenstein": (9.505, 47.14, 9.535, 47.16),
    "andorra": (1.48, 42.48, 1.56, 42.54),
    "bayreuth": (11.57, 49.98, 11.60, 50.0),
    "heidelberg": (8.67, 49.40, 8.70, 49.42),
}


@cache
def features_of(place: str) -> Features:
    (part,) = in_order(batch.table() for batch in osm.read(places.file(place)))
    return decode(part)


def told(place: str, tiles: list[tuple[int, int]]) -> list[dict]:
    return tag_tiles(Tiles.at(places.outlines(tiles)), features_of(place))


@pytest.mark.parametrize("place", GRIDS)
def test_every_tile_of_a_grid_is_told_what_the_slow_join_tells(place):
    features = features_of(place)
    tree, grid = shapely.STRtree(features.shapes), places.grid(*GRIDS[place])
    with_tags = 0
    for tile, found in zip(grid, told(place, grid), strict=True):
        some = sorted(tree.query(shapely.box(*places.bounds(tile))))
        tags = [features.tags_of(i) for i in some]
        center, surrounding, numbers = slow_join.tags_of(places.bounds(tile), tags, features.shapes[some])
        assert (found["center_tags"], found["surrounding_tags"]) == (center, surrounding), tile
        assert found["center_counts"] == [numbers[tag] for tag in center], tile
        assert found["surrounding_counts"] == [numbers[tag] for tag in surrounding], tile
        with_tags += bool(center)
    assert with_tags > 0.8 * len(grid)


# What the raw elements around each tile say, read off with plain arithmetic on their nodes: areas by counting points of
# a lattice in rings (even-odd), lines by their length in the tile, in metres; nothing of urbancross took part.
BY_HAND = [
    # way 438976060 (scree) holds the centre. Relation 3973611 (forest) covers 92,691 m², ways 298885304 and 438976038
    # (scrub) 53,117; way 531242912 is 614 m of track, 155814424 463 m of stream. The rest are boundaries.
    (
        "liechtenstein",
        (34504, 23008),
        {"natural=scree": 1},
        {"landuse=forest": 1, "natural=scrub": 2, "highway=track": 1, "waterway=stream": 1},
    ),
    # Relation 22868 (forest) holds the centre, 1690526 and 5384465 are forest too. 429 m of secondary road at 11 m, a
    # pond of 1,923 m², 228 m of track, 434 m of footway, and a corner of a hydro plant. Its pipelines lie underground.
    (
        "liechtenstein",
        (34502, 23015),
        {"landuse=forest": 3},
        {
            "highway=secondary": 1,
            "natural=water": 1,
            "highway=track": 1,
            "highway=footway": 1,
            "landuse=industrial": 1,
            "plant:source=hydro": 1,
            "power=plant": 1,
        },
    ),
    # Nothing under the centre; chair lift 52008767 passes at 12.5 m, all else at 69 and more. Ways 6620952 and 6620969
    # are pistes of 31,019 m² with two visible tags each; 476 m of track; a node for the terminal. Slopes are no tags.
    (
        "andorra",
        (33038, 24196),
        {"aerialway=chair_lift": 2},
        {"landuse=opm:piste": 2, "leisure=track": 2, "highway=track": 1, "man_made=Uphill Terminal": 1},
    ),
    # Forest 22932949 covers all of it. Three carriageways of 661 m in all at 14 m, 267 m of river at 25 m, and 2,482 m²
    # of its bank. The fourth way of the road is a tunnel.
    (
        "andorra",
        (33045, 24199),
        {"landuse=forest": 1},
        {"highway=primary": 3, "waterway=river": 1, "waterway=riverbank": 1},
    ),
    # Piste 193769483 (leisure=track) at 56.8 m is nearer than parking 6620947 at 62.1. Wood 39,248 m², 1,023 m of
    # secondary road are 11,253, parking 11,053, 307 m of cable car, 12 m of path.
    (
        "andorra",
        (33039, 24195),
        {"leisure=track": 1},
        {
            "natural=wood": 1,
            "highway=secondary": 1,
            "amenity=parking": 1,
            "aerialway=cable_car": 1,
            "highway=path": 1,
        },
    ),
    # Stream 172374594 passes at 15.4 m (only a boundary passes nearer). Residential 4,718 m², three houses 558, 16 m of
    # road. Poles and the minor line on them are too thin to see.
    (
        "bayreuth",
        (34874, 22221),
        {"waterway=stream": 1},
        {"landuse=residential": 1, "building=yes": 3, "highway=unclassified": 1},
    ),
    # Way 156165206 with both tags holds the centre; relation 16600 lacks three of its ways and cannot be assembled.
    # Farmland 52,863 m², 779 m of track, 158 m of tertiary road.
    (
        "bayreuth",
        (34870, 22230),
        {"natural=scrub": 1, "landuse=forest": 1},
        {"landuse=farmland": 2, "highway=track": 2, "highway=tertiary": 1},
    ),
    # The same way holds the centre; way 12610115 is forest as well. Farmland 31,674 m², meadow 6,438, quarry (relation
    # 1669599) 2,232, 337 m of path, 73 m of track: a path of 2 m covers more here than a track of 6 m.
    (
        "bayreuth",
        (34868, 22226),
        {"natural=scrub": 1, "landuse=forest": 2},
        {"landuse=farmland": 1, "landuse=meadow": 1, "landuse=quarry": 1, "highway=path": 1, "highway=track": 1},
    ),
    # Service way 15416690 at 13.3 m less half its width; parking and the avenue follow at 24.5. Its woods are
    # relations that lack ways, as is its meadow. 11 fit after the central one: steps of 32 m² and single trees are left
    # out, and so are the footways in a tunnel and the cable underground.
    (
        "berlin",
        (35197, 21494),
        {"highway=service": 1},
        {
            "highway=primary": 4,
            "highway=secondary": 3,
            "highway=cycleway": 6,  # 436 m, and an area of 308 m²: 2,924 m²
            "leisure=garden": 1,  # 2,731
            "natural=wood": 1,  # 2,616
            "landuse=grass": 3,  # 2,000
            "highway=footway": 11,  # 866 m
            "amenity=parking": 2,  # 1,385
            "natural=tree_row": 2,  # 71 m at 8 m
            "highway=path": 6,  # 275 m
            "building=yes": 2,  # 231
        },
    ),
    # Building 123586000 (1,105 m²) on residential land 37286918 (3,676 m²), both under the centre. Only the largest and
    # the rarest of the others are told here: 10,413 m² of commercial land, a school of 1,465, a corner of a park.
    (
        "helsinki",
        (37307, 18971),
        {"building=yes": 20, "landuse=residential": 7},
        {"landuse=commercial": 2, "...": 0, "building=school": 1, "leisure=park": 1},
    ),
]


@pytest.mark.parametrize(("place", "tile", "center", "surrounding"), BY_HAND, ids=lambda value: str(value)[:24])
def test_ten_tiles_have_the_tags_that_the_raw_elements_call_for(place, tile, center, surrounding):
    (found,) = told(place, [tile])
    assert dict(zip(found["center_tags"], found["center_counts"], strict=True)) == center
    assert found["center_tags"] == list(center)
    around = dict(zip(found["surrounding_tags"], found["surrounding_counts"], strict=True))
    if "..." in surrounding:
        first, *last = (tag for tag in surrounding if tag != "...")
        assert next(iter(around)) == first
        assert [tag for tag in around if tag in last] == last
        assert {tag: around[tag] for tag in (first, *last)} == {tag: surrounding[tag] for tag in (first, *last)}
    else:
        assert list(around) == list(surrounding)
        assert around == surrounding

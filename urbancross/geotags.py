"""Map features -> the geo-tags at the centre of a tile and around it.

A geo-tag is one `key=value` fact about the ground that can be seen from above. Which tags can be seen is a rule, not a
measurement: a key has to be in `KEYS`, and where a key mixes what is seen with what is not, `ONLY` lists the values
that are, or `UNSEEN` those that are not. Names, addresses, opening hours and everything else are left out.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import osmium
import shapely
from osmium.osm.types import OSMEntity
from shapely.geometry.base import BaseGeometry

from urbancross.errors import ConfigError, TileError

log = logging.getLogger(__name__)

Bounds = tuple[float, float, float, float]  # west, south, east, north; degrees

METRES_PER_DEGREE = 111_320.0  # of latitude; of longitude at the equator

# The keys that can be seen from above, the most telling first: a feature's tags are told in this order.
KEYS = (
    "aeroway",
    "harbour",
    "amenity",
    "leisure",
    "sport",
    "golf",
    "tourism",
    "historic",
    "man_made",
    "power",
    "plant:source",
    "generator:source",
    "aerialway",
    "railway",
    "bridge",
    "highway",
    "waterway",
    "water",
    "natural",
    "landuse",
    "building",
    "barrier",
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Of these keys only these values have a shape of their own from above; the others are furniture or go on indoors.
ONLY = {
    "amenity": _words(
        "arts_centre boat_storage bus_station cinema clinic college community_centre conference_centre courthouse"
        " exhibition_centre ferry_terminal fire_station fountain fuel grave_yard hospital kindergarten library"
        " marketplace monastery motorcycle_parking parking place_of_worship police prison school theatre townhall"
        " university"
    ),
    "sport": _words(
        "american_football archery athletics australian_football baseball basketball beachvolleyball bmx boules"
        " cricket cycling equestrian field_hockey football golf handball hockey horse_racing karting motocross motor"
        " multi netball padel rugby rugby_league rugby_union running shooting skateboard soccer softball swimming"
        " tennis volleyball"
    ),
    "golf": _words("bunker driving_range fairway green lateral_water_hazard rough tee water_hazard"),
    "tourism": _words("camp_site caravan_site hotel museum picnic_site resort theme_park zoo"),
    "historic": _words("archaeological_site castle city_gate citywalls fort ruins ship wreck"),
    "power": _words("generator line plant substation tower"),
    "barrier": _words("city_wall ditch hedge retaining_wall wall"),
    "aerialway": _words("cable_car chair_lift gondola mixed_lift station"),
}
# Of these keys everything is seen but these.
UNSEEN = {
    "aeroway": _words("gate holding_position navigationaid parking_position windsock"),
    "leisure": _words(
        "adult_gaming_centre amusement_arcade bird_hide bowling_alley dance escape_game firepit fishing fitness_centre"
        " fitness_station hackerspace nature_reserve outdoor_seating picnic_table sauna tanning_salon"
    ),
    "man_made": _words(
        "advertising antenna beehive cairn cross flagpole insect_hotel manhole mast monitoring_station nesting_site"
        " planter pump street_cabinet surveillance survey_point utility_pole water_tap water_well"
    ),
    "railway": _words(
        "buffer_stop crossing derail level_crossing milestone railway_crossing signal stop subway_entrance switch"
        " tram_crossing tram_level_crossing tram_stop vacancy_detection"
    ),
    "highway": _words(
        "bus_stop corridor crossing elevator emergency_access_point give_way ladder milestone motorway_junction noexit"
        " passing_place speed_camera speed_display stop street_lamp traffic_mirror traffic_signals trailhead"
        " turning_circle turning_loop"
    ),
    "waterway": _words("fuel milestone sluice_gate turning_point water_point"),
    "natural": _words("anthill birds_nest cave_entrance plant saddle spring valley"),
    "building": _words("entrance"),
}
NOT_THERE = _words("abandoned demolished dismantled fixme no none planned proposed razed removed unknown")
# A feature with one of these tags lies under the ground or a roof; an empty set stands for any value but `no`.
HIDDEN: dict[str, frozenset[str]] = {
    "tunnel": frozenset(),
    "indoor": frozenset(),
    "location": _words("indoor underground underwater"),
    "parking": _words("underground"),
}

# Keys whose closed ways are loops of a line, with the values that are areas all the same; and single such values.
LINE_KEYS = {
    "highway": _words("platform rest_area services"),
    "railway": _words("depot engine_shed platform roundhouse station traverser turntable yard"),
    "waterway": _words("boatyard dam dock fuel riverbank"),
    "power": _words("generator plant substation"),
    "aerialway": _words("station"),
    "barrier": frozenset(),
    "bridge": frozenset(),
}
LINE_VALUES = {
    "natural": _words("arete cliff coastline ridge tree_row"),
    "man_made": _words("cutline dyke embankment goods_conveyor pipeline"),
    "leisure": _words("slipway track"),
    "aeroway": _words("jet_bridge taxiway"),
    "historic": _words("citywalls"),
}

# What a line covers, in metres across: rough, and only used to order tags.
WIDTH_M = {
    "highway=motorway": 25.0,
    "highway=trunk": 20.0,
    "highway=primary": 14.0,
    "highway=secondary": 11.0,
    "highway=tertiary": 9.0,
    "highway=footway": 2.0,
    "highway=path": 2.0,
    "highway=steps": 2.0,
    "highway": 6.0,
    "railway": 5.0,
    "aeroway=runway": 45.0,
    "aeroway": 20.0,
    "waterway=river": 25.0,
    "waterway=canal": 15.0,
    "waterway": 3.0,
    "natural=tree_row": 8.0,
}
OTHER_WIDTH_M = 2.0


@dataclass(frozen=True)
class Feature:
    """One thing on the map: its tags, and its geometry in degrees, x = longitude and y = latitude."""

    tags: dict[str, str]
    geometry: BaseGeometry


def visible(tags: dict[str, str]) -> dict[str, str]:
    """Those of a feature's tags that can be seen from above, in the order of `KEYS`; empty for a hidden feature."""
    for key, values in HIDDEN.items():
        if key in tags and (tags[key] in values or (not values and tags[key] != "no")):
            return {}
    seen = {}
    for key in KEYS:
        if key in tags:
            kept = [value for value in map(str.strip, tags[key].split(";")) if value and _is_seen(key, value)]
            if kept:
                seen[key] = ";".join(kept)
    return seen


def _is_seen(key: str, value: str) -> bool:
    if value in NOT_THERE or value in UNSEEN.get(key, ()):
        return False
    return key not in ONLY or value in ONLY[key]


def tag_list(tags: dict[str, str]) -> list[str]:
    """The visible tags as `key=value`, one for each of several values (`sport=tennis;soccer` gives two)."""
    return [f"{key}={value}" for key, values in visible(tags).items() for value in values.split(";")]


def is_area(tags: dict[str, str]) -> bool:
    """Whether a closed way with these tags bounds an area, as OpenStreetMap's own editors read it.

    `area=yes|no` decides; else one visible tag that is not drawn as a line makes it an area (a meadow with a fence).
    """
    if tags.get("area") in ("yes", "no"):
        return tags["area"] == "yes"
    for tag in tag_list(tags):
        key, value = tag.split("=", 1)
        if value in LINE_KEYS[key] if key in LINE_KEYS else value not in LINE_VALUES.get(key, ()):
            return True
    return False


def read_osm(path: Path) -> list[Feature]:
    """Read an OpenStreetMap file: every feature with a tag that can be seen, in the order of the file.

    Tagged nodes become points, closed ways that are areas polygons, other ways lines, multipolygon relations
    multipolygons with their holes. A way is one feature, never both a line and an area. Node locations are held in
    memory, about 16 bytes each.

    Args:
        path: `.osm`, `.osm.gz`, `.osm.bz2` or `.osm.pbf`; nodes before ways before relations, as all extracts are.

    Raises:
        ConfigError: the file is missing, cut short, or no OpenStreetMap file.
    """
    if not path.is_file():
        raise ConfigError(f"no OpenStreetMap file at {path}; pass an .osm, .osm.gz or .osm.pbf file with --osm")
    can_be_seen = osmium.filter.KeyFilter(*KEYS)
    objects = osmium.FileProcessor(path).with_locations().with_areas(can_be_seen).with_filter(can_be_seen)
    tags_of_all: list[dict[str, str]] = []
    wkb_of_all: list[str] = []
    areas: list[bool] = []  # closed ways to read as polygons
    placeless = 0
    try:
        for item in objects:
            if isinstance(item, osmium.osm.Relation) or (isinstance(item, osmium.osm.Area) and item.from_way()):
                continue  # a relation comes again as an area; a closed way was taken as a way
            tags = {tag.k: tag.v for tag in item.tags}
            if not visible(tags):
                continue
            wkb = _wkb(item)
            if wkb is None:
                placeless += 1
                continue
            tags_of_all.append(tags)
            wkb_of_all.append(wkb)
            areas.append(isinstance(item, osmium.osm.Way) and item.is_closed() and is_area(tags))
    except RuntimeError as error:
        raise ConfigError(
            f"{path} cannot be read as OpenStreetMap data ({' '.join(str(error).split())});"
            " download it again, or put it in order with osmium sort"
        ) from error
    if placeless:
        log.warning("%s: %d features are left out: the file lacks their nodes", path, placeless)
    geometries = np.array(shapely.from_wkb(wkb_of_all), dtype=object)
    rings = np.flatnonzero(np.array(areas, dtype=bool) & shapely.is_closed(geometries))
    rings = rings[shapely.get_num_coordinates(geometries[rings]) > 3]
    corners, ring_of_corner = shapely.get_coordinates(geometries[rings], return_index=True)
    geometries[rings] = shapely.polygons(shapely.linearrings(corners, indices=ring_of_corner))
    return [Feature(tags, geometry) for tags, geometry in zip(tags_of_all, geometries, strict=True)]


_WKB = osmium.geom.WKBFactory()


def _wkb(item: OSMEntity) -> str | None:
    """The point, line or multipolygon of a node, way or area as WKB in hex; none where the file lacks its nodes."""
    try:
        if isinstance(item, osmium.osm.Node):
            return _WKB.create_point(item)
        if isinstance(item, osmium.osm.Area):
            return _WKB.create_multipolygon(item)
        if isinstance(item, osmium.osm.Way):
            return _WKB.create_linestring(item)
    except (RuntimeError, osmium.InvalidLocationError):  # nodes outside the extract, open rings, all in one place
        if isinstance(item, osmium.osm.Way):
            places = [(node.lon, node.lat) for node in item.nodes if node.location.valid()]
            return shapely.LineString(places).wkb_hex if len(set(places)) > 1 else None
    return None


class FeatureIndex:
    """Finds the tags of a tile among many features: built once, asked per tile, safe to share between threads."""

    def __init__(self, features: Iterable[Feature]) -> None:
        """Index the features that have a visible tag and a place; a self-crossing polygon is repaired."""
        kept = [(tag_list(f.tags), f.geometry) for f in features if not f.geometry.is_empty]
        kept = [(tags, geometry) for tags, geometry in kept if tags]
        self._tags = [tags for tags, _ in kept]
        self._widths_m = np.array([_width_m(tags) for tags in self._tags])
        self._geometries = shapely.make_valid(np.array([geometry for _, geometry in kept], dtype=object))
        self._tree = shapely.STRtree(self._geometries)

    def __len__(self) -> int:
        return len(self._tags)

    def tags_of(self, bounds: Sequence[float], max_tags: int = 12) -> tuple[list[str], list[str]]:
        """The tags under the tile's centre and those elsewhere in the tile, as `key=value`, none twice.

        Features under the centre come smallest first (the school before its district); a line is under it within half
        its nominal width. Where nothing is under it, the nearest feature in the tile is central. The surrounding tags
        are ordered by the area that all features of the tag cover within the tile, points last, then by name.

        Args:
            bounds: west, south, east, north of the tile, degrees.
            max_tags: how many tags to give in all; central ones first.

        Raises:
            TileError: the bounds enclose nothing.
        """
        west, south, east, north = bounds
        if not (west < east and south < north):
            raise TileError(f"bounds {list(bounds)} enclose nothing; want west < east and south < north, in degrees")
        tile = shapely.box(west, south, east, north)
        found = np.sort(self._tree.query(tile, predicate="intersects"))
        whole = self._geometries[found]
        inside = shapely.intersection(whole, tile)
        met = shapely.get_dimensions(inside) == shapely.get_dimensions(whole)  # touching the edge is not being inside
        found = found[met]
        if len(found) == 0:
            return [], []

        centre = np.array([(west + east) / 2, (south + north) / 2])
        metres = METRES_PER_DEGREE * np.array([math.cos(math.radians(centre[1])), 1.0])
        inside_m = shapely.transform(inside[met], lambda lonlat: (lonlat - centre) * metres)
        widths_m = self._widths_m[found]
        is_line = shapely.get_dimensions(inside_m) == 1
        areas_m2 = np.where(is_line, shapely.length(inside_m) * widths_m, shapely.area(inside_m))
        distances_m = shapely.distance(inside_m, shapely.Point(0, 0))
        distances_m = np.maximum(distances_m - np.where(is_line, widths_m / 2, 0.0), 0.0)

        central = np.flatnonzero(distances_m == distances_m.min())
        if distances_m[central[0]] > 0:
            central = central[:1]
        by_size = central[np.argsort(areas_m2[central], kind="stable")]
        center_tags = list(dict.fromkeys(tag for i in by_size for tag in self._tags[found[i]]))[:max_tags]

        covered_m2: dict[str, float] = {}
        for i in set(range(len(found))) - set(central.tolist()):
            for tag in self._tags[found[i]]:
                covered_m2[tag] = covered_m2.get(tag, 0.0) + float(areas_m2[i])
        others = sorted(covered_m2.keys() - set(center_tags), key=lambda tag: (-covered_m2[tag], tag))
        return center_tags, others[: max_tags - len(center_tags)]


def _width_m(tags: list[str]) -> float:
    """The nominal width of a line with these tags: of its widest one."""
    return max(WIDTH_M.get(tag, WIDTH_M.get(tag.split("=", 1)[0], OTHER_WIDTH_M)) for tag in tags)

"""Overture's themes as the `key=value` tags of OpenStreetMap that they came from, so that one set of rules reads both.

Classes are mostly the values of OpenStreetMap as they were; told here is under which key, and where they differ.
"""

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

TYPES = {"building", "segment", "land", "land_cover", "land_use", "water", "infrastructure", "place"}
TYPES |= {"building_part", "connector", "bathymetry"}  # of these no tag is told
# The key that most values of a type belong under; a class that belongs under another one is in `OF_CLASS`.
KEY = {"land_use": "landuse", "land": "natural", "water": "water", "infrastructure": "man_made"}
OF_SUBTYPE = {
    "infrastructure": {
        "aerialway": "aerialway", "airport": "aeroway", "barrier": "barrier", "bridge": "bridge", "power": "power",
        "pedestrian": "highway", "transit": "railway", "transportation": "highway", "tower": "man_made",
    },
    "land_use": {"golf": "golf", "military": "landuse", "protected": "boundary", "pedestrian": "highway"},
}  # fmt: skip


def _under(key: str, values: str) -> dict[str, str]:
    return {value: f"{key}={value}" for value in values.split()}


OF_CLASS = {
    **_under(
        "leisure",
        "beach_resort bleachers common dog_park garden golf_course marina miniature_golf park pitch playground"
        " recreation_area schoolyard slipway sports_centre stadium swimming_pool track water_park",
    ),
    **_under(
        "amenity",
        "arts_centre bus_station clinic college ferry_terminal fountain grave_yard hospital kindergarten marketplace"
        " monastery parking place_of_worship prison school theatre university",
    ),
    **_under("tourism", "camp_site caravan_site museum theme_park zoo"),
    **_under("natural", "beach cliff glacier wetland wood scrub heath bare_rock sand tree tree_row"),
    **_under("landuse", "allotments farmland forest grass greenfield meadow orchard vineyard quarry cemetery"),
    **_under("waterway", "canal dam ditch drain dock lock_gate river stream tidal_channel weir"),
    **_under("aeroway", "aerodrome apron gate helipad heliport runway taxiway terminal"),
    **_under("railway", "platform railway_station"),
    "airport": "aeroway=aerodrome",
    "international_airport": "aeroway=aerodrome",
    "national_park": "boundary=national_park",
    "power_line": "power=line",
    "power_tower": "power=tower",
    "railway_station": "railway=station",
    "recreation_area": "leisure=recreation_ground",
    "substation": "power=substation",
    "utility_pole": "power=pole",
}
WATERWAYS = frozenset(["canal", "ditch", "drain", "river", "stream", "tidal_channel"])
NO_WATER = frozenset(
    ["bay", "cape", "ocean", "sea", "spring", "strait", "swimming_pool"]
)  # too vague, or under another key
LAND_COVER = {
    "barren": "natural=bare_rock",
    "crop": "landuse=farmland",
    "forest": "natural=wood",
    "grass": "natural=grassland",
    "mangrove": "natural=wetland",
    "shrub": "natural=scrub",
    "snow": "natural=glacier",
    "wetland": "natural=wetland",
}
RAIL = {"standard_gauge": "rail", "unknown": "rail"}
PLACE = {
    "airport": "aeroway=aerodrome",
    "cemetery": "landuse=cemetery",
    "church_cathedral": "amenity=place_of_worship",
    "buddhist_temple": "amenity=place_of_worship",
    "hindu_temple": "amenity=place_of_worship",
    "mosque": "amenity=place_of_worship",
    "synagogue": "amenity=place_of_worship",
    "religious_organization": "amenity=place_of_worship",
    "college_university": "amenity=university",
    "elementary_school": "amenity=school",
    "high_school": "amenity=school",
    "middle_school": "amenity=school",
    "school": "amenity=school",
    "preschool": "amenity=kindergarten",
    "fire_department": "amenity=fire_station",
    "police_department": "amenity=police",
    "gas_station": "amenity=fuel",
    "hospital": "amenity=hospital",
    "library": "amenity=library",
    "parking": "amenity=parking",
    "bus_station": "amenity=bus_station",
    "train_station": "railway=station",
    "golf_course": "leisure=golf_course",
    "marina": "leisure=marina",
    "park": "leisure=park",
    "playground": "leisure=playground",
    "stadium_arena": "leisure=stadium",
    "swimming_pool": "leisure=swimming_pool",
    "campground": "tourism=camp_site",
    "hotel": "tourism=hotel",
    "museum": "tourism=museum",
    "theme_park": "tourism=theme_park",
    "zoo": "tourism=zoo",
}


OWN_COLUMN = {
    "has_parts": "building",
    "road_surface": "segment",
    "basic_category": "place",
    "categories": "place",
    "is_intermittent": "water",
}


def type_of(row: Row, path: str = "") -> str | None:
    """Which of Overture's types a feature is, by its own word, its folder, or a column only that type has."""
    if row.get("type") in TYPES and ("theme" in row or "version" in row or "sources" in row):
        return str(row["type"])
    for part in path.split("/"):
        if part.startswith("type=") and part.removeprefix("type=") in TYPES:
            return part.removeprefix("type=")
    for column, kind in OWN_COLUMN.items():
        if column in row:
            return kind
    return None


def tags_of(row: Row, kind: str, dimension: int) -> dict[str, str]:
    """The tags of a feature of one of Overture's types; none for what cannot be told.

    Args:
        dimension: of its shape: 0 points, 1 lines, 2 areas.
    """
    subtype, value = row.get("subtype"), row.get("class")
    match kind:
        case "building":
            hidden = {"location": "underground"} if row.get("is_underground") else {}
            return {"building": value or "yes"} | hidden
        case "segment":
            return _segment(row, subtype, value)
        case "place":
            categories = row.get("categories")
            primary = categories.get("primary") if isinstance(categories, Mapping) else None
            taxonomy = row.get("taxonomy")
            primary = primary or (taxonomy.get("primary") if isinstance(taxonomy, Mapping) else None)
            return _split(PLACE.get(primary or row.get("basic_category") or "", ""))
        case "land_cover":
            return _split(LAND_COVER.get(subtype or "", ""))
        case "water":
            if value in WATERWAYS and dimension == 1:
                return {"waterway": str(value)}
            if value in NO_WATER or subtype in ("ocean", "physical", "spring") or dimension != 2:
                return _split(OF_CLASS.get(value or "", ""))
            return {"natural": "water"} | ({"water": str(value)} if value not in (None, "water") else {})
        case "land" | "land_use" | "infrastructure":
            if value is None:
                return {}
            if value in OF_CLASS and subtype not in OF_SUBTYPE.get(kind, {}):
                return _split(OF_CLASS[value])
            key = OF_SUBTYPE.get(kind, {}).get(subtype or "", KEY[kind])
            known = OF_CLASS.get(value)
            return _split(known) if known and known.partition("=")[0] == key else {key: str(value)}
    return {}


def _segment(row: Row, subtype: Any, value: Any) -> dict[str, str]:
    flags = _flags(row.get("road_flags")) | _flags(row.get("rail_flags"))
    more = {"tunnel": "yes"} if "is_tunnel" in flags else {"bridge": "yes"} if "is_bridge" in flags else {}
    if subtype == "road" and value not in (None, "unknown"):
        return {"highway": str(value)} | more
    if subtype == "rail":
        return {"railway": RAIL.get(value or "unknown", str(value))} | more
    return {}


def _flags(told: Any) -> set[str]:
    """Flags that hold for the whole segment."""
    found: set[str] = set()
    for entry in told or []:
        if isinstance(entry, Mapping) and entry.get("between") in (None, [0, 1]):
            found |= set(entry.get("values") or [])
    return found


def _split(tag: str) -> dict[str, str]:
    key, sign, value = tag.partition("=")
    return {key: value} if sign else {}

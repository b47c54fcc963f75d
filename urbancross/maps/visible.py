"""Which tags of a map can be seen from above, which closed ways are areas, and how wide a line is.

A rule, not a measurement: a key has to be in `KEYS`, and where a key mixes what is seen with what is not, `ONLY` lists
the values that are, or `UNSEEN` those that are not. Names, addresses, opening hours and everything else are left out.
"""

from collections.abc import Mapping, Sequence

RULES = "2"  # counted up with every change that gives a tile other tags; tables say by which rules they were made

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


def visible(tags: Mapping[str, str]) -> dict[str, str]:
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


def tag_list(tags: Mapping[str, str]) -> list[str]:
    """The visible tags as `key=value`, one for each of several values (`sport=tennis;soccer` gives two)."""
    told = (f"{key}={value}" for key, values in visible(tags).items() for value in values.split(";"))
    return list(dict.fromkeys(told))


def is_area(tags: Mapping[str, str]) -> bool:
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


def width_m(tags: Sequence[str]) -> float:
    """The nominal width of a line with these tags: of its widest one."""
    return max(WIDTH_M.get(tag, WIDTH_M.get(tag.split("=", 1)[0], OTHER_WIDTH_M)) for tag in tags)

"""Geo-tags in words: what a tag looks like from above, and texts told apart, searched and shortened by them."""

import re
from collections.abc import Callable, Sequence

# What a tag looks like from above, as words that fit after "a satellite image of". Tags missing here are worded by
# their key (`_BY_KEY`), and the rest as `phrase` writes them.
NOUNS = {
    "aeroway=aerodrome": "an airport",
    "aeroway=apron": "an airport apron",
    "aeroway=hangar": "an aircraft hangar",
    "aeroway=helipad": "a helipad",
    "aeroway=runway": "an airport runway",
    "aeroway=taxiway": "an airport taxiway",
    "aeroway=terminal": "an airport terminal",
    "amenity=boat_storage": "a boat storage yard",
    "amenity=bus_station": "a bus station",
    "amenity=college": "a college campus",
    "amenity=ferry_terminal": "a ferry terminal",
    "amenity=fire_station": "a fire station",
    "amenity=fountain": "a fountain",
    "amenity=fuel": "a fuel station",
    "amenity=grave_yard": "a graveyard",
    "amenity=hospital": "a hospital",
    "amenity=kindergarten": "a kindergarten",
    "amenity=marketplace": "a market place",
    "amenity=motorcycle_parking": "motorcycle parking",
    "amenity=parking": "a parking lot",
    "amenity=place_of_worship": "a place of worship",
    "amenity=police": "a police station",
    "amenity=prison": "a prison",
    "amenity=school": "a school",
    "amenity=townhall": "a town hall",
    "amenity=university": "a university campus",
    "barrier=city_wall": "a city wall",
    "barrier=ditch": "a ditch",
    "barrier=hedge": "a hedge",
    "barrier=retaining_wall": "a retaining wall",
    "barrier=wall": "a wall",
    "bridge=yes": "a bridge",
    "building=apartments": "apartment buildings",
    "building=barn": "barns",
    "building=church": "a church",
    "building=detached": "detached houses",
    "building=farm": "farmhouses",
    "building=garage": "garages",
    "building=garages": "garages",
    "building=greenhouse": "greenhouses",
    "building=house": "houses",
    "building=hut": "huts",
    "building=mosque": "a mosque",
    "building=roof": "roofs",
    "building=semidetached_house": "semi-detached houses",
    "building=shed": "sheds",
    "building=terrace": "terraced houses",
    "building=warehouse": "warehouses",
    "golf=bunker": "golf bunkers",
    "golf=fairway": "a golf fairway",
    "golf=green": "a golf green",
    "golf=tee": "a golf tee",
    "harbour=yes": "a harbour",
    "highway=bridleway": "a bridleway",
    "highway=construction": "a road under construction",
    "highway=cycleway": "a cycle path",
    "highway=footway": "footpaths",
    "highway=living_street": "quiet streets",
    "highway=motorway": "a motorway",
    "highway=motorway_link": "a motorway ramp",
    "highway=path": "paths",
    "highway=pedestrian": "a pedestrian street",
    "highway=primary": "a main road",
    "highway=raceway": "a racing circuit",
    "highway=residential": "residential streets",
    "highway=secondary": "a secondary road",
    "highway=service": "service roads",
    "highway=steps": "outdoor steps",
    "highway=tertiary": "a local road",
    "highway=track": "dirt tracks",
    "highway=trunk": "a trunk road",
    "highway=unclassified": "a minor road",
    "historic=castle": "a castle",
    "historic=fort": "a fort",
    "historic=ruins": "ruins",
    "landuse=allotments": "allotment gardens",
    "landuse=basin": "a water basin",
    "landuse=brownfield": "a brownfield site",
    "landuse=cemetery": "a cemetery",
    "landuse=commercial": "a commercial area",
    "landuse=construction": "a construction site",
    "landuse=farmland": "farmland",
    "landuse=farmyard": "a farmyard",
    "landuse=forest": "forest",
    "landuse=garages": "rows of garages",
    "landuse=grass": "grass",
    "landuse=greenhouse_horticulture": "greenhouses",
    "landuse=industrial": "an industrial area",
    "landuse=landfill": "a landfill",
    "landuse=meadow": "meadows",
    "landuse=military": "a military area",
    "landuse=orchard": "an orchard",
    "landuse=plant_nursery": "a plant nursery",
    "landuse=port": "a port",
    "landuse=quarry": "a quarry",
    "landuse=railway": "railway land",
    "landuse=recreation_ground": "a recreation ground",
    "landuse=religious": "religious grounds",
    "landuse=reservoir": "a reservoir",
    "landuse=residential": "a residential area",
    "landuse=retail": "a shopping area",
    "landuse=salt_pond": "salt ponds",
    "landuse=vineyard": "vineyards",
    "leisure=garden": "a garden",
    "leisure=golf_course": "a golf course",
    "leisure=ice_rink": "an ice rink",
    "leisure=marina": "a marina for boats",
    "leisure=park": "a park",
    "leisure=pitch": "a sports pitch",
    "leisure=playground": "a playground",
    "leisure=slipway": "a slipway",
    "leisure=sports_centre": "a sports centre",
    "leisure=stadium": "a stadium",
    "leisure=swimming_pool": "a swimming pool",
    "leisure=track": "a running track",
    "leisure=water_park": "a water park",
    "man_made=breakwater": "a breakwater",
    "man_made=bridge": "a bridge",
    "man_made=chimney": "a chimney",
    "man_made=dyke": "a dyke",
    "man_made=embankment": "an embankment",
    "man_made=groyne": "groynes",
    "man_made=lighthouse": "a lighthouse",
    "man_made=pier": "a pier",
    "man_made=pipeline": "a pipeline",
    "man_made=silo": "silos",
    "man_made=storage_tank": "storage tanks",
    "man_made=tower": "a tower",
    "man_made=wastewater_plant": "a wastewater plant",
    "man_made=water_tower": "a water tower",
    "man_made=works": "a factory",
    "natural=bare_rock": "bare rock",
    "natural=bay": "a bay",
    "natural=beach": "a beach",
    "natural=cliff": "a cliff",
    "natural=coastline": "a coastline",
    "natural=glacier": "a glacier",
    "natural=grassland": "grassland",
    "natural=heath": "heathland",
    "natural=peak": "a mountain peak",
    "natural=sand": "sand",
    "natural=scree": "scree",
    "natural=scrub": "scrub",
    "natural=tree": "trees",
    "natural=tree_row": "a row of trees",
    "natural=water": "water",
    "natural=wetland": "wetland",
    "natural=wood": "woodland",
    "plant:source=solar": "solar panels",
    "plant:source=wind": "a wind farm",
    "generator:source=solar": "solar panels",
    "generator:source=wind": "wind turbines",
    "power=generator": "a power generator",
    "power=line": "a power line",
    "power=plant": "a power plant",
    "power=substation": "an electrical substation",
    "power=tower": "power pylons",
    "railway=disused": "a disused railway",
    "railway=light_rail": "a light railway",
    "railway=narrow_gauge": "a narrow-gauge railway",
    "railway=platform": "a railway platform",
    "railway=rail": "railway tracks",
    "railway=station": "a railway station",
    "railway=tram": "tram tracks",
    "railway=yard": "a rail yard",
    "sport=american_football": "an American football field",
    "sport=athletics": "an athletics ground",
    "sport=baseball": "a baseball field",
    "sport=basketball": "a basketball court",
    "sport=beachvolleyball": "a beach volleyball court",
    "sport=equestrian": "a riding ground",
    "sport=multi": "a multi-sport ground",
    "sport=soccer": "a soccer field",
    "sport=tennis": "a tennis court",
    "tourism=camp_site": "a camp site",
    "tourism=caravan_site": "a caravan site",
    "tourism=hotel": "a hotel",
    "tourism=museum": "a museum",
    "tourism=theme_park": "a theme park",
    "tourism=zoo": "a zoo",
    "water=canal": "a canal",
    "water=lake": "a lake",
    "water=pond": "a pond",
    "water=reservoir": "a reservoir",
    "water=river": "a river",
    "waterway=canal": "a canal",
    "waterway=dam": "a dam",
    "waterway=ditch": "a ditch",
    "waterway=dock": "a dock",
    "waterway=drain": "a drain",
    "waterway=river": "a river",
    "waterway=stream": "a stream",
    "waterway=weir": "a weir",
}
_BY_KEY = {"building": "{} buildings", "highway": "{} roads", "landuse": "{} land", "sport": "{} grounds"}
_PLAIN = {"building": "buildings", "highway": "roads", "leisure": "a leisure area"}  # for the value `yes`


def phrase(center_tags: Sequence[str], surrounding_tags: Sequence[str]) -> str:
    """The tags of a tile in words: `amenity of school, road of residential; surrounded by road of service`."""
    center = ", ".join(map(_key_of_value, center_tags))
    around = ", ".join(map(_key_of_value, surrounding_tags))
    return "; ".join(part for part in (center, around and f"surrounded by {around}") if part)


def noun(tag: str) -> str:
    """What a `key=value` tag looks like from above, as words for the middle of a sentence."""
    if tag in NOUNS:
        return NOUNS[tag]
    key, value = _readable(tag)
    if value == "yes":
        return _PLAIN.get(key, _key_of_value(tag))
    return _BY_KEY[key].format(value) if key in _BY_KEY else _key_of_value(tag)


def _readable(tag: str) -> tuple[str, str]:
    """Key and value in plain words: mappers' underscores, and marks that would end a phrase, become spaces."""
    key, _, value = tag.partition("=")
    key, value = (" ".join(re.sub(r"[_:;,.]", " ", part).split()) for part in (key, value))
    return key, value


def _key_of_value(tag: str) -> str:
    key, value = _readable(tag)
    key = "road" if key == "highway" else key
    return key if value in ("", "yes") else f"{key} of {value}"


def phrases(caption: str) -> list[str]:
    """The parts of a caption between `;`, `,` and `.`, trimmed, none empty."""
    return [part.strip() for part in re.split(r"[;,.]", caption) if part.strip()]


def mentions(text: str, tag: str) -> bool:
    """Whether a text names a `key=value` tag: by its value as whole words, or by the noun the templates use."""
    key, value = _readable(tag)
    bare = re.sub(r"^(a|an) ", "", noun(tag))
    names = {bare, key if value == "yes" else value}
    return any(re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE) for name in names)


def truncate(caption: str, fits: Callable[[str], bool], tags: Sequence[str] = ()) -> tuple[str, bool]:
    """Shorten a caption to what a text encoder can read.

    Whole sentences are kept in their order; those that name a tag are chosen before those that do not. Where not even
    one fits, the first of the chosen order is cut between words.

    Args:
        caption: any text.
        fits: whether a text is short enough; true for every beginning of a text for which it is true.
        tags: the tile's `key=value` tags.

    Returns:
        The text, and whether anything was left out.
    """
    if fits(caption):
        return caption, False
    sentences = re.split(r"(?<=[.!?])\s+", caption.strip())
    wanted = sorted(range(len(sentences)), key=lambda i: not any(mentions(sentences[i], tag) for tag in tags))
    kept: list[int] = []
    for i in wanted:
        if fits(" ".join(sentences[j] for j in sorted([*kept, i]))):
            kept.append(i)
    if kept:
        return " ".join(sentences[j] for j in sorted(kept)), True
    words = sentences[wanted[0]].split()
    while words and not fits(" ".join(words)):
        words.pop()
    return " ".join(words), True

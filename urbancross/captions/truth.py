"""What a caption claims, held against the map: supported, not in the map, or contradicted.

OpenStreetMap is incomplete, so what a caption names and the map lacks is `not_in_map`, no error. It is a contradiction
only where the map has another answer to the same question: a lake where the caption says river, a soccer pitch where it
says baseball field, farmland alone where it says that the main land use is industrial.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

from urbancross.captions.words import NOUNS

# Words of captions -> tags they stand for, `key=*` for any value. Beside these, every noun of NOUNS stands for its tag.
_EVERYDAY = {
    "airport|airplane|aeroplane|plane|aircraft|airfield": "aeroway=*",
    "runway": "aeroway=runway aeroway=aerodrome",
    "road|street|avenue|lane": "highway=*",
    "highway|freeway|expressway|motorway": "highway=motorway highway=motorway_link highway=trunk highway=primary",
    "path|trail|track|footpath|walkway": "highway=path highway=footway highway=track highway=cycleway highway=steps"
    " highway=bridleway highway=pedestrian leisure=track",
    "parking lot|parking|car park|parking area": "amenity=parking",
    "building|roof": "building=*",
    "house|home|villa|dwelling": "building=house building=detached building=residential building=terrace building=yes"
    " building=semidetached_house building=bungalow building=farm building=apartments landuse=residential",
    "residential area|neighborhood|neighbourhood|suburb|housing": "landuse=residential building=house"
    " building=apartments building=residential building=detached building=terrace highway=residential",
    "apartment|apartment block|tower block": "building=apartments building=residential",
    "factory|industrial area|plant|industry": "landuse=industrial man_made=works building=industrial power=plant",
    "warehouse": "building=warehouse building=industrial landuse=industrial",
    "storage tank|tank": "man_made=storage_tank man_made=silo building=storage_tank",
    "shop|shopping centre|shopping center|mall|supermarket": "landuse=retail building=retail building=supermarket"
    " landuse=commercial",
    "commercial area|downtown|office": "landuse=commercial landuse=retail building=commercial building=office",
    "school|classroom": "amenity=school building=school",
    "church|cathedral|chapel": "building=church building=cathedral building=chapel",
    "mosque": "building=mosque",
    "temple|shrine|pagoda": "building=temple building=shrine",
    "stadium|arena": "leisure=stadium building=stadium",
    "soccer field|soccer pitch": "sport=soccer",
    "football field|football pitch": "sport=soccer sport=american_football leisure=pitch leisure=stadium",
    "baseball field|baseball diamond": "sport=baseball sport=softball",
    "tennis court": "sport=tennis",
    "basketball court": "sport=basketball",
    "pitch|sports field|playing field|sports ground|sports pitch|court": "leisure=pitch leisure=sports_centre"
    " landuse=recreation_ground sport=*",
    "golf course|golf": "leisure=golf_course golf=* sport=golf",
    "swimming pool|pool": "leisure=swimming_pool leisure=water_park",
    "garden|lawn": "leisure=garden leisure=park landuse=grass",
    "grass|grassland|meadow|pasture|lawn": "landuse=grass landuse=meadow natural=grassland leisure=park leisure=garden"
    " landuse=village_green",
    "tree|wood|woods": "natural=wood landuse=forest natural=tree natural=tree_row landuse=orchard",
    "forest|woodland": "landuse=forest natural=wood",
    "bush|shrub|scrub|scrubland": "natural=scrub natural=heath",
    "farmland|cropland|crop|farm|field|farm field": "landuse=farmland landuse=farmyard landuse=meadow",
    "vineyard": "landuse=vineyard",
    "orchard": "landuse=orchard",
    "greenhouse": "landuse=greenhouse_horticulture building=greenhouse",
    "sea|ocean|seashore|coast|shore": "natural=coastline natural=bay natural=strait",
    "river": "waterway=river water=river waterway=canal water=canal",
    "stream|creek|brook": "waterway=stream waterway=ditch waterway=drain water=stream",
    "canal": "waterway=canal water=canal",
    "lake|pond|reservoir|lagoon": "water=lake water=pond water=reservoir water=lagoon water=basin landuse=reservoir"
    " landuse=basin",
    "water": "natural=water water=* waterway=* natural=bay natural=coastline landuse=reservoir landuse=basin",
    "beach": "natural=beach natural=sand",
    "desert|dune": "natural=desert natural=dune",
    "sand": "natural=sand natural=beach natural=dune natural=desert",
    "glacier|ice": "natural=glacier",
    "snow": "natural=glacier",
    "rock|bare rock|cliff": "natural=bare_rock natural=scree natural=cliff natural=stone natural=rock",
    "mountain|hill|ridge": "natural=peak natural=ridge natural=bare_rock natural=scree natural=cliff",
    "wetland|marsh|swamp": "natural=wetland",
    "bridge|viaduct|overpass": "bridge=* man_made=bridge",
    "railway|railroad|train|rail": "railway=* landuse=railway",
    "railway station|train station": "railway=station building=train_station",
    "port|harbor|harbour|dock|boat|ship": "harbour=* leisure=marina landuse=port waterway=dock man_made=pier"
    " amenity=ferry_terminal",
    "marina": "leisure=marina",
    "pier|jetty": "man_made=pier",
    "quarry|mine": "landuse=quarry",
    "solar panel|solar farm": "plant:source=solar generator:source=solar",
    "wind turbine|wind farm": "plant:source=wind generator:source=wind",
    "cemetery|graveyard": "landuse=cemetery amenity=grave_yard",
    "park": "leisure=park leisure=garden landuse=recreation_ground landuse=village_green",
    "playground": "leisure=playground leisure=pitch leisure=track",
}
# Less telling tags that support a word only where the map does not answer its question otherwise.
_VAGUE = {
    "river": "natural=water",
    "lake|pond|reservoir|lagoon": "natural=water waterway=dam",
    "sea|ocean|seashore|coast|shore": "natural=water natural=beach",
    "desert|dune": "natural=sand",
}
# Questions with one answer each: to claim one word where the map has only another is a contradiction.
_QUESTIONS = (
    ("river", "lake|pond|reservoir|lagoon", "sea|ocean|seashore|coast|shore"),
    ("forest|woodland", "desert|dune"),
    ("soccer field|soccer pitch", "baseball field|baseball diamond", "tennis court", "basketball court"),
    ("church|cathedral|chapel", "mosque", "temple|shrine|pagoda"),
    ("vineyard", "orchard", "greenhouse"),
    ("solar panel|solar farm", "wind turbine|wind farm"),
)
_LAND_USE_OF = {
    "residential": "landuse=residential building=house building=apartments building=detached building=terrace",
    "commercial": "landuse=commercial landuse=retail building=commercial building=retail building=office",
    "industrial": "landuse=industrial landuse=quarry landuse=landfill man_made=works power=plant power=substation"
    " man_made=wastewater_plant building=industrial building=warehouse landuse=construction landuse=port",
    "public": "amenity=school amenity=university amenity=college amenity=hospital landuse=military landuse=religious"
    " landuse=cemetery amenity=prison",
    "transport": "aeroway=* landuse=railway railway=station railway=yard highway=motorway amenity=parking harbour=*"
    " landuse=port amenity=bus_station",
    "recreation": "leisure=* landuse=recreation_ground tourism=* sport=* golf=* landuse=village_green",
    "agriculture": "landuse=farmland landuse=farmyard landuse=meadow landuse=orchard landuse=vineyard"
    " landuse=greenhouse_horticulture landuse=allotments landuse=plant_nursery",
    "forest": "landuse=forest natural=wood",
    "grassland": "natural=grassland natural=heath natural=scrub landuse=meadow landuse=grass",
    "water": "natural=water natural=bay natural=coastline landuse=reservoir landuse=basin water=*"
    " leisure=marina harbour=*",
    "wetland": "natural=wetland natural=mud landuse=salt_pond",
    "bare": "natural=bare_rock natural=sand natural=scree natural=beach natural=glacier landuse=quarry natural=desert",
}
_NEGATED = re.compile(r"\b(no|not|without|lacks?|free of|absence of)( \w+){0,2} $", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What became of the claims of a tile's captions; a claim is a word of the vocabulary, as it was written there.

    `precision` = |C ∩ R| / |C| and `coverage` = |C ∩ R| / |R| (METHOD §1), C being what is claimed and R the tile's
    tags; null where C or R is empty. `word` sums up: no map | no claim | supported | not in map | contradicted.
    """

    word: str
    precision: float | None = None
    coverage: float | None = None
    supported: list[str] = field(default_factory=list)
    not_in_map: list[str] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)


def judge(
    texts: Sequence[str], center_tags: Sequence[str], surrounding_tags: Sequence[str], land_use: str | None = None
) -> Verdict:
    """Hold what texts about one tile claim against all tags of that tile.

    Args:
        texts: the tile's captions.
        land_use: what they call the main land use, one of `prompts.LAND_USES`.
    """
    tags = [*center_tags, *surrounding_tags]
    if not tags:
        return Verdict("no map")
    claimed = {name: words for text in texts for name, words in claims(text).items()}
    supported, not_in_map, against = [], [], []
    covered: set[str] = set()
    for name, words in claimed.items():
        backing = {tag for tag in tags if _stands_for(words, tag) or _value_of(tag) in _forms(name)}
        other = None if backing else _other_answer(words, tags)
        if not (backing or other):
            backing = {tag for tag in tags if tag in _VAGUE.get(words, "").split()}
        covered |= backing
        if backing:
            supported.append(name)
        elif other:
            against.append(f"{name} (map: {other})")
        else:
            not_in_map.append(name)
    mapped = {use for tag in tags for use in _land_uses_of(tag)}
    if land_use in _LAND_USE_OF and land_use not in mapped:
        central = sorted({use for tag in center_tags for use in _land_uses_of(tag)})
        if central:
            against.append(f"main land use {land_use} (map: {', '.join(central)})")
    precision = len(supported) / len(claimed) if claimed else None
    word = "contradicted" if against else "no claim" if not claimed else "not in map" if not_in_map else "supported"
    return Verdict(word, precision, len(covered) / len(tags), supported, not_in_map, against)


def claims(text: str) -> dict[str, str]:
    """The things that a text names, as written (lower case) -> the entry of the vocabulary; what it denies is none.

    The longest name wins, so a swimming pool is no pool and a railway station no railway.
    """
    pattern, entry_of, _ = _vocabulary()
    found = {}
    for match in pattern.finditer(text):
        if not _NEGATED.search(text[max(0, match.start() - 40) : match.start()]):
            found[match[0].lower()] = entry_of[match[0].lower()]
    return found


def _value_of(tag: str) -> str:
    return tag.partition("=")[2].replace(
        "_", " "
    )  # whatever its key: building=hotel is a hotel, landuse=harbour one too


def _stands_for(words: str, tag: str) -> bool:
    stood_for = _vocabulary()[2][words]
    return tag in stood_for or f"{tag.partition('=')[0]}=*" in stood_for


def _other_answer(words: str, tags: Sequence[str]) -> str | None:
    """A tag by which the map answers otherwise the question that these words answer."""
    for question in _QUESTIONS:
        if words in question:
            others = [entry for entry in question if entry != words]
            return next((tag for tag in tags for entry in others if _stands_for(entry, tag)), None)
    return None


@cache
def _land_uses_of(tag: str) -> tuple[str, ...]:
    general = f"{tag.partition('=')[0]}=*"
    return tuple(use for use, tags in _LAND_USE_OF.items() if tag in tags.split() or general in tags.split())


@cache
def _vocabulary() -> tuple[re.Pattern[str], dict[str, str], dict[str, set[str]]]:
    """A pattern of all names, the longest first; name -> entry; entry -> the tags that it stands for."""
    tags_of = {entry: set(tags.split()) for entry, tags in _EVERYDAY.items()}
    entry_of = {form: entry for entry in _EVERYDAY for name in entry.split("|") for form in _forms(name)}
    for tag, noun in NOUNS.items():
        bare = re.sub(r"^(a|an) ", "", noun).lower()
        for form in _forms(bare):
            entry_of.setdefault(form, bare)
        tags_of.setdefault(entry_of[bare], set()).add(tag)
    names = "|".join(map(re.escape, sorted(entry_of, key=len, reverse=True)))
    return re.compile(rf"\b(?:{names})\b", re.IGNORECASE), entry_of, tags_of


def _forms(noun: str) -> set[str]:
    """Singular and plural of a noun that may be either."""
    one = noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "us")) else noun
    return {noun, one, f"{one}s", f"{one}es", f"{one[:-1]}ies" if one.endswith("y") else noun}

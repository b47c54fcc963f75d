"""From captions that people wrote to the answers a model should give: JSON as `prompts.answer_schema` asks."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from urbancross.captions import prompts
from urbancross.captions.words import NOUNS

MAX_OBJECTS = 5
# What captions name, and the land use that it speaks for. Where votes are equal, what is named first decides.
_SPEAKS_FOR = {
    "residential": "residential area|neighborhood|villa|apartment|house",
    "commercial": "commercial area|commercial|mall|market|shop|downtown",
    "industrial": "industrial area|industrial|factory|warehouse|storage tank|storagetank|tank|workshop",
    "public": "school|church|square|center|campus|hospital|teaching building",
    "transport": "airport|plane|runway|terminal|railway station|railway|station|train|viaduct|overpass|highway"
    "|crossroads|bridge|parking lot|parking|port|harbour|wharf|pier|boat|ship",
    "recreation": "playground|stadium|park|resort|football field|soccer field|baseball field|baseballfield"
    "|baseball diamond|basketball court|basketball field|tennis court|badminton court|swimming pool|pool|track",
    "agriculture": "farmland|farm|crop|pasture|orchard|piece of field",
    "forest": "forest|wood",
    "grassland": "meadow|grassland|lawn|grass",
    "water": "river|pond|lake|ocean|sea|beach|island|water",
    "wetland": "wetland|marsh|swamp",
    "bare": "desert|bareland|bare land|mountain|hill|sand|rock|snow",
}
_COMMON = "tree|building|road|car|plant|field|street|path|roof|vehicle|flower|fountain|ground|vegetation|garden|city"
_PLURALS = {"factory": "factories", "church": "churches", "beach": "beaches"}
_NO_OBJECT = {"commercial", "industrial", "residential area", "parking", "piece of field", "city", "downtown"}


def _singular(noun: str) -> str:
    return re.sub(r"(?<=[a-rt-z])s$", "", noun)


_LAND_USE_OF = {noun: land_use for land_use, nouns in _SPEAKS_FOR.items() for noun in nouns.split("|")}
_TAGS = {_singular(re.sub(r"^(a|an) ", "", noun)) for noun in NOUNS.values()}
_NOUNS = {*_LAND_USE_OF, *_COMMON.split("|"), *_TAGS}
_NOUN_OF = {form: noun for noun in sorted(_NOUNS) for form in (noun, _PLURALS.get(noun, noun + "s"))}
_PATTERN = re.compile(rf"\b(?:{'|'.join(sorted(_NOUN_OF, key=len, reverse=True))})\b")


def tidy(caption: str) -> str:
    """A caption as a sentence: a capital letter, a full stop, no blank before a mark, the schema's characters alone.

    Empty where nothing is left.
    """
    text = re.sub(r"[^A-Za-z0-9 ,.;:'()/%&+\-]", " ", caption.replace("’", "'").replace("`", "'"))
    text = " ".join(re.sub(r"\s+(?=[,.;:])", "", " ".join(text.split())).split())
    text = re.sub(r"^[^A-Za-z]+|[ ,.;:]+$", "", text)
    return text[:1].upper() + text[1:] + "." if len(text) > 2 else ""


@cache
def named(caption: str) -> tuple[str, ...]:
    """The things a caption names, singular, each once, in the order of their first mention."""
    return tuple(dict.fromkeys(_NOUN_OF[form] for form in _PATTERN.findall(caption.lower())))


def land_use_of(captions: Sequence[str]) -> str:
    """The land use that most captions speak for; `mixed` where none speaks for any."""
    votes: Counter[str] = Counter()
    for caption in captions:
        votes.update({_LAND_USE_OF[noun]: 1 for noun in named(caption) if noun in _LAND_USE_OF})
    return votes.most_common(1)[0][0] if votes else "mixed"


def objects_of(captions: Sequence[str]) -> list[str]:
    """What at least two captions name, what most name first; of a single caption all that it names."""
    seen = Counter(noun for caption in captions for noun in named(caption) if noun not in _NO_OBJECT)
    wanted = min(2, len(captions))
    return [noun for noun, count in seen.most_common() if count >= wanted][:MAX_OBJECTS]


def answers(captions: Sequence[str]) -> dict[str, float]:
    """The answers for a tile and their weights: one per distinct caption, weighing as often as people wrote it."""
    land_use, objects = land_use_of(captions), objects_of(captions)
    written = Counter(text for caption in captions if (text := tidy(caption)))
    return {answer_text(text, land_use, objects): count / written.total() for text, count in written.items()}


def answer_text(description: str, land_use: str, objects: list[str]) -> str:
    """JSON without blanks between its tokens, as engines write it when they are held to the schema."""
    answer = {"description": description, "land_use": land_use, "objects": objects[: prompts.MAX_OBJECTS]}
    return json.dumps(answer, separators=(",", ":"))

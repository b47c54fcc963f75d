"""What covers the ground of a tile, by what most of its captions name."""

import re
from collections.abc import Sequence
from typing import Literal

LandCover = Literal["urban", "farmland", "forest", "water", "open land", "mixed"]

# Trees, roads and grass stand in every kind of picture and tell none apart.
_NAMED_BY: dict[LandCover, str] = {
    "urban": "building|house|home|villa|roof|residential|neighbou?rhood|city|town|urban|industrial|factory|factorie"
    "|commercial|downtown|shop|apartment|warehouse|storage tank|parking|car|airport|airplane|plane|runway|terminal"
    "|school|college|campus|church|stadium|railway|train|station|viaduct|overpass|intersection|freeway|highway"
    "|square|resort|pool|playground|court|diamond|football field|baseball ?field|soccer field|sports field",
    "farmland": "farmland|cropland|crop|farm|field|agriculture|agricultural|orchard|vineyard|greenhouse",
    "forest": "forest|wood|woodland|jungle|chaparral",
    "water": "water|sea|ocean|river|lake|pond|reservoir|lagoon|stream|canal|wave|harbou?r|port|boat|ship|dock|marina",
    "open land": "meadow|grassland|pasture|prairie|desert|dune|sand|bare ?land|mountain|ridge|hill|rock|snow|glacier",
}
_PATTERNS = {
    cover: re.compile(rf"\b(?:{'|'.join(f'(?:{name})(?:s|es)?' for name in named.split('|'))})\b")
    for cover, named in _NAMED_BY.items()
}


def land_cover(captions: Sequence[str]) -> LandCover:
    """The cover that most captions name; `mixed` where two lead alike, or none is named."""
    texts = [caption.lower() for caption in captions]
    # What a town is full of comes first, so that a football field is no farmland.
    bare = [_PATTERNS["urban"].sub(" ", text) for text in texts]
    counts = {
        cover: sum(bool(pattern.search(text)) for text in (texts if cover == "urban" else bare))
        for cover, pattern in _PATTERNS.items()
    }
    most = max(counts.values())
    leading = [cover for cover, count in counts.items() if count == most]
    return leading[0] if most and len(leading) == 1 else "mixed"

"""What a vision-language model is asked about a tile, and how its answer is read.

The instructions are the same for every tile and stand before the image, so that engines with a prefix cache compute
them once; what is known of the tile follows the image. Answers are JSON under one schema.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from urbancross.captions.words import phrase
from urbancross.errors import TileError

VERSION = "2"  # goes into the captions table; raise it with every change to the text that `messages` returns

LAND_USES = (
    "residential",
    "commercial",
    "industrial",
    "public",
    "transport",
    "recreation",
    "agriculture",
    "forest",
    "grassland",
    "water",
    "wetland",
    "bare",
    "mixed",
)
INSTRUCTIONS = (
    "The image shows a piece of land from straight above. Answer with one JSON object: description, plain sentences"
    " on what can be seen, the most important first; land_use, the main one; objects, short nouns for the things that"
    " stand out. Name only what the image or the geographical tags show."
)
_WORDING = "Please give a comprehensive and detailed description of the satellite image"  # of the paper
_SEASONS = ("winter", "spring", "summer", "autumn")  # of the north, by quarters that begin in December
MAX_OBJECTS = 8
REPEATS = 128
_TEXT = r"[A-Za-z0-9 ,.;:'()/%&+\-]"  # no quotes, no control characters: what is cut off can be mended


@dataclass(frozen=True)
class Facts:
    """What is known of a tile besides its pixels and tags; None: unknown."""

    domain: str | None = None
    bounds: Sequence[float] | None = None  # west, south, east, north in degrees
    datetime: str | None = None  # ISO 8601
    gsd_m: float | None = None


def answer_schema(max_chars: int) -> dict[str, Any]:
    """The JSON schema of an answer; every string has a pattern, so that no engine can put control characters there."""
    return {
        "type": "object",
        "properties": {
            "description": {"type": "string", "pattern": f"^[A-Za-z]{_TEXT}{{2}}{_up_to(max_chars - 3)}$"},
            "land_use": {"enum": list(LAND_USES)},
            "objects": {
                "type": "array",
                "items": {"type": "string", "pattern": r"^[a-z][a-z \-]{1,29}$"},
                "maxItems": MAX_OBJECTS,
            },
        },
        "required": ["description", "land_use", "objects"],
        "additionalProperties": False,
    }


def _up_to(count: int) -> str:
    """A pattern for at most so many characters of text, in pieces: xgrammar 0.2.8 compiles no repeat above 128."""
    whole, rest = divmod(count, REPEATS)
    return f"{_TEXT}{{0,{REPEATS}}}" * whole + f"{_TEXT}{{0,{rest}}}"


def prompt(center_tags: Sequence[str], surrounding_tags: Sequence[str], facts: Facts | None = None) -> str:
    """The text that follows the image; without tags the model is not told of any (METHOD: never an empty slot)."""
    tags = phrase(center_tags, surrounding_tags)
    asked = f"{_WORDING} and its geographical tags: {tags}." if tags else f"{_WORDING}."
    return " ".join([*(_told(facts) if facts else []), asked])


def _told(facts: Facts) -> list[str]:
    told = []
    if facts.bounds is not None:
        west, south, east, north = facts.bounds
        lat, lon = (south + north) / 2, (west + (east if east >= west else east + 360)) / 2
        lon = (lon + 180) % 360 - 180
        where = f"{abs(lat):.2f} degrees {'north' if lat >= 0 else 'south'}"
        where += f", {abs(lon):.2f} degrees {'east' if lon >= 0 else 'west'}"
        told.append(f"Place: {facts.domain + ', ' if facts.domain else ''}{where}.")
        if (season := season_of(facts.datetime, lat)) is not None:
            told.append(f"Season: {season}.")
    if facts.gsd_m:
        told.append(f"One pixel is {facts.gsd_m:.3g} m of ground.")
    return told


def season_of(datetime: str | None, lat: float) -> str | None:
    """The season on a day at a latitude in degrees; none in the tropics or where the month is not known."""
    month = re.match(r"\d{4}-(\d\d)", datetime or "")
    if month is None or abs(lat) < 23.5 or not 1 <= int(month[1]) <= 12:
        return None
    return _SEASONS[(int(month[1]) % 12 // 3 + (2 if lat < 0 else 0)) % 4]


def question(picture: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """One question as a conversation of one turn.

    Args:
        picture: the image as the engine takes it, a part of a message.
        text: what `prompt` returns.
    """
    parts = [{"type": "text", "text": INSTRUCTIONS}, picture, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def messages(image: bytes, text: str) -> list[dict[str, Any]]:
    """A question in the form that every OpenAI-compatible server takes.

    Args:
        image: encoded, JPEG, PNG or WebP.
        text: what `prompt` returns.
    """
    kind = "png" if image[:4] == b"\x89PNG" else "webp" if image[8:12] == b"WEBP" else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    return question({"type": "image_url", "image_url": {"url": url}}, text)


@dataclass(frozen=True)
class Answer:
    description: str
    land_use: str | None
    objects: tuple[str, ...]
    repaired: bool = False  # the text was no whole JSON


def parse(text: str) -> Answer:
    """Read an answer; what stands around the JSON is passed over, and a description that was cut keeps whole sentences.

    Raises:
        TileError: there is no description in it.
    """
    start = text.find("{")
    try:
        found, end = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else (None, 0)
    except json.JSONDecodeError:
        found, end = None, 0
    if isinstance(found, dict) and isinstance(found.get("description"), str) and found["description"].strip():
        objects = found.get("objects")
        named = [o for o in objects if isinstance(o, str)] if isinstance(objects, list) else []
        land_use = found.get("land_use") if found.get("land_use") in LAND_USES else None
        around = text[:start].strip() + text[start + end :].strip()
        return Answer(" ".join(found["description"].split()), land_use, tuple(named[:MAX_OBJECTS]), bool(around))
    cut = re.search(r'"description"\s*:\s*"((?:[^"\\]|\\.)*)', text, re.DOTALL)
    sentences = re.match(r".*[.!?](?=\s|$)", cut[1], re.DOTALL) if cut else None
    if cut and (whole := sentences[0] if sentences else cut[1] if text[cut.end() : cut.end() + 1] == '"' else ""):
        return Answer(" ".join(re.sub(r"\\.", " ", whole).split()), None, (), repaired=True)
    raise TileError(f"the answer is no JSON with a description: {' '.join(text.split())[:80]!r}")

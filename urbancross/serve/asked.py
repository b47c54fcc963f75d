"""A query as it comes from outside, and what of it may be asked."""

from typing import Annotated, Any

import shapely
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from urbancross.archive import area_of, box_of
from urbancross.errors import ConfigError
from urbancross.index.facts import Filters
from urbancross.index.moments import told_span
from urbancross.serve.refused import Refused

QUERY_CHARS = 1000  # of one text
TERMS = 32  # texts, tiles and pictures of a query together
TAGS = 16
TOP = 200
CORNERS = 10_000  # of an area
FAR = 1e6  # beyond any degree

Text = Annotated[str, StringConstraints(max_length=QUERY_CHARS)]
Word = Annotated[str, StringConstraints(max_length=200)]
Tile = Annotated[int, Field(ge=0, lt=1 << 53)]


class Asked(BaseModel):
    """See `Archive.search`, whose arguments these are; tiles go by their number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    text: Text | None = None
    plus: list[Text] | None = None
    minus: list[Text] | None = None
    like: list[Tile] | None = None
    unlike: list[Tile] | None = None
    pictures: list[Word] | None = None
    bbox: list[float] | None = Field(default=None, min_length=4, max_length=4)
    area: dict[str, Any] | None = None
    since: Word | None = None
    until: Word | None = None
    domain: Word | None = None
    split: Word | None = None
    tags: list[Word] | None = Field(default=None, max_length=TAGS)
    segment_weight: float = Field(default=0.0, ge=0, le=1)
    top: int = Field(default=40, ge=1, le=TOP)
    model: Word | None = None

    @property
    def wanted(self) -> list[str]:
        """Texts that say something."""
        return [text for text in (self.text or "", *(self.plus or ())) if text.strip()]

    @property
    def unwanted(self) -> list[str]:
        return [text for text in self.minus or () if text.strip()]

    @property
    def is_text(self) -> bool:
        """Whether it is one text alone."""
        return len(self.wanted) == 1 and not (self.unwanted or self.like or self.unlike or self.pictures)

    @property
    def filters(self) -> Filters:
        """
        Raises:
            Refused: the box, the area or a time is none.
        """
        try:
            return Filters(
                None if self.bbox is None else box_of(self.bbox),
                None if self.area is None else area_of(with_few_corners(self.area)),
                None if self.since is None else told_span(self.since, "since"),
                None if self.until is None else told_span(self.until, "until"),
                self.domain or None,
                self.split or None,
                tuple(tag for tag in self.tags or () if tag),
            )
        except ConfigError as error:
            raise Refused(422, str(error)) from None
        except shapely.GEOSException:
            raise Refused(422, "area: no polygon that can be worked with; mend it") from None


def read(body: bytes) -> Asked:
    """A query of JSON.

    Raises:
        Refused: it is no JSON, or a field does not fit.
    """
    try:
        asked = Asked.model_validate_json(body)
    except ValidationError as error:
        told = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if told["type"] == "json_invalid":
            raise Refused(400, f"not JSON: {told['msg'].removeprefix('Invalid JSON: ')}") from None
        where = ".".join(str(part) for part in told["loc"])[:80] or "query"
        raise Refused(422, f"{where}: {told['msg']}") from None
    terms = sum(len(found or ()) for found in (asked.plus, asked.minus, asked.like, asked.unlike, asked.pictures))
    if terms + (asked.text is not None) > TERMS:
        raise Refused(422, f"more than {TERMS} texts, tiles and pictures; leave some out")
    return asked


def with_few_corners(area: dict[str, Any]) -> dict[str, Any]:
    """GeoJSON as it is.

    Raises:
        Refused: it has too many corners, or numbers that are no degrees.
    """
    numbers, left = 0, [area]
    while left:
        value: Any = left.pop()
        if isinstance(value, dict):
            left.extend(inner for name, inner in value.items() if name not in ("properties", "id"))
        elif isinstance(value, list):
            left.extend(value)
        elif isinstance(value, int | float):
            numbers += 1
            if not abs(value) <= FAR:
                raise Refused(422, "area: want degrees, longitude first; a number of it is none")
    if numbers > 2 * CORNERS:
        raise Refused(422, f"area: more than {CORNERS:,} corners; simplify it")
    return area

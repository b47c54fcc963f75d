"""What `report --map` may be told."""

from typing import Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from urbancross.config.base import ArchiveConfig, Split


class MapConfig(ArchiveConfig):
    """Write one offline HTML page that searches up to 100,000 tiles of an archive, on a map and as pictures.

    It needs no server and no model: vectors are reduced, and typed words are matched with phrases of captions, whose
    vectors it holds.
    """

    out: str = "map.html"
    """The page to write."""
    embeddings: list[str] | None = None
    """Variant of an embeddings table, said again for a second one to compare it with; default: the first two."""
    queries: list[str] | None = None
    """A text that the page can search for exactly, as the model reads it; said again for each."""
    split: Split | None = None
    """Only tiles of this split."""
    domain: str | None = None
    """Only tiles of this domain."""
    bbox: str | None = None
    """Only tiles that meet this box: west,south,east,north in degrees; west > east across the antimeridian."""
    sample: PositiveInt | None = None
    """Only so many tiles of those, chosen by seed."""
    pictures_mib: NonNegativeFloat = 20
    """Room for pictures in the page; where not all have room, those that do are spread over the archive."""
    directions: int = Field(default=128, ge=2, le=1024)
    """Coordinates that are kept of a vector, a byte each: those that change scores least."""
    phrases: NonNegativeInt = 4000
    """Phrases of captions that typed words are matched with, the commonest."""
    seed: int = 0
    """Seed of the choice of tiles."""

    @model_validator(mode="after")
    def _are_two(self) -> Self:
        if len(self.embeddings or ()) > 2:
            raise ValueError("--embeddings: a page compares two at most")
        return self

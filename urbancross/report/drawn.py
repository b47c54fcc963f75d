"""What a gallery is made of, as plain values; and segments as they are drawn over their tile."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from urbancross.segments import shapes
from urbancross.segments.choice import ordered


class Colour(NamedTuple):
    fill: str
    ink: str  # that can be read on it
    name: str


COLOURS = (  # Okabe and Ito's, told apart by all eyes, and a grey
    Colour("#e69f00", "#000", "orange"),
    Colour("#56b4e9", "#000", "sky blue"),
    Colour("#f0e442", "#000", "yellow"),
    Colour("#d55e00", "#fff", "vermilion"),
    Colour("#009e73", "#000", "green"),
    Colour("#cc79a7", "#000", "pink"),
    Colour("#0072b2", "#fff", "blue"),
    Colour("#dddddd", "#000", "grey"),
)
LABEL = 0.042  # radius of a number's disc, as a share of the tile's longer side


class Fit(NamedTuple):
    """How well a segment fits the captions of its tile."""

    place: int  # among all segments of the tile, 1 the best
    score: float  # cosine
    phrase: str  # that fits it best


@dataclass(frozen=True)
class Drawn:
    """A segment, and how it is drawn in the pixels of its tile."""

    number: int  # 1 for rank 0
    colour: Colour
    path: str
    label: tuple[float, float]
    area_px: int
    share: float  # of the tile
    score: float
    predicted_iou: float | None
    stability: float | None
    fit: Fit | None = None


@dataclass(frozen=True)
class TileShown:
    tile_id: str
    image: bytes | None
    size: tuple[int, int] | None  # H, W; None where there is no picture
    segments: list[Drawn]  # by number
    count: int = 0  # of all segments, those not shown too
    reason: str | None = None  # why it has none
    captions: list[str] = field(default_factory=list)
    captions_reason: str | None = None  # why it has none
    ranks_reason: str | None = None  # why it has segments and no fit
    elsewhere: tuple[int, Fit] | None = None  # number of the segment that fits best, where it is not shown

    @property
    def by_area(self) -> list[Drawn]:
        """The largest first: the small ones are drawn over them."""
        return sorted(self.segments, key=lambda segment: -segment.area_px)

    @property
    def by_fit(self) -> list[Drawn]:
        return sorted((s for s in self.segments if s.fit), key=lambda s: s.fit.place if s.fit else 0)

    @property
    def label_radius(self) -> float:
        return LABEL * max(self.size or (0, 0))


@dataclass(frozen=True)
class Gallery:
    title: str
    subtitle: str
    tiles: list[TileShown]
    made_by: dict[str, dict[str, Any]]
    """Table -> the settings that made it."""
    ranked: bool = False


def drawn(
    segments: Sequence[dict[str, Any]], most: int, ranks: dict[str, Any] | None
) -> tuple[list[Drawn], tuple[int, Fit] | None]:
    """The first segments of a tile as they are drawn; and the one that fits its captions best, if it is not of them.

    Args:
        segments: rows of `schemas.SEGMENT`.
        most: how many to draw.
        ranks: the tile's row of `schemas.RANKS`.

    Raises:
        TileError: a mask cannot be drawn.
    """
    by_rank = ordered(segments, "quality")
    fits = fits_of(by_rank, ranks)
    found: list[Drawn] = []
    for number, segment in enumerate(by_rank[:most], start=1):
        shape, (h, w) = shapes.outline(segment), segment["size"]
        taken = [other.label for other in found]
        found.append(
            Drawn(
                number,
                COLOURS[(number - 1) % len(COLOURS)],
                shapes.svg_path(shape),
                apart(shapes.roomiest_point(shape), taken, LABEL * max(h, w), (h, w)),
                segment["area"],
                segment["area"] / (h * w),
                segment["score"],
                segment["predicted_iou"],
                segment["stability"],
                fits.get(number),
            )
        )
    best = min(fits, key=lambda number: fits[number].place, default=None)
    return found, None if best is None or best <= most else (best, fits[best])


def fits_of(by_rank: Sequence[dict[str, Any]], ranks: dict[str, Any] | None) -> dict[int, Fit]:
    """Number of a segment -> its fit; empty where the tile has no ranks, or those of other segments."""
    scores, phrases = (ranks or {}).get("scores") or [], (ranks or {}).get("phrases") or []
    if not by_rank or not len(scores) == len(phrases) == len(by_rank):
        return {}
    number = {id(segment): place for place, segment in enumerate(by_rank)}
    order = [number[id(segment)] for segment in ordered(by_rank, "caption", ranks=ranks)]
    return {i + 1: Fit(place, scores[i], phrases[i]) for place, i in enumerate(order, start=1)}


def apart(
    point: tuple[float, float], taken: Sequence[tuple[float, float]], radius: float, size: Sequence[int]
) -> tuple[float, float]:
    """The point, drawn in from the tile's edge by the radius of a disc; or the next one to its right where it is free.

    Args:
        taken: where other discs are; the one to place touches none of them.
        size: H, W of the tile.
    """
    x, y = (max(radius, min(at, side - radius)) for at, side in zip(point, reversed(size), strict=True))
    for _ in range(2 * len(taken) + 1):
        if all((x - a) ** 2 + (y - b) ** 2 >= (2 * radius) ** 2 for a, b in taken):
            break
        x = x + 2 * radius if x + 3 * radius <= size[1] else radius
    return round(x, 1), round(y, 1)

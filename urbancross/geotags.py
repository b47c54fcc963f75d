"""Map features -> the geo-tags at the centre of a tile, around it, and near it: all tiles of a batch in one join.

A geo-tag is one `key=value` fact about the ground that can be seen from above (`maps/visible.py`). Tiles and features
come in degrees; what is measured is measured in metres on a map about each tile's own centre.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import shapely

from urbancross import globe
from urbancross.errors import TileError
from urbancross.maps.features import Features
from urbancross.maps.visible import width_m

BATCH_TILES = 1024  # joined at a time: neighbours share the features around them
SAME_M = 1e-3  # what is nearer is the same place
NEAR_POLE = 85.0  # degrees of latitude beyond which a box in degrees tells little of distances
MAX_REACH_M = 2_000_000.0  # of a neighbourhood: beyond, a plane about a tile is no map any more


@dataclass(frozen=True)
class Tiles:
    """The places of tiles.

    Attributes:
        outlines: `[N]` areas in degrees, cut at the antimeridian.
        centres: `[N, 2]` degrees.
        planes: `[N]` the outlines in metres about their centres.
        sides_m: `[N]` of a square of the same area.
        are_boxes: `[N]` bool, whether the outlines are those of their bounds.
    """

    outlines: np.ndarray
    centres: np.ndarray
    planes: np.ndarray
    sides_m: np.ndarray
    are_boxes: np.ndarray

    @classmethod
    def at(cls, outlines: np.ndarray) -> "Tiles":
        """
        Raises:
            TileError: an outline encloses nothing.
        """
        outlines = outlines.copy()
        shapely.prepare(outlines)
        areas = shapely.area(outlines)
        if (shapely.is_empty(outlines) | (areas == 0)).any():
            raise TileError("its footprint encloses nothing; want bounds with south < north, in degrees")
        centres = globe.centres(outlines)
        planes = globe.on_planes(outlines, centres)
        are_boxes = shapely.area(shapely.envelope(outlines)) - areas < 1e-12
        return cls(outlines, centres, planes, np.sqrt(shapely.area(planes)), are_boxes)

    def windows(self, sides: float) -> np.ndarray:
        """`[N]` areas in degrees that hold at least what lies within so many sides of each tile."""
        edges = shapely.bounds(self.planes)
        reach = np.minimum(sides * self.sides_m, MAX_REACH_M)[:, None] * [-1, -1, 1, 1]
        west, south, east, north = (edges + reach).T
        ring = [
            (west, south),
            (0, south),
            (east, south),
            (east, 0),
            (east, north),
            (0, north),
            (west, north),
            (west, 0),
        ]
        xy = np.array([np.broadcast_arrays(x, y) for x, y in ring], dtype=float)  # [8, 2, N]
        degrees = np.stack([globe.unplane(corner.T, self.centres) for corner in xy])  # [8, N, 2]
        lons, lats = degrees[..., 0], degrees[..., 1]
        found = shapely.box(lons.min(0), lats.min(0), lons.max(0), lats.max(0))
        bulge = np.abs(self.centres[:, 1]) + np.degrees(self.sides_m * (sides + 1) / globe.EQUATOR_M)
        for i in np.flatnonzero((np.ptp(lons, axis=0) > 180) | (bulge > 85)):
            found[i] = globe.outline(lons[:, i], lats[:, i])[0]
        return found


@dataclass(frozen=True)
class Pairs:
    """Tiles and features that meet, in the order of tiles and of features in each.

    Attributes:
        tile, feature: `[P]` numbers.
        shapes: `[P]` the part of the feature in the tile, in degrees.
        areas_m2: `[P]` what it covers; of a line, by its nominal width.
    """

    tile: np.ndarray
    feature: np.ndarray
    shapes: np.ndarray
    areas_m2: np.ndarray

    def take(self, kept: np.ndarray) -> "Pairs":
        return Pairs(self.tile[kept], self.feature[kept], self.shapes[kept], self.areas_m2[kept])


@dataclass(frozen=True)
class Boxes:
    """Features as boxes: `[N, 4]` edges in degrees, and what each whole feature covers."""

    edges: np.ndarray
    areas_m2: np.ndarray

    @classmethod
    def of(cls, features: Features, widths_m: np.ndarray) -> "Boxes":
        return cls(shapely.bounds(features.shapes).reshape(-1, 4), _covers_m2(features.shapes, widths_m))


def tag_tiles(tiles: Tiles, features: Features, max_tags: int = 12, nearby: float = 2.0) -> list[dict[str, Any]]:
    """The columns of `schemas.GEOTAGS` for each tile: tags as `key=value`, none twice, and how many features have them.

    Features under the centre come smallest first (the school before its district); a line is under it within half its
    nominal width. Where nothing is under it, the nearest feature in the tile is central. The surrounding tags are
    ordered by the area that all features of the tag cover within the tile, points last, then by name; the nearby ones,
    of features outside, by the area in reach, which decays with e to the distance in tile sides.

    Args:
        max_tags: how many tags to give in all; central ones first, nearby ones last.
        nearby: how far to look for nearby tags, in sides of the tile; 0 for none.
    """
    tree = shapely.STRtree(features.shapes)
    widths_m = _widths_m(features)
    count = len(tiles.outlines)
    boxes = Boxes.of(features, widths_m)
    inside = _inside(tiles, tree, features, boxes, widths_m)
    central = _central(tiles, inside, widths_m)
    center = _told(inside.take(central), features, count, by_size=True)
    around = _told(inside.take(~central), features, count)
    numbers = _how_many(inside, features)
    found: list[dict[str, Any]] = []
    rooms: list[int] = []
    for tile in range(count):
        first = center[tile][:max_tags]
        others = _others(around[tile], first, max_tags - len(first))
        rooms.append(max_tags - len(first) - len(others))
        found.append({"center": first, "surrounding": others, "nearby": []})
    sparse = np.flatnonzero(rooms)
    if nearby > 0 and len(sparse):
        outside = _outside(tiles, sparse, inside, tree, boxes, nearby)
        for tile, codes in enumerate(_told(outside, features, count)):
            told = found[tile]
            told["nearby"] = _others(codes, told["center"] + told["surrounding"], rooms[tile])
    words = features.vocabulary
    return [
        {f"{kind}_tags": [words[code] for code in codes] for kind, codes in told.items()}
        | {f"{kind}_counts": [numbers[tile, code] for code in told[kind]] for kind in ("center", "surrounding")}
        for tile, told in enumerate(found)
    ]


def _others(codes: list[int], told: list[int], room: int) -> list[int]:
    return [code for code in codes if code not in told][:room]


def _inside(tiles: Tiles, tree: shapely.STRtree, features: Features, boxes: Boxes, widths_m: np.ndarray) -> Pairs:
    """The features in each tile, clipped to it; one that only touches its edge is not in it.

    Most features lie in the middle of a tile that is a box, where their own boxes tell it.
    """
    tile, feature = tree.query(tiles.outlines)
    edges, place = shapely.bounds(tiles.outlines)[tile], boxes.edges[feature]
    enclosed = (place[:, :2] > edges[:, :2]).all(axis=1) & (place[:, 2:] < edges[:, 2:]).all(axis=1)
    whole = enclosed & tiles.are_boxes[tile]
    met = whole.copy()
    met[~whole] = shapely.intersects(tiles.outlines[tile[~whole]], features.shapes[feature[~whole]])
    order = np.lexsort([feature, tile])
    order = order[met[order]]
    tile, feature, whole = tile[order], feature[order], whole[order]
    shapes = features.shapes[feature]
    dimensions = shapely.get_dimensions(shapes)
    whole[~whole] = shapely.contains_properly(tiles.outlines[tile[~whole]], shapes[~whole])
    cut = np.flatnonzero(~whole)
    shapes[cut] = _clipped(shapes[cut], tiles, tile[cut])
    areas_m2 = boxes.areas_m2[feature]
    areas_m2[cut] = _covers_m2(shapes[cut], widths_m[feature[cut]])
    return Pairs(tile, feature, shapes, areas_m2).take(shapely.get_dimensions(shapes) == dimensions)


def _covers_m2(shapes: np.ndarray, widths_m: np.ndarray) -> np.ndarray:
    """What shapes cover: areas as they are, lines by a width, points nothing."""
    lines = shapely.get_dimensions(shapes) == 1
    areas_m2 = globe.areas_m2(shapes)
    areas_m2[lines] = globe.lengths_m(shapes[lines]) * widths_m[lines]
    return areas_m2


def _clipped(shapes: np.ndarray, tiles: Tiles, tile: np.ndarray) -> np.ndarray:
    """The part of each shape in its tile's outline.

    A cut along a box takes a seventh of the time of an intersection, so each tile's box goes first; an outline that is
    no box has the little that is left to intersect, and so has a shape that the quicker cut leaves in disorder.

    Args:
        tile: `[len(shapes)]` numbers of tiles, in order.
    """
    if not len(tile):
        return shapes
    edges = shapely.bounds(tiles.outlines)
    begins = _begins(tile)
    parts = [
        shapely.clip_by_rect(shapes[start:stop], *edges[tile[start]])
        for start, stop in zip(begins, [*begins[1:], len(tile)], strict=True)
    ]
    found = np.concatenate(parts)
    valid = shapely.is_valid(found)
    found[~valid] = shapes[~valid]
    again = np.flatnonzero(~(tiles.are_boxes[tile] & valid))
    found[again] = shapely.intersection(found[again], tiles.outlines[tile[again]])
    return found


def _central(tiles: Tiles, pairs: Pairs, widths_m: np.ndarray) -> np.ndarray:
    """`[P]` bool: the features under each tile's centre, or else the first of those that are nearest to it."""
    central = np.zeros(len(pairs.tile), dtype=bool)
    near = _maybe_nearest(tiles, pairs, widths_m)
    shapes, tile = pairs.shapes[near], pairs.tile[near]
    corners, shape = shapely.get_coordinates(shapes, return_index=True)
    shapes = shapely.set_coordinates(shapes, globe.plane(corners, tiles.centres, tile[shape]))
    distances_m = shapely.distance(shapes, shapely.Point(0, 0))
    lines = shapely.get_dimensions(shapes) == 1
    distances_m = np.maximum(distances_m - np.where(lines, widths_m[pairs.feature[near]] / 2, 0.0), 0.0)
    distances_m[distances_m < SAME_M] = 0  # the seam of a polygon around a pole is a line through it
    order = np.lexsort([near, distances_m, tile])
    central[near[order[_begins(tile[order])]]] = True
    central[near[distances_m == 0]] = True
    return central


def _maybe_nearest(tiles: Tiles, pairs: Pairs, widths_m: np.ndarray) -> np.ndarray:
    """Pairs whose box may be as near to the tile's centre as the farthest corner of another one's box.

    Saves most of the exact distances. The few metres and the percent allow for lines' widths and for what a box in
    degrees gets wrong; near a pole, where it is all wrong, every pair is taken.
    """
    if not len(pairs.tile):
        return np.zeros(0, dtype=int)
    lon, lat = tiles.centres[pairs.tile].T
    west, south, east, north = shapely.bounds(pairs.shapes).T
    per_lon, per_lat = globe.metres_per_degree(lat)
    least = np.hypot(_gap(west - lon, east - lon) * per_lon, _gap(south - lat, north - lat) * per_lat)
    most = np.hypot(
        np.maximum(abs(west - lon), abs(east - lon)) * per_lon, np.maximum(abs(south - lat), abs(north - lat)) * per_lat
    )
    begins = _begins(pairs.tile)
    bound = np.minimum.reduceat(most, begins)[np.cumsum(np.diff(pairs.tile, prepend=-1) > 0) - 1]
    near = least * 0.99 - widths_m[pairs.feature] / 2 <= bound * 1.01 + 1
    return np.flatnonzero(near | (abs(lat) > NEAR_POLE) | (east - west > 180))


def _gap(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How far zero is from a range."""
    return np.maximum(np.maximum(low, -high), 0)


def _begins(numbers: np.ndarray) -> np.ndarray:
    """Where each run of equal numbers begins."""
    return np.flatnonzero(np.diff(numbers, prepend=-1))


def _outside(
    tiles: Tiles, some: np.ndarray, inside: Pairs, tree: shapely.STRtree, boxes: Boxes, nearby: float
) -> Pairs:
    """The features in reach of some tiles and not in them, each with its area worth less the farther away it is.

    Told from boxes alone, as many more features are near a tile than in it: how far a feature's box is from that of the
    tile, and what share of it lies in reach.
    """
    windows = tiles.windows(nearby)[some]
    row, feature = tree.query(windows)
    tile = some[row]
    size = len(boxes.areas_m2)
    out = ~np.isin(tile * size + feature, inside.tile * size + inside.feature, kind="sort")
    wide = np.ptp(boxes.edges.reshape(-1, 2, 2), axis=1).max(axis=1) > np.degrees(tiles.sides_m.min() / globe.EQUATOR_M)
    shapely.prepare(windows)
    doubtful = np.flatnonzero(out & wide[feature])  # a small feature is where its box is
    out[doubtful] = shapely.intersects(windows[row[doubtful]], tree.geometries[feature[doubtful]])
    row, tile, feature = row[out], tile[out], feature[out]
    place, window = boxes.edges[feature], shapely.bounds(windows)[row]
    middle, half = (place[:, :2] + place[:, 2:]) / 2, (place[:, 2:] - place[:, :2]) / 2
    scale = np.maximum(np.column_stack(globe.metres_per_degree(tiles.centres[:, 1])), 1e-6)
    reach = half + (np.ptp(shapely.bounds(tiles.planes).reshape(-1, 2, 2), axis=1) / 2 / scale)[tile]
    apart = np.abs(middle - tiles.centres[tile])
    apart[:, 0] = np.minimum(apart[:, 0], 360 - apart[:, 0])
    away_m = np.hypot(*(np.maximum(apart - reach, 0) * scale[tile]).T)
    share = np.clip(
        (np.minimum(place[:, 2:], window[:, 2:]) - np.maximum(place[:, :2], window[:, :2]))
        / np.maximum(place[:, 2:] - place[:, :2], 1e-12),
        0,
        1,
    ).prod(axis=1)
    sides = away_m / tiles.sides_m[tile]
    worth = boxes.areas_m2[feature] * share * np.exp(-sides)
    return Pairs(tile, feature, np.empty(len(tile), dtype=object), worth).take(sides <= nearby)


def _told(pairs: Pairs, features: Features, count: int, by_size: bool = False) -> list[list[int]]:
    """The tags of each tile's pairs, none twice: those that cover most first, then by name.

    Args:
        count: how many tiles there are.
        by_size: those of the smallest feature first instead, as the feature has them.
    """
    if by_size:
        pairs = pairs.take(np.lexsort([pairs.areas_m2, pairs.tile]))
    pair, codes = _tags(pairs, features)
    tag, first, same = np.unique(
        pairs.tile[pair] * len(features.vocabulary) + codes, return_index=True, return_inverse=True
    )
    tile = tag // max(len(features.vocabulary), 1)
    if by_size:
        order = np.lexsort([first, tile])
    else:
        order = np.lexsort([tag, -np.bincount(same, pairs.areas_m2[pair], len(tag)), tile])
    ends = np.searchsorted(tile, np.arange(count + 1))
    codes = (tag % max(len(features.vocabulary), 1))[order]
    return [codes[start:stop].tolist() for start, stop in pairwise(ends)]


def _tags(pairs: Pairs, features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Each tag of each pair: the number of the pair, and the tag's place in the vocabulary."""
    begins = features.ends[pairs.feature]
    lengths = features.ends[pairs.feature + 1] - begins
    pair = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(len(pair)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return pair, features.codes[begins[pair] + step]


def _how_many(pairs: Pairs, features: Features) -> dict[tuple[int, int], int]:
    """How many features of a tile have a tag, by tile and tag."""
    pair, codes = _tags(pairs, features)
    size = max(len(features.vocabulary), 1)
    tag, number = np.unique(pairs.tile[pair] * size + codes, return_counts=True)
    return dict(zip(zip((tag // size).tolist(), (tag % size).tolist(), strict=True), number.tolist(), strict=True))


def _widths_m(features: Features) -> np.ndarray:
    """The nominal width of each feature, were it a line: that of its widest tag."""
    each = np.array([width_m([tag]) for tag in features.vocabulary])
    return np.maximum.reduceat(each[features.codes], features.ends[:-1]) if len(features) else np.empty(0)

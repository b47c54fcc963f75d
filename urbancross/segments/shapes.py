"""Masks -> polygons: along the edges of their pixels, in pixels or in a reference system.

A corner (x, y) of a pixel counts from the tile's upper left, x to the right and y down, as `schemas.TRANSFORM` has it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from rasterio import features
from shapely.geometry.base import BaseGeometry

from urbancross import globe
from urbancross.errors import TileError
from urbancross.segments.masks import Mask, decode


def outline(segment: Mask | dict[str, Any], simplify_px: float = 0) -> BaseGeometry:
    """What a segment covers, in pixels: a polygon, or several where the mask is in pieces, with its holes.

    Pixels that touch at a corner alone belong to different pieces, so the shape is valid, and its area is the number of
    pixels.

    Args:
        segment: a mask, or a row of `schemas.SEGMENT`.
        simplify_px: how far a simpler outline may stray from the pixels' edges; 0: not at all.

    Raises:
        TileError: the mask is empty, or not the one that the box is of.
    """
    box = segment.box if isinstance(segment, Mask) else segment["box"]
    x0, y0, x1, y1 = box
    pixels = decode(segment)
    inside = pixels[y0:y1, x0:x1]  # a third of the tile or less, as a rule: twice as fast
    if not inside.any() or inside.sum() != pixels.sum():
        raise TileError(f"a mask of {pixels.sum()} pixels does not lie in its box {list(box)}; segment again")
    told = features.shapes(inside.view(np.uint8), mask=inside, connectivity=4)
    pieces = [shapely.Polygon(rings[0], rings[1:]) for rings in (shape["coordinates"] for shape, _ in told)]
    shape = shapely.transform(
        pieces[0] if len(pieces) == 1 else shapely.MultiPolygon(pieces), lambda xy: xy + np.array([x0, y0])
    )
    return simpler(shape, simplify_px) if simplify_px else shape


def simpler(shape: BaseGeometry, tolerance: float) -> BaseGeometry:
    """A shape with fewer corners, still an area and valid; as it was where nothing would be left."""
    found = shapely.simplify(shape, tolerance)
    if not found.is_valid:  # pieces that have come to overlap
        found = shapely.union_all([shapely.make_valid(piece) for piece in shapely.get_parts(found)])
        areas = [piece for piece in shapely.get_parts(found) if shapely.get_dimensions(piece) == 2]
        found = shapely.union_all(areas)
    return shape if found.is_empty else found


def placed(shapes: Sequence[BaseGeometry], transform: Sequence[float]) -> np.ndarray:
    """Shapes in pixels where a tile's `transform` puts them, outer rings counter-clockwise."""
    a, b, c, d, e, f = transform
    turn, move = np.array([[a, d], [b, e]]), np.array([c, f])
    there = shapely.transform(np.array(shapes, dtype=object), lambda xy: xy @ turn + move)
    return shapely.orient_polygons(there)


def determinant(transform: Sequence[float]) -> float:
    """Square units of the system that a pixel covers; negative where x to y turns the other way, as north up does."""
    a, b, _, d, e, _ = transform
    return a * e - b * d


def across(bounds: Sequence[float], size: Sequence[int]) -> tuple[float, ...]:
    """The transform of a tile of H, W pixels that fills its bounds, north up; past 180 degrees where they cross it."""
    west, south, east, north = bounds
    east = east if west <= east else east + 360
    return ((east - west) / size[1], 0.0, west, 0.0, (south - north) / size[0], north)


def cut_at_antimeridian(shapes: np.ndarray) -> np.ndarray:
    """Shapes in degrees, those that run past 180 cut there and moved back."""
    west, _, east, _ = shapely.bounds(shapes).T
    found = shapes.copy()
    for i in np.flatnonzero((west < -180) | (east > 180)):
        found[i] = shapely.orient_polygons(globe.wrapped(shapes[i]))
    return found


def svg_path(shape: BaseGeometry) -> str:
    """The `d` of an SVG path for a shape in pixels, to be filled by the rule `evenodd`."""
    rings = [ring for polygon in shapely.get_parts(shape) for ring in (polygon.exterior, *polygon.interiors)]
    return "".join(_ring_path(shapely.get_coordinates(ring)) for ring in rings)


def _ring_path(corners: np.ndarray) -> str:
    (x, y), *others = corners[:-1].tolist()
    said = [f"M{x:g} {y:g}"]
    for next_x, next_y in others:
        said.append(f"H{next_x:g}" if next_y == y else f"V{next_y:g}" if next_x == x else f"L{next_x:g} {next_y:g}")
        x, y = next_x, next_y
    return "".join([*said, "Z"])


def roomiest_point(shape: BaseGeometry) -> tuple[float, float]:
    """The point of a shape that is furthest from its outline, to within a pixel: where a number is written on it."""
    x, y = shapely.get_coordinates(shapely.maximum_inscribed_circle(shape, tolerance=1))[0]
    return float(x), float(y)

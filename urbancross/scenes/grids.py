"""Squares on the ground: of a scene's own pixels, in metres of its system, of web maps (XYZ), or around points that lie
evenly on the globe.

A grid names each of its squares, so tiles of two scenes, or of two years, of one place have one name there. Squares
overlap by a share of their side: their centres come closer, or on a web map, whose centres are given, they grow.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from urbancross.globe import EQUATOR_M

WEB_MERCATOR = CRS.from_epsg(3857)
WEB_SIDE_M = 2 * math.pi * EQUATOR_M  # of the whole web map, in its own metres
MERIDIAN_M = 20_003_931.0  # from pole to pole
NORTHERNMOST_UTM, SOUTHERNMOST_UTM = 84.0, -80.0  # beyond them the poles' own systems


@dataclass(frozen=True)
class Square:
    """Where the pixels of a tile lie: square ones, in rows from north to south.

    Attributes:
        name: of the square in its grid.
        transform: from pixels to `crs`.
    """

    name: str
    crs: CRS
    transform: Affine


@dataclass(frozen=True)
class Pixels:
    """Squares of a scene's own pixels, from its first one; what is left at the right and bottom edge is dropped."""

    side_px: int
    overlap: float = 0.0

    def within(self, width: int, height: int) -> Iterator[tuple[str, tuple[int, int, int, int]]]:
        """Names and windows (x0, y0, x1, y1), row by row."""
        step = max(round(self.side_px * (1 - self.overlap)), 1)
        for row, y in enumerate(range(0, height - self.side_px + 1, step)):
            for col, x in enumerate(range(0, width - self.side_px + 1, step)):
                yield f"{row:05d}-{col:05d}", (x, y, x + self.side_px, y + self.side_px)


@dataclass(frozen=True)
class Metres:
    """Squares of so many metres in a scene's own reference system, counted from its origin.

    Attributes:
        side_px: pixels of a side.
        gsd_m: metres of a pixel.
        overlap: share of a side that neighbours have in common.
    """

    side_px: int
    gsd_m: float
    overlap: float = 0.0

    def within(self, crs: CRS, west: float, south: float, east: float, north: float) -> Iterator[Square]:
        """Squares that meet a box in `crs`, row by row from the north-west."""
        unit = self.gsd_m / crs.linear_units_factor[1]
        side = self.side_px * unit
        step = side * (1 - self.overlap)
        for row in reversed(range(math.ceil((south - side) / step), math.ceil(north / step))):
            for col in range(math.ceil((west - side) / step), math.ceil(east / step)):
                transform = Affine(unit, 0, col * step, 0, -unit, row * step + side)
                yield Square(f"{row}_{col}", crs, transform)


@dataclass(frozen=True)
class WebMap:
    """Tiles of a web map at one zoom, named zoom-x-y as everywhere.

    Attributes:
        overlap: share of a side that a tile grows by, all around.
    """

    side_px: int
    zoom: int
    overlap: float = 0.0

    def within(self, west: float, south: float, east: float, north: float) -> Iterator[Square]:
        """Tiles that meet a box in metres of the web map, row by row from the north-west; one that runs past the
        antimeridian goes on behind it."""
        count = 2**self.zoom
        side = WEB_SIDE_M / count
        half = WEB_SIDE_M / 2
        grown = side * (1 + self.overlap)
        unit, margin = grown / self.side_px, side * self.overlap / 2
        first, last = (math.floor((half - y) / side) for y in (north, south))
        for y in range(max(first, 0), min(last, count - 1) + 1):
            for x in range(math.floor((west + half) / side), math.ceil((east + half) / side)):
                transform = Affine(unit, 0, x * side - half - margin, 0, -unit, half - y * side + margin)
                yield Square(f"{self.zoom}-{x % count}-{y}", WEB_MERCATOR, transform)


@dataclass(frozen=True)
class Globe:
    """Squares around points that lie evenly on the globe, as Major TOM has them (Francis and Czerkawski 2024): rows of
    one distance from equator to pole, each with as many columns as fit; a square lies in its point's UTM zone.

    Attributes:
        overlap: share of a side that neighbours at the least have in common.
    """

    side_px: int
    gsd_m: float
    overlap: float = 0.0

    @property
    def rows(self) -> int:
        """From pole to pole, an even number."""
        step = self.side_px * self.gsd_m * (1 - self.overlap)
        return 2 * math.ceil(MERIDIAN_M / step / 2)

    def columns(self, row: int) -> int:
        """Around the globe, where the row comes nearest to the equator."""
        nearest = max(min(abs(row), abs(row + 1)) * 180 / self.rows, 0.0)
        return max(math.ceil(2 * self.rows * math.cos(math.radians(nearest))), 1)

    def within(self, west: float, south: float, east: float, north: float) -> Iterator[Square]:
        """Squares whose points lie in a box of degrees, row by row from the north-west; west > east across 180."""
        height = 180 / self.rows
        if west > east:
            east += 360
        low, high = -self.rows // 2, self.rows // 2 - 1
        for row in range(min(math.floor(north / height), high), max(math.floor(south / height), low) - 1, -1):
            columns = self.columns(row)
            width = 360 / columns
            first, last = math.floor(west / width), math.floor(east / width)
            for col in range(first, min(last, first + columns - 1) + 1):
                yield self.square(row, (col + columns // 2) % columns - columns // 2)

    def square(self, row: int, col: int) -> Square:
        """
        Args:
            row: from 0 north of the equator; -1 is the one south of it.
            col: likewise east and west of Greenwich.
        """
        lat, lon = (row + 0.5) * 180 / self.rows, (col + 0.5) * 360 / self.columns(row)
        crs = zone_of(lat, lon)
        x, y = at(crs, lat, lon)
        half = self.side_px * self.gsd_m / 2
        left, top = (round(edge / self.gsd_m) * self.gsd_m for edge in (x - half, y + half))
        names = (f"{abs(row if row >= 0 else row + 1)}{'U' if row >= 0 else 'D'}",
                 f"{abs(col if col >= 0 else col + 1)}{'R' if col >= 0 else 'L'}")  # fmt: skip
        return Square("_".join(names), crs, Affine(self.gsd_m, 0, left, 0, -self.gsd_m, top))


def zone_of(lat: float, lon: float) -> CRS:
    """The UTM zone of a place, Norway's and Svalbard's exceptions left aside; at the poles, their stereographic map."""
    if lat >= NORTHERNMOST_UTM:
        return CRS.from_epsg(32661)
    if lat < SOUTHERNMOST_UTM:
        return CRS.from_epsg(32761)
    zone = int((lon + 180) % 360 // 6) + 1
    return CRS.from_epsg((32600 if lat >= 0 else 32700) + zone)


def at(crs: CRS, lat: float, lon: float) -> tuple[float, float]:
    xs, ys = warp_points("EPSG:4326", crs, [lon], [lat])
    return xs[0], ys[0]


Grid = Pixels | Metres | WebMap | Globe

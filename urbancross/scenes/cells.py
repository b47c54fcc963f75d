"""A scene to its tiles on a grid, before a pixel is read."""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.warp import transform as warp_points

from urbancross import globe
from urbancross.errors import TileError, TileSkipped
from urbancross.scenes import rasters
from urbancross.scenes.grids import WEB_SIDE_M, Globe, Grid, Metres, Pixels, Square, WebMap
from urbancross.scenes.placing import STRAY_PX, Placing, degrees, edges, gsd_m, outlines
from urbancross.scenes.remote import PLAIN, Access, Patience, web_of

EDGE_STEPS = 16  # points along a side of a scene, whose box in another system they span
SAMPLES = 8  # points along a side of a square, which tell how much of it a scene covers
OUTSIDE_PX = 0.01  # of the scene that a point may lie and still be in it
MOST_NORTHERN = 85.0511287798066  # where a web map ends


@dataclass(frozen=True)
class Cell:
    """One tile of a scene: its place before its pixels are read."""

    tile_id: str  # "{scene}/{row}-{col}" or "{scene}/{square}", scene being its path in its source without its suffix
    window: (
        tuple[int, int, int, int] | None
    )  # x0, y0, x1, y1 in pixels of the scene; None: `crs` and `transform` say it
    bounds: tuple[float, float, float, float]  # west, south, east, north in degrees; west > east across 180
    footprint: bytes  # what it covers, as WKB in degrees, cut at the antimeridian
    crs: str
    transform: tuple[float, ...]  # as `schemas.TRANSFORM`
    gsd_m: float
    datetime: str | None


@contextmanager
def opened(scene: str, access: Access = PLAIN) -> Iterator[Any]:
    """A raster open in rasterio.

    Raises:
        TileError: it is none, or it cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            raster = rasters.opened(scene, web_of(access), Patience(access.retry_s))
        except RasterioIOError as error:
            raise TileError(f"not a raster: {error}") from error
        except UnicodeDecodeError as error:
            raise TileError(
                "its reference system has a name that is not UTF-8; give it anew with gdal_edit.py -a_srs"
            ) from error
        with raster.dataset:
            try:
                yield raster.dataset
            except RasterioError as error:
                raster.check()
                raise TileError(f"cannot be read: {plain(error)}") from error
            raster.check()


def cells(raster: Any, name: str, grid: Grid, min_valid: float = 1.0) -> list[Cell]:
    """
    Args:
        raster: open in rasterio.
        name: what the tiles' ids begin with.
        min_valid: share of a square that has to lie within the raster.

    Raises:
        TileError: the raster does not say where on the globe it lies, or not so that the grid can be laid over it.
        TileSkipped: it has no whole tile.
    """
    placing, when = Placing.of(raster), _datetime(raster.tags().get("TIFFTAG_DATETIME"))
    size = (raster.width, raster.height)
    try:
        if isinstance(grid, Pixels):
            found = _windows(placing, size, grid)
        else:
            found = [
                (square.name, None, square.crs, square.transform) for square in _squares(placing, size, grid, min_valid)
            ]
        if not found and isinstance(grid, Pixels):
            told = f"{raster.width} x {raster.height} px"
            raise TileSkipped(f"{told}, smaller than a tile of {grid.side_px}; lower --tile-px")
        if not found:
            raise TileSkipped("no square of the grid lies within it; lower --gsd, --tile-px or --min-valid")
        return _cells(placing, placing.gsd_m(*size), found, name, grid.side_px, when)
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        raise TileError(f"cannot be placed on the globe: {plain(error)}") from error


Found = tuple[str, tuple[int, int, int, int] | None, CRS, Affine]  # name, window, and where its pixels lie


def _windows(placing: Placing, size: tuple[int, int], grid: Pixels) -> list[Found]:
    return [
        (name, window, placing.crs, placing.transform_at(window[0], window[1], grid.side_px))
        for name, window in grid.within(*size)
    ]


def _squares(placing: Placing, size: tuple[int, int], grid: Metres | WebMap | Globe, min_valid: float) -> list[Square]:
    """Squares of which the scene covers enough."""
    whole = np.array([[0, 0, *size]], dtype=float)
    xs, ys = placing.to_crs(*edges(whole, EDGE_STEPS))
    if isinstance(grid, Metres):
        if placing.crs.is_geographic:
            raise TileError(
                "its reference system is in degrees, of which --grid metres has none; give --grid globe or xyz"
            )
        near = list(grid.within(placing.crs, xs.min(), ys.min(), xs.max(), ys.max()))
    else:
        _, (west, south, east, north) = globe.outline(*degrees(placing.crs, xs, ys)[0].T)
        if isinstance(grid, Globe):
            near = list(grid.within(west, south, east, north))
        else:
            south, north = (max(min(edge, MOST_NORTHERN), -MOST_NORTHERN) for edge in (south, north))
            x0, x1 = (lon / 360 * WEB_SIDE_M for lon in (west, east + 360 * (west > east)))
            y0, y1 = (math.asinh(math.tan(math.radians(lat))) * WEB_SIDE_M / (2 * math.pi) for lat in (south, north))
            near = list(grid.within(x0, y0, x1, y1))
    by_crs: dict[str, list[Square]] = {}
    for square in near:
        by_crs.setdefault(square.crs.to_wkt(), []).append(square)
    kept: set[str] = set()
    for squares in by_crs.values():
        shares = _covered(placing, size, squares, grid.side_px)
        kept |= {square.name for square, share in zip(squares, shares, strict=True) if share >= max(min_valid, 1e-9)}
    return [square for square in near if square.name in kept]


def _covered(placing: Placing, size: tuple[int, int], squares: list[Square], side_px: int) -> np.ndarray:
    """The share of each square that a scene covers, `[N]`, by points that lie evenly over it and on its corners."""
    along = np.linspace(0, side_px, SAMPLES)
    cols, rows = (axis.ravel() for axis in np.meshgrid(along, along))
    points = np.array([square.transform @ (cols, rows) for square in squares])  # [N, 2, SAMPLES²]
    xs, ys = points[:, 0].ravel(), points[:, 1].ravel()
    if squares[0].crs != placing.wrapped:
        xs, ys = (np.array(axis) for axis in warp_points(squares[0].crs, placing.wrapped, xs, ys))
    x, y = placing.to_pixels(xs, ys)
    inside = (x >= -OUTSIDE_PX) & (x <= size[0] + OUTSIDE_PX) & (y >= -OUTSIDE_PX) & (y <= size[1] + OUTSIDE_PX)
    return inside.reshape(len(squares), -1).mean(axis=1)


def _cells(placing: Placing, gsd: float, found: list[Found], name: str, side_px: int, when: str | None) -> list[Cell]:
    """
    Args:
        gsd: metres of a pixel of the scene.
    """
    made = []
    windows = [window for _, window, _, _ in found if window is not None]
    if windows:
        rings = outlines(placing, windows, STRAY_PX * gsd)
        sizes = [gsd] * len(windows)
    else:
        square = (0.0, 0.0, float(side_px), float(side_px))
        sizes = [gsd_m(crs, transform, side_px / 2, side_px / 2) for _, _, crs, transform in found]
        rings = [
            outlines(Placing(crs, transform, crs), [square], STRAY_PX * size)[0]
            for (_, _, crs, transform), size in zip(found, sizes, strict=True)
        ]
    for (each, window, crs, transform), ring, size in zip(found, rings, sizes, strict=True):
        shape, bounds = globe.outline(*ring.T)
        made.append(Cell(f"{name}/{each}", window, bounds, shape.wkb, str(crs), tuple(transform)[:6], size, when))
    return made


def _datetime(tag: str | None) -> str | None:
    """TIFF's "2024:06:01 10:20:30" as ISO 8601."""
    if not tag:
        return None
    day, _, time = tag.partition(" ")
    return f"{day.replace(':', '-')}T{time or '00:00:00'}Z"


def plain(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

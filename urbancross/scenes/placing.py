"""Where a raster's pixels lie, whether it says so by a transform or by ground control points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import GCPTransformer
from rasterio.warp import transform as warp_points

from urbancross import globe
from urbancross.errors import TileError

METRES_PER_DEGREE = 111_320.0
STEPS = (1, 4, 16, 64)  # pieces into which a tile's edges are cut until straight lines in degrees follow them
MOST_EAST = 540.0  # degrees: what runs further lies nowhere on the globe
STRAY_PX = 0.1  # how far such a line may stray from the edge


@dataclass(frozen=True)
class Placing:
    """From pixels (x right, y down, from the corner of the first one) to a reference system, and back.

    Attributes:
        transform: None where control points alone say it.
        wrapped: for who goes from the ground to pixels: `crs`, but of a raster in degrees that runs past the
            antimeridian, or from 0 to 360, with longitudes about its middle.
    """

    crs: CRS
    transform: Affine | None
    wrapped: CRS
    gcps: tuple[GroundControlPoint, ...] = ()

    @classmethod
    def of(cls, raster: Any) -> "Placing":
        """
        Raises:
            TileError: the raster does not say where it lies.
        """
        gcps, crs = raster.gcps
        if raster.crs is not None and not (gcps and raster.transform == Affine.identity()):
            return cls(raster.crs, raster.transform, _wrapped(raster))
        if len(gcps) >= 3 and crs is not None:
            return cls(crs, None, crs, tuple(gcps))
        raise TileError("no coordinate reference system; give one with gdal_edit.py -a_srs")

    def to_crs(self, cols: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.transform is not None:
            return self.transform @ (cols, rows)
        with GCPTransformer(self.gcps) as points:
            xs, ys = points.xy(rows.ravel(), cols.ravel(), offset="ul")
        return np.reshape(xs, cols.shape), np.reshape(ys, cols.shape)

    def to_pixels(self, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.transform is not None:
            return ~self.transform @ (xs, ys)
        with GCPTransformer(self.gcps) as points:
            rows, cols = points.rowcol(xs.ravel(), ys.ravel(), op=float)
        return np.reshape(cols, xs.shape), np.reshape(rows, xs.shape)

    def gsd_m(self, width: int, height: int) -> float:
        """Metres of ground per pixel at the middle of so many pixels."""
        return gsd_m(self.crs, self.transform_at(width / 2, height / 2, 1), 0, 0)

    def transform_at(self, x0: float, y0: float, side: float) -> Affine:
        """The transform of a square of pixels, from its corners."""
        if self.transform is not None:
            return self.transform @ Affine.translation(x0, y0)
        xs, ys = self.to_crs(np.array([x0, x0 + side, x0]), np.array([y0, y0, y0 + side]))
        return Affine(
            (xs[1] - xs[0]) / side, (xs[2] - xs[0]) / side, xs[0],
            (ys[1] - ys[0]) / side, (ys[2] - ys[0]) / side, ys[0],
        )  # fmt: skip


def _wrapped(raster: Any) -> CRS:
    cols, rows = np.array([0, raster.width, 0, raster.width]), np.array([0, 0, raster.height, raster.height])
    xs, _ = raster.transform @ (cols, rows)
    is_past = xs.min() < -180 or xs.max() > 180
    if not raster.crs.is_geographic or not is_past or np.abs(xs).max() > MOST_EAST:
        return raster.crs
    return CRS.from_string(f"{raster.crs.to_proj4()} +lon_wrap={(xs.min() + xs.max()) / 2:.6f}")


def degrees(crs: CRS, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """`[..., 2]` degrees, longitude first, whatever the system's own order.

    Raises:
        TileError: a point is not on the globe.
    """
    lonlat = np.array(warp_points(crs, "EPSG:4326", xs.ravel(), ys.ravel()))
    on_globe = (np.abs(lonlat) <= [[360], [90 + 1e-9]]).all(axis=0)  # false for NaN and infinity too
    if not on_globe.all():
        lon, lat = lonlat[:, np.flatnonzero(~on_globe)[0]]
        raise TileError(f"corners at {lon:g}, {lat:g} degrees are not on the globe; is {crs} its CRS?")
    lonlat[1] = np.clip(lonlat[1], -90, 90)
    return lonlat.T.reshape(*xs.shape, 2)


def edges(squares: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows `[N, 4 * steps]` of points along the edges of `(x0, y0, x1, y1)` `[N, 4]`, from (x0, y0) by
    (x0, y1)."""
    x0, y0, x1, y1 = squares.T[..., None]
    along = np.arange(steps) / steps
    cols = np.hstack([x0 + 0 * along, x0 + (x1 - x0) * along, x1 + 0 * along, x1 + (x0 - x1) * along])
    rows = np.hstack([y0 + (y1 - y0) * along, y1 + 0 * along, y1 + (y0 - y1) * along, y0 + 0 * along])
    return cols, rows


def outlines(placing: Placing, windows: Sequence[tuple[float, ...]], stray_m: float) -> list[np.ndarray]:
    """The outline of each window, `[corners, 2]` degrees: its edges cut into pieces where they would bend too much.

    Raises:
        TileError: a corner is not on the globe.
    """
    found: list[np.ndarray] = [np.empty((0, 2))] * len(windows)
    left, squares = np.arange(len(windows)), np.array(windows, dtype=float)
    for steps, finer in zip(STEPS, [*STEPS[1:], None], strict=True):
        rings = degrees(placing.crs, *placing.to_crs(*edges(squares[left], steps)))
        bent = np.zeros(len(left), dtype=bool)
        if finer is not None:
            bent = _stray_m(rings, degrees(placing.crs, *placing.to_crs(*edges(squares[left], finer)))) > stray_m
        for i in np.flatnonzero(~bent):
            found[left[i]] = rings[i]
        left = left[bent]
        if not len(left):
            break
    return found


def _stray_m(rings: np.ndarray, finer: np.ndarray) -> np.ndarray:
    """How far the straight lines of each ring lie from the points of a finer one, at most."""
    pieces = finer.shape[1] // rings.shape[1]
    ends = np.roll(rings, -1, axis=1)
    ends[..., 0] -= np.round((ends[..., 0] - rings[..., 0]) / 360) * 360
    share = (np.arange(pieces) / pieces)[:, None]
    straight = (rings[:, :, None] * (1 - share) + ends[:, :, None] * share).reshape(finer.shape)
    centre = np.repeat(finer[:, 0], finer.shape[1], axis=0)
    apart = globe.plane(straight.reshape(-1, 2), centre) - globe.plane(finer.reshape(-1, 2), centre)
    return np.hypot(*apart.T).reshape(len(rings), -1).max(axis=1)


def gsd_m(crs: CRS, transform: Affine, x: float, y: float) -> float:
    """Metres of ground per pixel at a pixel, however it is turned; of longer and shorter sides between."""
    side = abs(transform.determinant) ** 0.5
    if not crs.is_geographic:
        return round(side * crs.linear_units_factor[1], 4)
    _, latitude = transform @ (x, y)
    narrower = max(math.cos(math.radians(latitude)), 0.0)  # degrees of longitude than those of latitude
    return round(side * METRES_PER_DEGREE * narrower**0.5, 4)

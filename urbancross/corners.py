"""Where the corners of tiles lie: a picture that is turned against north, or mirrored, does not fill its bounds."""

import functools

import numpy as np
import pyarrow as pa
import pyproj
import shapely

from urbancross import schemas
from urbancross.globe import CRS84

SCHEMA = pa.schema([schemas.TILES.field(name) for name in ("bounds", "geometry", "crs", "transform")])
COLUMNS = SCHEMA.names
UPRIGHT = 0.002  # share of its bounds that corners may stray for a tile to count as upright: half a pixel of 256
OUTSIDE = 0.01  # share of its bounds that corners may lie outside, and the tile's bounds, transform and outline agree
OF_PICTURE = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])


def corners(tiles: pa.Table) -> np.ndarray:
    """The corners of every picture: upper left, upper right, lower right, lower left.

    Args:
        tiles: rows of `SCHEMA`.

    Returns:
        `[N, 4, 2]` degrees, longitude first and about the middle of the bounds, so that it may run past 180. NaN where
        the picture stands upright in its bounds, or nothing but bounds is known.
    """
    found = np.full((tiles.num_rows, 4, 2), np.nan)
    has = np.logical_and.reduce([tiles[name].is_valid().to_numpy() for name in COLUMNS])
    rows = np.flatnonzero(has)
    if not len(rows):
        return found
    known = tiles.take(pa.array(rows))
    bounds, transforms = (np.array(known[name].to_pylist(), float) for name in ("bounds", "transform"))
    shapes = shapely.from_wkb(known["geometry"].to_pylist(), on_invalid="ignore")
    systems, system = np.unique(np.array(known["crs"].to_pylist()), return_inverse=True)
    for number, crs in enumerate(systems.tolist()):
        of = np.flatnonzero(system == number)
        if (to_degrees := _to_degrees(crs)) is not None:
            found[rows[of]] = _corners(to_degrees, bounds[of], transforms[of], shapes[of])
    return found


def _corners(
    to_degrees: pyproj.Transformer, bounds: np.ndarray, transforms: np.ndarray, shapes: np.ndarray
) -> np.ndarray:
    linear, origin = transforms.reshape(-1, 2, 3)[..., :2], transforms.reshape(-1, 2, 3)[..., 2]
    with np.errstate(all="ignore"):
        points, of = shapely.get_coordinates(shapes, return_index=True)
        xs, ys = to_degrees.transform(points[:, 0], points[:, 1], direction="INVERSE")
        x, y = (np.column_stack([xs, ys]) - origin[of]).T
        if around := _around(to_degrees):
            x = x - around * np.round(x / around)
        (a, b), (c, d) = linear[of].transpose(1, 2, 0)
        pixels = np.column_stack([d * x - b * y, a * y - c * x]) / (a * d - b * c)[:, None]
        sides = np.zeros((len(shapes), 2))  # width and height: the footprint begins at the pixel (0, 0)
        np.maximum.at(sides, of, pixels)
        ends = np.einsum("nij,nkj->nki", linear, sides[:, None] * OF_PICTURE) + origin[:, None]
        lon, lat = to_degrees.transform(ends[..., 0], ends[..., 1])
        west, south, east, north = bounds.T[..., None]
        east = np.where(west <= east, east, east + 360)
        lon = lon - 360 * np.round((lon - (west + east) / 2) / 360)
        shares = np.stack([(lon - west) / (east - west), (north - lat) / (north - south)], axis=-1)
        is_within = ((shares > -OUTSIDE) & (shares < 1 + OUTSIDE)).all(axis=(1, 2)) & (sides > 0).all(axis=1)
        is_turned = is_within & (np.abs(shares - OF_PICTURE).max(axis=(1, 2)) > UPRIGHT)
    return np.where(is_turned[:, None, None], np.stack([lon, lat], axis=-1), np.nan)


def _around(to_degrees: pyproj.Transformer) -> float:
    """How far it is around the globe in a system whose eastings jump at 180 degrees, such as one in degrees; else 0."""
    (west, east), _ = to_degrees.transform(np.array([-180.0, 180.0]), np.zeros(2), direction="INVERSE")
    return float(east - west) if np.isfinite(east - west) and abs(east - west) > 1e-6 else 0.0


@functools.lru_cache(maxsize=64)
def _to_degrees(crs: str) -> pyproj.Transformer | None:
    try:
        return pyproj.Transformer.from_crs(crs, CRS84, always_xy=True)
    except pyproj.exceptions.CRSError:
        return None

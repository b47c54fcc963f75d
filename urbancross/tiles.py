"""From image files and scenes to tiles: the grid of a scene, its footprints, and whether an image can be used."""

import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, UnidentifiedImageError
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.warp import transform as warp_points
from rasterio.windows import Window

from urbancross import globe
from urbancross.errors import ConfigError, TileError, TileSkipped

ENCODINGS = {"JPEG", "PNG", "WEBP"}  # kept byte for byte; others are encoded anew as PNG
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how a file of either byte order begins, and a BigTIFF
MAX_SIDE_PX = 8192
METRES_PER_DEGREE = 111_320.0
STEPS = (1, 4, 16, 64)  # pieces into which a tile's edges are cut until straight lines in degrees follow them
STRAY_PX = 0.1  # how far such a line may stray from the edge


@dataclass(frozen=True)
class Cell:
    """One cell of a scene's grid: the tile's place before its pixels are read."""

    tile_id: str  # "{scene}/{row}-{col}", scene being the file's path in its source without its suffix
    window: tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the scene
    bounds: tuple[float, float, float, float]  # west, south, east, north in degrees; west > east across 180
    footprint: bytes  # what the window covers, as WKB in degrees, cut at the antimeridian
    crs: str
    transform: tuple[float, ...]  # as `schemas.TRANSFORM`
    gsd_m: float
    datetime: str | None


def cells(scene: Path, name: str, tile_px: int) -> list[Cell]:
    """Cut a scene into whole square cells, row by row; what is left at the right and bottom edge is dropped.

    Args:
        name: what the tiles' ids begin with.

    Raises:
        TileError: the file is no raster, holds no 8-bit RGB, or does not say where on the globe it lies.
        TileSkipped: it is smaller than a cell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            raster = rasterio.open(scene)
        except RasterioIOError as error:
            raise TileError(f"not a raster: {error}") from error
        except UnicodeDecodeError as error:
            raise TileError(
                "its reference system has a name that is not UTF-8; give it anew with gdal_edit.py -a_srs"
            ) from error
    with raster:
        if raster.crs is None:
            raise TileError("no coordinate reference system; give one with gdal_edit.py -a_srs")
        _check_bands(raster)
        if min(raster.height, raster.width) < tile_px:
            raise TileSkipped(f"{raster.width} x {raster.height} px, smaller than a tile of {tile_px}; lower --tile-px")
        when = _datetime(raster.tags().get("TIFFTAG_DATETIME"))
        places = [(row, col) for row in range(raster.height // tile_px) for col in range(raster.width // tile_px)]
        windows = [(x, y, x + tile_px, y + tile_px) for y, x in (np.array(places) * tile_px).tolist()]
        try:
            outlines, gsd_m = _outlines(raster, windows), _gsd(raster)
        except (RasterioError, CRSError, CPLE_BaseError) as error:
            raise TileError(f"cannot be placed on the globe: {_plain(error)}") from error
        found = []
        for (row, col), window, corners in zip(places, windows, outlines, strict=True):
            shape, bounds = globe.outline(*corners.T)
            where = f"{name}/{row:05d}-{col:05d}"
            lies = tuple(raster.transform @ Affine.translation(*window[:2]))[:6]
            found.append(Cell(where, window, bounds, shape.wkb, str(raster.crs), lies, gsd_m, when))
        return found


def _check_bands(raster: rasterio.DatasetReader) -> None:
    if raster.count < 3 or raster.dtypes[0] != "uint8":
        raise TileError(f"{raster.count} bands of {raster.dtypes[0]}, 3 of uint8 wanted; convert with gdal_translate")


def _outlines(raster: rasterio.DatasetReader, windows: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
    """The outline of each window, `[corners, 2]` degrees: its edges cut into pieces where they would bend too much."""
    found: list[np.ndarray] = [np.empty((0, 2))] * len(windows)
    left = np.arange(len(windows))
    stray_m = STRAY_PX * _gsd(raster)
    for steps, finer in zip(STEPS, [*STEPS[1:], None], strict=True):
        rings = _rings(raster, np.array(windows, dtype=float)[left], steps)
        bent = np.zeros(len(left), dtype=bool)
        if finer is not None:
            bent = _stray_m(rings, _rings(raster, np.array(windows, dtype=float)[left], finer)) > stray_m
        for i in np.flatnonzero(~bent):
            found[left[i]] = rings[i]
        left = left[bent]
        if not len(left):
            break
    return found


def _rings(raster: rasterio.DatasetReader, windows: np.ndarray, steps: int) -> np.ndarray:
    """`[N, 4 * steps, 2]` degrees, longitude first: points along the edges of windows, from (x0, y0) by (x0, y1)."""
    x0, y0, x1, y1 = windows.T[..., None]
    along = np.arange(steps) / steps
    cols = np.hstack([x0 + 0 * along, x0 + (x1 - x0) * along, x1 + 0 * along, x1 + (x0 - x1) * along])
    rows = np.hstack([y0 + (y1 - y0) * along, y1 + 0 * along, y1 + (y0 - y1) * along, y0 + 0 * along])
    xs, ys = raster.transform @ (cols.ravel(), rows.ravel())
    lonlat = np.array(warp_points(raster.crs, "EPSG:4326", xs, ys))  # longitude first, whatever the system's own order
    on_globe = (np.abs(lonlat) <= [[360], [90 + 1e-9]]).all(axis=0)  # false for NaN and infinity too
    if not on_globe.all():
        lon, lat = lonlat[:, np.flatnonzero(~on_globe)[0]]
        raise TileError(f"corners at {lon:g}, {lat:g} degrees are not on the globe; is {raster.crs} its CRS?")
    lonlat[1] = np.clip(lonlat[1], -90, 90)
    return lonlat.T.reshape(len(windows), -1, 2)


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


def _gsd(raster: rasterio.DatasetReader) -> float:
    """Metres of ground per pixel at the raster's middle, however it is turned; of longer and shorter sides between."""
    side = abs(raster.transform.determinant) ** 0.5
    if not raster.crs.is_geographic:
        return round(side * raster.crs.linear_units_factor[1], 4)
    _, latitude = raster.transform @ (raster.width / 2, raster.height / 2)
    narrower = max(math.cos(math.radians(latitude)), 0.0)  # degrees of longitude than those of latitude
    return round(side * METRES_PER_DEGREE * narrower**0.5, 4)


def _datetime(tag: str | None) -> str | None:
    """TIFF's "2024:06:01 10:20:30" as ISO 8601."""
    if not tag:
        return None
    day, _, time = tag.partition(" ")
    return f"{day.replace(':', '-')}T{time or '00:00:00'}Z"


def read(path: Path, window: tuple[int, int, int, int] | None) -> bytes:
    """The pixels of a planned tile, encoded: a window `(x0, y0, x1, y1)` of a scene, or with None a whole image.

    Raises:
        TileError, TileSkipped: see `read_window` and `read_image`.
    """
    return read_image(path) if window is None else read_window(path, window)


def read_window(scene: Path, window: tuple[int, int, int, int]) -> bytes:
    """The pixels of one cell as PNG.

    Raises:
        TileError: the scene cannot be read there, or has another number of bands or bits.
        TileSkipped: no pixel there holds data, by the scene's own mask or nodata value.
    """
    x0, y0, x1, y1 = window
    place = Window(x0, y0, x1 - x0, y1 - y0)
    try:
        with rasterio.open(scene) as raster:
            _check_bands(raster)
            if not raster.dataset_mask(window=place).any():
                raise TileSkipped("blank")
            pixels = raster.read([1, 2, 3], window=place)
    except RasterioIOError as error:
        raise TileError(f"cannot be read: {_plain(error)}") from error
    return encode(np.moveaxis(pixels, 0, -1))


def read_image(path: Path) -> bytes:
    """An image file as RGB bytes, proved to decode; JPEG, PNG and WebP of 8-bit RGB are kept as they are.

    Raises:
        TileError: absent, empty, cut short, no image, too large, or of bands or bits that are no colours.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TileError("no such file") from None
    except OSError as error:
        raise TileError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise TileError("empty file")
    with _opened(data) as image:
        kind, mode, depth = image.format, image.mode, getattr(image, "is_animated", False)
        pixels = _rgb(image)
    return data if kind in ENCODINGS and mode == "RGB" and not depth else encode(pixels)


def decode(data: bytes) -> np.ndarray:
    """Encoded bytes to `[H, W, 3]` uint8.

    Raises:
        TileError: the bytes are no whole image.
    """
    with _opened(data) as image:
        return _rgb(image)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):  # Pillow would cut at 0 and 255: all black or all white
        raise TileError(
            "pixels of 32 bits or with a sign, 8 or 16 bits wanted; convert with gdal_translate -ot Byte -scale"
        )
    if image.mode.startswith("I;16"):  # Pillow's own conversion would turn all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def _opened(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            if max(image.size) > MAX_SIDE_PX:
                raise TileError(f"{image.width} x {image.height} px, at most {MAX_SIDE_PX} a side wanted")
            image.load()
    except UnidentifiedImageError:
        if data.startswith(TIFF):
            raise TileError(
                "a TIFF that is broken or of other bands than RGB; convert with gdal_translate -b 1 -b 2 -b 3 -of PNG"
            ) from None
        raise TileError("not an image") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise TileError(f"too large: {_plain(error)}") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError) as error:  # what Pillow raises at broken files
        if isinstance(error, TileError):
            raise
        raise TileError(f"corrupt image: {_plain(error)}") from error
    return image


def encode(pixels: np.ndarray) -> bytes:
    """`[H, W, 3]` uint8 to PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=3)
    return out.getvalue()


def footprint(bounds: list[float] | None) -> bytes | None:
    """Bounds in degrees as WKB: a polygon, or two where they cross the antimeridian."""
    return None if bounds is None else globe.box(bounds).wkb


def parse_bbox(text: str) -> globe.Bounds:
    """`west,south,east,north` in degrees; west > east is a box across the antimeridian.

    Raises:
        ConfigError: not four numbers in that order.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        west = south = east = north = float("nan")
    if not globe.are_bounds(west, south, east, north) or west == east or south == north:
        raise ConfigError(f"--bbox {text}: want west,south,east,north in degrees, such as 24.9,60.1,25.0,60.2")
    return west, south, east, north


def _plain(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

"""A tile as a GeoTIFF, where it lies on the ground."""

from typing import Any

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import MemoryFile

from urbancross.errors import TileError
from urbancross.index.moments import span_of
from urbancross.segments.layers import DEGREES
from urbancross.segments.shapes import across, determinant


def geotiff(row: dict[str, Any], pixels: np.ndarray) -> bytes:
    """
    Args:
        row: of `schemas.TILES`.
        pixels: [H, W, 3] uint8.

    Raises:
        TileError: the tile has no place, or a reference system that cannot be read.
    """
    exact = row["transform"] is not None and row["crs"] is not None
    if not exact and row["bounds"] is None:
        raise TileError("it has no place on the globe")
    transform = row["transform"] if exact else across(row["bounds"], pixels.shape[:2])
    if not np.isfinite(transform).all() or determinant(transform) == 0:
        raise TileError("its place has no extent")
    try:
        crs = CRS.from_user_input(row["crs"] if exact else DEGREES)
    except CRSError as error:
        raise TileError(f"its reference system cannot be read: {str(error).splitlines()[0]}") from None
    h, w = pixels.shape[:2]
    profile = {"driver": "GTiff", "width": w, "height": h, "count": 3, "dtype": "uint8", "photometric": "RGB"}
    with rasterio.Env(GDAL_PAM_ENABLED=False), MemoryFile() as file:
        with file.open(crs=crs, transform=Affine(*transform), compress="deflate", **profile) as raster:
            raster.write(pixels.transpose(2, 0, 1))
            raster.update_tags(TIFFTAG_IMAGEDESCRIPTION=row["tile_id"], **_time(row["datetime"]))
        return bytes(file.read())


def _time(text: str | None) -> dict[str, str]:
    """TIFF's own word for a moment; it has none for a span."""
    try:
        first, last = span_of(text or "")
    except (ValueError, OverflowError):
        return {}
    if first != last:
        return {}
    moment = np.datetime64(first, "us").astype("datetime64[s]").item()
    return {"TIFFTAG_DATETIME": f"{moment:%Y:%m:%d %H:%M:%S}"}

"""A tile's pixels from its scene: a window as it is, or a square on the ground, from the overview that fits."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from rasterio import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject
from rasterio.windows import Window

from urbancross.errors import TileError, TileSkipped
from urbancross.scenes import rasters
from urbancross.scenes.cells import plain
from urbancross.scenes.colours import Colours
from urbancross.scenes.placing import Placing, gsd_m
from urbancross.scenes.rasters import Raster
from urbancross.scenes.remote import PLAIN, Access, Patience, web_of

SAME = 1e-6  # share of a pixel's side by which two pixels may differ and be of one size
ON_PIXEL_PX = 1e-3  # by which a corner may miss one and still be on it
FEW = 100  # pixels that mostly tell that there is more than one colour
WHITE, COLOURLESS = 200, 30  # of 255: a pixel is white from here on, and without colour up to here


@dataclass(frozen=True)
class Screen:
    """Which tiles are left out.

    Attributes:
        min_valid: least share of pixels that hold data.
        max_cloud: most share of them that is white and without colour; None: any.
    """

    min_valid: float = 0.5
    max_cloud: float | None = None

    def check(self, pixels: np.ndarray, valid: np.ndarray) -> None:
        """
        Raises:
            TileSkipped: the tile is to be left out.
        """
        if valid.all():
            seen = pixels.reshape(-1, 3)
        else:
            share = float(valid.mean())
            if share == 0:
                raise TileSkipped("blank")
            if share < self.min_valid:
                raise TileSkipped(f"no data ({100 * (1 - share):.0f} % of it)")
            seen = pixels[valid]
        if (seen[:: max(len(seen) // FEW, 1)] == seen[0]).all() and (seen == seen[0]).all():
            raise TileSkipped("one colour")
        if self.max_cloud is not None:
            spread = seen.max(axis=1).astype(int) - seen.min(axis=1)
            cloud = float(((seen.min(axis=1) >= WHITE) & (spread <= COLOURLESS)).mean())
            if cloud > self.max_cloud:
                raise TileSkipped(f"cloud ({100 * cloud:.0f} % of it)")


class Scenes:
    """Scenes that are open, the few that were read last: tiles of one scene come one after the other."""

    def __init__(self, access: Access = PLAIN, most: int = 4) -> None:
        self.web, self.patience = web_of(access), Patience(access.retry_s)
        self.most, self.open = most, OrderedDict[tuple[str, int | None], Raster]()

    @contextmanager
    def at(self, scene: str, overview: int | None = None) -> Iterator[Any]:
        """
        Raises:
            TileError: it cannot be read.
        """
        key = (scene, overview)
        raster: Raster | None = None
        try:
            if key not in self.open:
                level = {} if overview is None else {"overview_level": overview}
                self.open[key] = rasters.opened(scene, self.web, self.patience, **level)
                while len(self.open) > self.most:
                    self.open.popitem(last=False)[1].close()
            self.open.move_to_end(key)
            raster = self.open[key]
            yield raster.dataset
            raster.check()
        except Exception as error:
            self.forget(scene)
            if raster is not None:
                raster.check()
            if isinstance(error, (RasterioError, CPLE_BaseError)):
                raise TileError(f"cannot be read: {plain(error)}") from error
            raise

    def forget(self, scene: str) -> None:
        for key in [key for key in self.open if key[0] == scene]:
            self.open.pop(key).close()


def read_window(
    scenes: Scenes, scene: str, window: tuple[int, int, int, int], colours: Colours
) -> tuple[np.ndarray, np.ndarray]:
    """`[H, W, 3]` uint8 of a window, and `[H, W]` bool: which pixels hold data."""
    x0, y0, x1, y1 = window
    with scenes.at(scene) as raster:
        return _coloured(raster, colours, Window(x0, y0, x1 - x0, y1 - y0))


def read_square(
    scenes: Scenes, scene: str, crs: CRS, transform: Affine, side_px: int, colours: Colours, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """`[side, side, 3]` uint8 of a square on the ground, and `[side, side]` bool: which pixels hold data.

    Pixels that lie as the scene's do are those of the scene. Others are resampled from its coarsest overview that is
    not coarser than they are.
    """
    if colours.palette:
        resampling = Resampling.nearest
    with scenes.at(scene) as raster:
        placing = Placing.of(raster)
        window = window_of(placing, crs, transform, side_px)
        if window is not None and inside(window, raster):
            if whole(window, side_px):
                exact = Window(*(round(value) for value in window))
                return _coloured(raster, colours, exact)
            return _coloured(raster, colours, Window(*window), (side_px, side_px), resampling)
        if placing.transform is None:
            return _by_control_points(raster, placing, crs, transform, side_px, colours, resampling)
        level = overview_for(raster, placing, crs, transform, side_px)
    with scenes.at(scene, level) as raster:
        options: dict[str, Any] = {"crs": crs, "transform": transform, "width": side_px, "height": side_px}
        add_alpha = raster.nodata is None and ColorInterp.alpha not in raster.colorinterp
        options |= {"src_crs": placing.wrapped, "add_alpha": add_alpha, "resampling": resampling}
        with WarpedVRT(raster, **options) as warped:
            return _coloured(warped, colours, None)


def _by_control_points(
    raster: Any, placing: Placing, crs: CRS, transform: Affine, side_px: int, colours: Colours, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """As `read_square`; rasterio's own virtual rasters pass over control points where a transform is told."""
    bands = list(colours.bands)
    found = np.zeros((len(bands) + 1, side_px, side_px), raster.dtypes[bands[0] - 1])
    reproject(
        rasterio.band(raster, bands),
        found,
        gcps=list(placing.gcps),
        src_crs=placing.crs,
        dst_crs=crs,
        dst_transform=transform,
        dst_alpha=len(found),
        resampling=resampling,
    )
    return _seen(raster, colours, found[:-1], found[-1] > 0)


def _coloured(
    raster: Any,
    colours: Colours,
    window: Window | None,
    shape: tuple[int, int] | None = None,
    resampling: Resampling = Resampling.nearest,
) -> tuple[np.ndarray, np.ndarray]:
    values = raster.read(list(colours.bands), window=window, resampling=resampling,
                         **({} if shape is None else {"out_shape": (len(colours.bands), *shape)}))  # fmt: skip
    if all(MaskFlags.all_valid in flags for flags in raster.mask_flag_enums):
        return _seen(raster, colours, values, None)
    mask = raster.dataset_mask(window=window, **({} if shape is None else {"out_shape": shape}))
    return _seen(raster, colours, values, mask > 0)


def _seen(raster: Any, colours: Colours, values: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """
    Args:
        valid: None where all are.
    """
    valid = np.ones(values.shape[1:], bool) if valid is None else valid
    if values.dtype.kind == "f":
        valid = valid & np.isfinite(values).all(axis=0)
    pixels = colours.apply(values, raster.colormap(colours.bands[0]) if colours.palette else None)
    return (pixels if valid.all() else np.where(valid[..., None], pixels, np.uint8(0))), valid


def window_of(placing: Placing, crs: CRS, transform: Affine, side_px: int) -> tuple[float, float, float, float] | None:
    """Column, row, width and height of a square in a scene's pixels; None where it does not lie along them."""
    if placing.transform is None or placing.crs != crs:
        return None
    there = ~placing.transform @ transform
    if abs(there.b) > SAME or abs(there.d) > SAME or there.a <= 0 or there.e <= 0:
        return None
    return (there.c, there.f, there.a * side_px, there.e * side_px)


def inside(window: tuple[float, float, float, float], raster: Any) -> bool:
    x, y, width, height = window
    return (
        x >= -ON_PIXEL_PX
        and y >= -ON_PIXEL_PX
        and x + width <= raster.width + ON_PIXEL_PX
        and y + height <= raster.height + ON_PIXEL_PX
    )


def whole(window: tuple[float, float, float, float], side_px: int) -> bool:
    """Whether the pixels of a square are pixels of the scene."""
    x, y, width, height = window
    same = abs(width - side_px) <= SAME * side_px and abs(height - side_px) <= SAME * side_px
    return same and abs(x - round(x)) <= ON_PIXEL_PX and abs(y - round(y)) <= ON_PIXEL_PX


def overview_for(raster: Any, placing: Placing, crs: CRS, transform: Affine, side_px: int) -> int | None:
    """The number of the overview to warp from; None: the scene itself."""
    wanted = gsd_m(crs, transform, side_px / 2, side_px / 2)
    own = placing.gsd_m(raster.width, raster.height)
    fit = [level for level, shrink in enumerate(raster.overviews(1)) if shrink <= wanted / own * (1 + SAME)]
    return fit[-1] if fit else None

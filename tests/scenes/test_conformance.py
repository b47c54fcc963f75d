"""Scenes as archives hold them, each read on every grid, against what rasterio reads by itself at the same place."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.transform import from_origin
from rasterio.warp import reproject

from urbancross.errors import TileError, TileSkipped
from urbancross.scenes.cells import Cell
from urbancross.scenes.colours import Colours, Stretch
from urbancross.scenes.grids import Globe, Grid, Metres, Pixels, WebMap
from urbancross.scenes.pixels import Screen
from urbancross.scenes.tiling import Reader, Tiling
from urbancross.tiles import decode

SIDE = 64
HEIGHT, WIDTH = 400, 500
UTM, STEP = from_origin(500_000, 6_000_000, 2.0, 2.0), 2.0
FEW_LEVELS = 2  # by which two ways to resample smooth ground may differ


@dataclass(frozen=True)
class Scene:
    """A raster of the set, and the grids that can be laid over it."""

    write: Callable[[Path], None]
    grids: tuple[Grid, ...]
    kind: str = "smooth"  # nearest: numbers that mean something, such as a palette's


def ground(bands: int = 3, dtype: Any = np.uint8, top: float = 250) -> np.ndarray:
    """`[bands, H, W]`: waves, long enough that ways to resample agree."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [0.5 + 0.45 * np.sin(x / 31 + k) * np.cos(y / 27 - k) for k in range(bands)]
    return np.stack([(top * wave).astype(dtype) for wave in waves])


def write(
    file: Path, values: np.ndarray, crs: str | None = "EPSG:32635", transform: Affine = UTM, **profile: Any
) -> None:
    bands, height, width = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype} | profile
    with rasterio.open(file, "w", crs=crs, transform=transform, **profile) as raster:
        raster.write(values)


def with_overviews(file: Path) -> None:
    write(file, ground(), tiled=True, blockxsize=128, blockysize=128, compress="deflate")
    with rasterio.open(file, "r+") as raster:
        raster.build_overviews([2, 4], Resampling.average)


def sixteen_bits(file: Path) -> None:
    values = ground(4, np.uint16, 3000)
    values[:, :, :60] = 0
    write(file, values, nodata=0)


def with_alpha(file: Path) -> None:
    values = ground(4)
    values[3] = 255
    values[3, 300:] = 0
    write(file, values, photometric="RGB", alpha="YES")


def palette(file: Path) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = ((x // 50 + y // 40) % 5).astype(np.uint8)[None]
    write(file, values, photometric="palette")
    with rasterio.open(file, "r+") as raster:
        raster.write_colormap(1, {i: (50 * i, 255 - 50 * i, 30 * i, 255) for i in range(5)})


def reals(file: Path) -> None:
    values = ground(3, np.float32, 0.4)
    values[:, :40] = np.nan
    write(file, values, nodata=float("nan"))


def blue_first(file: Path) -> None:
    write(file, ground(4), photometric="MINISBLACK")
    with rasterio.open(file, "r+") as raster:
        raster.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]


def by_points(file: Path) -> None:
    corners = [(0, 0), (0, WIDTH), (HEIGHT, 0), (HEIGHT, WIDTH)]
    points = [GroundControlPoint(row, col, 24 + 4e-5 * col, 60 - 2e-5 * row) for row, col in corners]
    write(file, ground(), crs=None, transform=Affine.identity())
    with rasterio.open(file, "r+") as raster:
        raster.gcps = (points, CRS.from_epsg(4326))


ALL = (Pixels(SIDE), Pixels(SIDE, 0.5), Metres(SIDE, 2.0), Metres(SIDE, 3.1, 0.25), WebMap(SIDE, 17), Globe(SIDE, 2.0))
NOT_METRES = (Pixels(SIDE), WebMap(SIDE, 17), Globe(SIDE, 2.0, 0.2))
TURNED = UTM @ Affine.rotation(25)
SCENES = {
    "plain": Scene(lambda file: write(file, ground()), ALL),
    "overviews": Scene(with_overviews, (*ALL, Metres(SIDE, 4.0), Globe(SIDE, 5.0))),
    "sixteen bits, nodata": Scene(sixteen_bits, ALL),
    "alpha": Scene(with_alpha, ALL),
    "one band": Scene(lambda file: write(file, ground(1)), ALL),
    "palette": Scene(palette, ALL, "nearest"),
    "reals, not a number": Scene(reals, ALL),
    "blue first": Scene(blue_first, ALL),
    "bottom up": Scene(lambda file: write(file, ground(), transform=Affine(2, 0, 500_000, 0, 2, 5_999_200)), ALL),
    "turned": Scene(lambda file: write(file, ground(), transform=TURNED), ALL),
    "control points": Scene(by_points, NOT_METRES),
    "antimeridian": Scene(lambda file: write(file, ground(), "EPSG:4326", from_origin(179.995, -16, 2e-5, 2e-5)),
                          NOT_METRES),
    "pole": Scene(lambda file: write(file, ground(), "EPSG:3413", from_origin(-400, 400, 2, 2)),
                  (Pixels(SIDE), Metres(SIDE, 2.0), Globe(SIDE, 2.0))),
    "feet": Scene(lambda file: write(file, ground(), "EPSG:2263", from_origin(980_000, 200_000, 6, 6)), ALL),
}  # fmt: skip
CASES = [(name, grid) for name, scene in SCENES.items() for grid in scene.grids]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conformance")
    for name, scene in SCENES.items():
        scene.write(folder / f"{name}.tif")
    return folder


def by_rasterio(file: Path, cell: Cell, colours: Colours, nearest: bool) -> tuple[np.ndarray, np.ndarray]:
    """What rasterio makes of the scene's own pixels at a cell's place: `[H, W, 3]` uint8, and where there are any."""
    how = Resampling.nearest if nearest else Resampling.bilinear
    with rasterio.open(file) as raster:
        values, mask = raster.read(list(colours.bands)).astype(np.float64), raster.dataset_mask()
        values[:, mask == 0] = np.nan
        found = np.full((len(values), SIDE, SIDE), np.nan)
        gcps, crs = raster.gcps
        wrapped = raster.crs
        if file.stem == "antimeridian":
            wrapped = CRS.from_string("+proj=longlat +datum=WGS84 +lon_wrap=180 +no_defs")
        place: dict[str, Any] = (
            {"gcps": gcps, "src_crs": crs}
            if raster.crs is None
            else {"src_transform": raster.transform, "src_crs": wrapped}
        )
        reproject(values, found, dst_transform=Affine(*cell.transform), dst_crs=cell.crs, src_nodata=np.nan,
                  dst_nodata=np.nan, resampling=how, **place)  # fmt: skip
        valid = np.isfinite(found).all(axis=0)
        whole = np.nan_to_num(found)
        colormap = raster.colormap(1) if colours.palette else None
        return colours.apply(whole.astype(np.uint8) if colours.palette else whole, colormap), valid


@pytest.mark.parametrize(("name", "grid"), CASES, ids=[f"{name}, {grid}" for name, grid in CASES])
def test_tiles_have_the_pixels_that_rasterio_reads_there(name: str, grid: Grid, folder: Path):
    file = folder / f"{name}.tif"
    tiling = Tiling(grid, screen=Screen(min_valid=0.3))
    planned = tiling.plan(file, "s")
    reader = Reader(tiling)
    assert len({cell.tile_id for cell, _ in planned}) == len(planned) > 3
    compared = 0
    for cell, colours in planned[:: max(len(planned) // 5, 1)]:
        row = {**vars(cell), "source": str(file), "colours": vars(colours)}
        try:
            found = decode(reader.read(row)).astype(int)
        except TileSkipped:
            continue
        assert found.shape == (SIDE, SIDE, 3)
        if cell.window is not None:
            x0, y0, x1, y1 = cell.window
            with rasterio.open(file) as raster:
                raw = raster.read(list(colours.bands))[:, y0:y1, x0:x1]
                seen = raster.dataset_mask()[y0:y1, x0:x1] > 0
                colormap = raster.colormap(1) if colours.palette else None
            wanted, valid, most = colours.apply(raw, colormap).astype(int), seen, 0
        else:
            wanted, valid = by_rasterio(file, cell, colours, SCENES[name].kind == "nearest")
            wanted = wanted.astype(int)
            most = 0 if grid == Metres(SIDE, 2.0) and name in ON_ITS_PIXELS else FEW_LEVELS
            if SCENES[name].kind == "nearest" and most:  # at the edge of a colour a rounding decides
                assert (found == wanted).all(axis=2)[valid].mean() > 0.97
                continue
        off = np.abs(found - wanted).max(axis=2)
        inner = valid & eroded(valid)
        assert off[inner].max() <= most, (cell.tile_id, off[inner].max())
        assert (found[~valid] == 0).mean() > 0.9 if (~valid).any() else True
        compared += 1
    assert compared or SCENES[name].kind == "nearest"


ON_ITS_PIXELS = {
    "plain",
    "overviews",
    "sixteen bits, nodata",
    "alpha",
    "one band",
    "palette",
    "reals, not a number",
    "blue first",
}


def eroded(valid: np.ndarray) -> np.ndarray:
    """Pixels all of whose neighbours hold data: beside none, ways to resample differ."""
    padded = np.pad(valid, 2, constant_values=True)
    return np.stack([np.roll(padded, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)]).all(axis=0)[
        2:-2, 2:-2
    ]


@pytest.mark.parametrize("name", SCENES)
def test_bounds_hold_the_corners_of_the_pixels(name: str, folder: Path):
    from pyproj import Transformer

    for grid in SCENES[name].grids:
        for cell, _ in Tiling(grid).plan(folder / f"{name}.tif", "s")[:3]:
            if name == "pole":
                continue
            x, y = Affine(*cell.transform) @ (np.array([0.0, SIDE, 0, SIDE]), np.array([0.0, 0, SIDE, SIDE]))
            lon, lat = Transformer.from_crs(cell.crs, "EPSG:4326", always_xy=True).transform(x, y)
            west, south, east, north = cell.bounds
            assert south - 1e-7 <= lat.min()
            assert lat.max() <= north + 1e-7
            assert ((lon - west + 1e-7) % 360 <= (east - west) % 360 + 2e-7).all()


def test_a_scene_that_no_grid_fits_says_what_to_give(folder: Path):
    with pytest.raises(TileError, match="in degrees, of which --grid metres has none; give --grid globe or xyz"):
        Tiling(Metres(SIDE, 2.0)).plan(folder / "antimeridian.tif", "s")
    with pytest.raises(TileSkipped, match="no square of the grid lies within it; lower --gsd"):
        Tiling(Globe(SIDE, 90.0)).plan(folder / "plain.tif", "s")
    with pytest.raises(TileError, match="no band 7, it has 3; give others with --bands"):
        Tiling(Pixels(SIDE), bands=(7,)).plan(folder / "plain.tif", "s")


def test_bands_and_stretch_are_what_is_asked_for_or_what_the_scene_says(folder: Path):
    def colours(name: str, **told: Any) -> Colours:
        return Tiling(Pixels(SIDE), **told).plan(folder / f"{name}.tif", "s")[0][1]

    assert colours("plain") == Colours((1, 2, 3), (0.0,) * 3, (255.0,) * 3)
    assert colours("blue first").bands == (3, 2, 1)
    assert colours("one band").bands == (1,)
    assert colours("palette").palette
    deep = colours("sixteen bits, nodata")
    assert deep.bands == (1, 2, 3)
    assert all(0 < low < 400 and 2600 < high < 3000 for low, high in zip(deep.low, deep.high, strict=True))
    fixed = colours("sixteen bits, nodata", bands=(4, 3, 2), stretch=Stretch.of("0..3000"))
    assert fixed == Colours((4, 3, 2), (0.0,) * 3, (3000.0,) * 3)
    assert fixed.apply(np.array([0, 1500, 9000], np.uint16).reshape(1, 1, 3).repeat(3, 0))[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]

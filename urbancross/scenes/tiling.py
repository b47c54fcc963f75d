"""How scenes become tiles: the grid, the colours, what is left out; and the reading itself, a planned row at a time."""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling

from urbancross.errors import ConfigError
from urbancross.scenes import remote
from urbancross.scenes.cells import Cell, cells, opened
from urbancross.scenes.colours import BYTE, Colours, Stretch, colours_of
from urbancross.scenes.grids import Globe, Grid, Metres, Pixels, WebMap
from urbancross.scenes.pixels import Scenes, Screen, read_square, read_window
from urbancross.scenes.remote import Access
from urbancross.tiles import encode, read_image

PLAIN: dict[str, Any] = {
    "bands": (1, 2, 3),
    "low": (BYTE[0],) * 3,
    "high": (BYTE[1],) * 3,
    "palette": False,
}  # in plans of before


@dataclass(frozen=True)
class Tiling:
    """
    Attributes:
        bands: of red, green and blue, or of grey; None: as a scene says.
        stretch: see `colours.colours_of`.
        access: to scenes that lie elsewhere.
    """

    grid: Grid = field(default_factory=lambda: Pixels(224))
    bands: tuple[int, ...] | None = None
    stretch: Stretch | None = None
    resampling: Resampling = Resampling.bilinear
    screen: Screen = field(default_factory=Screen)
    access: Access = remote.PLAIN

    def plan(self, scene: Path | str, name: str) -> list[tuple[Cell, Colours]]:
        """The tiles of a scene, and how all of them are coloured.

        Args:
            name: what the tiles' ids begin with.

        Raises:
            TileError: the scene cannot be used.
            TileSkipped: it has no whole tile.
        """
        with opened(str(scene), self.access) as raster:
            found = cells(raster, name, self.grid, self.screen.min_valid)
            colours = colours_of(raster, self.bands, self.stretch)
            return [(cell, colours) for cell in found]


class Reader:
    """Planned rows to encoded pixels."""

    def __init__(self, tiling: Tiling) -> None:
        self.tiling, self.scenes = tiling, Scenes(tiling.access)

    def read(self, row: dict[str, Any]) -> bytes:
        """The bytes of an image, or the pixels of a scene's tile as PNG.

        Raises:
            TileError, TileSkipped: see `tiles.read_image`, `pixels` and `Screen`.
        """
        told = row.get("colours")
        if row["window"] is None and told is None:
            return read_image(Path(row["source"]), row.get("member"))
        told = told or PLAIN
        colours = Colours(tuple(told["bands"]), tuple(told["low"]), tuple(told["high"]), bool(told["palette"]))
        scene = str(row["source"])
        self.scenes.patience.restart()
        if row["window"] is not None:
            pixels, valid = read_window(self.scenes, scene, tuple(row["window"]), colours)
        else:
            crs, transform = crs_of(row["crs"]), Affine(*row["transform"])
            side_px, how = self.tiling.grid.side_px, self.tiling.resampling
            pixels, valid = read_square(self.scenes, scene, crs, transform, side_px, colours, how)
        self.tiling.screen.check(pixels, valid)
        return encode(pixels)


@functools.lru_cache(maxsize=1000)
def crs_of(text: str) -> CRS:
    return CRS.from_string(text)


def grid_of(kind: str, side_px: int, gsd_m: float | None, zoom: int | None, overlap: float) -> Grid:
    """
    Raises:
        ConfigError: what the grid needs was not said, or what it has not was.
    """
    wants = {"pixels": None, "metres": "--gsd", "globe": "--gsd", "xyz": "--zoom"}[kind]
    for flag, value in (("--gsd", gsd_m), ("--zoom", zoom)):
        if value is None and flag == wants:
            raise ConfigError(f"--grid {kind} wants {flag}; give it")
        if value is not None and flag != wants:
            raise ConfigError(f"{flag} means nothing with --grid {kind}; leave it out, or give another --grid")
    if kind == "pixels":
        return Pixels(side_px, overlap)
    if kind == "xyz":
        return WebMap(side_px, zoom or 0, overlap)
    kinds: dict[str, type[Metres | Globe]] = {"metres": Metres, "globe": Globe}
    return kinds[kind](side_px, gsd_m or 1.0, overlap)


def bands_of(text: str | None) -> tuple[int, ...] | None:
    """Read `4,3,2`, or one band for grey.

    Raises:
        ConfigError: neither one nor three numbers from 1.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ConfigError(f"--bands {text}: want those of red, green and blue such as 4,3,2, or one, from 1")
    return tuple(map(int, parts))

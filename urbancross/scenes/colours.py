"""From a raster's bands to red, green and blue of 8 bits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.enums import ColorInterp, Resampling

from urbancross.errors import ConfigError, TileError

SAMPLE_PX = 1024  # longest side of what percentiles are taken from
BYTE = (0.0, 255.0)


@dataclass(frozen=True)
class Stretch:
    """Which values become black and white.

    Attributes:
        low, high: values of a band, or with `by_share` percentiles of each band's valid pixels.
    """

    low: float
    high: float
    by_share: bool = False

    @classmethod
    def of(cls, text: str) -> "Stretch":
        """Read `0..3000` or `2%..98%`.

        Raises:
            ConfigError: neither.
        """
        found = re.fullmatch(r"(-?[\d.]+)(%?)\.\.(-?[\d.]+)(%?)", text.strip())
        try:
            low, high = (float(found[1]), float(found[3])) if found else (1.0, 0.0)
        except ValueError:
            low, high = 1.0, 0.0
        share = bool(found and found[2])
        if not found or not low < high or found[2] != found[4] or (share and not 0 <= low < high <= 100):
            raise ConfigError(f"--stretch {text}: want two values such as 0..3000, or percentiles such as 2%..98%")
        return cls(low, high, share)


@dataclass(frozen=True)
class Colours:
    """How a scene's tiles are coloured.

    Attributes:
        bands: of red, green and blue, counted from 1; one for grey, or for a palette.
        low, high: of each, values that become 0 and 255.
        palette: whether values are numbers of a palette's colours.
    """

    bands: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    palette: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether values of 8 bits stay as they are."""
        return all(ends == BYTE for ends in zip(self.low, self.high, strict=True))

    def apply(self, values: np.ndarray, colormap: dict[int, Sequence[int]] | None = None) -> np.ndarray:
        """`[bands, H, W]` of any type to `[H, W, 3]` uint8."""
        if self.palette:
            table = np.zeros((256, 3), np.uint8)
            for number, colour in (colormap or {}).items():
                table[number] = colour[:3]
            return table[values[0]]
        if values.dtype != np.uint8 or not self.is_plain:
            low, high = (np.array(ends, np.float32)[:, None, None] for ends in (self.low, self.high))
            shares = (values.astype(np.float32) - low) / (high - low)
            values = np.rint(np.clip(np.nan_to_num(shares), 0, 1) * 255).astype(np.uint8)
        return np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, -1)


def colours_of(raster: Any, bands: tuple[int, ...] | None, stretch: Stretch | None) -> Colours:
    """
    Args:
        raster: open in rasterio.
        bands: as the user says; default: those that say they are red, green and blue, else the first three, else one.
        stretch: default: none for 8 bits, 2 % to 98 % for others.

    Raises:
        TileError: the raster lacks a band, or its values are no real numbers.
    """
    chosen = bands or _bands_of(raster)
    if absent := [band for band in chosen if not 1 <= band <= raster.count]:
        raise TileError(f"no band {absent[0]}, it has {raster.count}; give others with --bands")
    kind = np.dtype(raster.dtypes[chosen[0] - 1])
    if kind.kind not in "uif":
        raise TileError(f"bands of {kind}, whole or real numbers wanted; convert with gdal_translate -ot")
    if raster.colorinterp[chosen[0] - 1] == ColorInterp.palette and len(chosen) == 1:
        return Colours(chosen, (0.0,), (255.0,), palette=True)
    if stretch is None:
        stretch = Stretch(*BYTE) if kind == np.uint8 else Stretch(2, 98, by_share=True)
    if not stretch.by_share:
        return Colours(chosen, (stretch.low,) * len(chosen), (stretch.high,) * len(chosen))
    low, high = zip(*(_percentiles(raster, band, stretch) for band in chosen), strict=True)
    return Colours(chosen, low, high)


def _bands_of(raster: Any) -> tuple[int, ...]:
    said = list(raster.colorinterp)
    wanted = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in said for colour in wanted):
        return tuple(said.index(colour) + 1 for colour in wanted)
    data = [i for i, colour in enumerate(said, start=1) if colour != ColorInterp.alpha]
    return tuple(data[:3]) if len(data) >= 3 else tuple(data[:1])


def _percentiles(raster: Any, band: int, stretch: Stretch) -> tuple[float, float]:
    """Of a band's valid pixels, from its overview if it has one."""
    shrink = max(raster.width, raster.height) / SAMPLE_PX
    shape = tuple(max(round(side / max(shrink, 1)), 1) for side in (raster.height, raster.width))
    values = raster.read(band, out_shape=shape, resampling=Resampling.nearest, masked=True).compressed()
    values = values[np.isfinite(values)]
    if not values.size:
        return BYTE
    low, high = (float(value) for value in np.percentile(values, (stretch.low, stretch.high)))
    return (low, high) if low < high else (low, low + 1)

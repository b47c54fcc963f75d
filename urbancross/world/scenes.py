"""A country to scenes, a map and the truth about both, from a seed."""

import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling

from urbancross.errors import ConfigError
from urbancross.world.country import Country, corner
from urbancross.world.layout import deal, lay_out
from urbancross.world.osm import survey, write_osm, write_truth
from urbancross.world.painting import draw

SMALLEST_PX = 450  # a scene of two districts by two
DISTRICT_PX = 250  # about what a common tile shows


@dataclass(frozen=True)
class WrittenCountry:
    """Where a country was written and what it holds."""

    scenes: tuple[Path, ...]
    map: Path
    truth: Path
    counts: dict[str, int]  # features, omitted, wrong, stale; nodes, ways, relations of the map
    districts: dict[str, int]  # of each kind


def write_country(country: Country, out: Path, scenes: int = 6, scene_px: int = 1536, seed: int = 0) -> WrittenCountry:
    """Write `scenes/<name>-00.tif` ..., `map.osm` and `truth.geojson` below `out`; the same seed writes the same bytes.

    Raises:
        ConfigError: a scene too small for two districts a side, or no scene.
    """
    if scenes < 1 or scene_px < SMALLEST_PX:
        raise ConfigError(f"{scenes} scenes of {scene_px} px asked for; ask for 1 or more of {SMALLEST_PX} px or more")
    (out / "scenes").mkdir(parents=True, exist_ok=True)
    start = [seed, zlib.crc32(country.name.encode())]
    rng = np.random.default_rng(start)
    across = max(2, round(scene_px / DISTRICT_PX))
    deck = deal(scenes, across * across, rng)
    paths, ground = [], []
    for k, kinds in enumerate(deck):
        own = np.random.default_rng([*start, k])
        features = lay_out(country, kinds, across, scene_px * country.gsd_m, own)
        ground.append(features)
        paths.append(out / "scenes" / f"{country.name}-{k:02d}.tif")
        pixels = draw(features, country.style, scene_px, country.gsd_m, own)
        write_scene(paths[-1], country, pixels, corner(country, k, scene_px))
    entries, stale = survey(country, ground, scene_px, rng)
    written = write_osm(out / "map.osm", [e for e in entries if e.map_tags] + stale)
    counts = {state: sum(e.in_map == state for e in entries) for state in ("omitted", "wrong")}
    counts = {"features": len(entries), **counts, "stale": len(stale), **written}
    write_truth(out / "truth.geojson", country, entries, stale, counts)
    districts = Counter(kind for kinds in deck for kind in kinds)
    return WrittenCountry(tuple(paths), out / "map.osm", out / "truth.geojson", counts, dict(sorted(districts.items())))


def write_scene(path: Path, country: Country, pixels: np.ndarray, north_west: tuple[float, float]) -> None:
    """A tiled GeoTIFF with overviews inside; `pixels` is `[H, W, 3]` uint8."""
    height, width, _ = pixels.shape
    options = {"photometric": "ycbcr", "jpeg_quality": 90} if country.compress == "jpeg" else {"predictor": 2}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=3,
        dtype="uint8",
        crs=country.crs,
        transform=rasterio.Affine(country.gsd_m, 0, north_west[0], 0, -country.gsd_m, north_west[1]),
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress=country.compress,
        **options,
    ) as scene:
        scene.write(pixels.transpose(2, 0, 1))
        scene.update_tags(TIFFTAG_DATETIME=country.taken)
        scene.build_overviews([2, 4, 8], Resampling.average)

"""`ingest` of scenes on grids: what is asked for is what lies in the tables, whoever made them and how."""

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from urbancross import cli, runs, storage
from urbancross.errors import ConfigError
from urbancross.tiles import decode

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

SIDE = 64


def run(**settings: Any) -> str:
    told = {"domain": "north", "tile_px": SIDE, "valid_share": 0, "test_share": 0} | settings
    return str(cli.call("ingest", cli.VERBS["ingest"].kind(**told)))


def rows_of(archive: Path) -> list[dict[str, Any]]:
    shards = (storage.read_shard(archive / "tiles" / name) for name in storage.shards(archive / "tiles"))
    return [row for shard in shards for row in shard.to_pylist()]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two overlapping scenes of 16 bits and four bands, with overviews: one half without data, one partly of cloud."""
    folder = tmp_path_factory.mktemp("scenes")
    for number, left in enumerate((500_000, 500_200)):
        y, x = np.mgrid[:400, :500]
        waves = np.stack([1500 + 1200 * np.sin((x + left) / 40 + k) * np.cos(y / 30) for k in range(4)]).astype(
            np.uint16
        )
        if number == 0:
            waves[:, :, :250] = 0
        else:
            waves[:, :130, 250:] = 2900 + np.random.default_rng(0).integers(0, 60, (130, 250), dtype=np.uint16)
        profile = {"driver": "GTiff", "count": 4, "width": 500, "height": 400, "dtype": "uint16", "nodata": 0}
        profile |= {"crs": "EPSG:32635", "transform": from_origin(left, 6_000_000, 1, 1), "tiled": True}
        profile |= {"blockxsize": 128, "blockysize": 128}
        with rasterio.open(folder / f"scene-{number}.tif", "w", **profile) as raster:
            raster.write(waves)
            raster.build_overviews([2, 4], Resampling.average)
    return folder


def test_squares_of_a_grid_have_one_name_and_one_place_whatever_scene_shows_them(scenes: Path, tmp_path: Path):
    told = {"source": str(scenes), "grid": "metres", "gsd": 2.0, "bands": "4,3,2", "stretch": "0..3000"}
    told |= {"min_valid": 0.8}
    line = run(archive=str(tmp_path / "one"), workers=1, max_cloud=0.5, **told)
    found = rows_of(tmp_path / "one")
    reasons = runs.count_failures([row["failure"] for row in found])
    assert (
        line
        == f"read {len(found)} = written {reasons['written']} + done before 0 + skipped {reasons['skipped']} + failed 0"
    )
    assert set(reasons["skips"]) == {"blank", "no data", "cloud"}
    assert reasons["written"] > 3
    for row in found:
        if row["failure"] is None:
            assert decode(row["image"]).shape == (SIDE, SIDE, 3)
            assert (row["gsd_m"], row["transform"][0], row["crs"]) == (2.0, 2.0, "EPSG:32635")
    by_square: dict[str, set[tuple[float, ...]]] = {}
    for row in found:
        by_square.setdefault(row["tile_id"].partition("/")[2], set()).add(tuple(row["bounds"]))
    assert len(by_square) < len(found)  # some lie in both scenes
    assert all(len(places) == 1 for places in by_square.values())

    run(archive=str(tmp_path / "two"), workers=2, max_cloud=0.5, shard_tiles=5, **told)
    assert rows_of(tmp_path / "two") == found
    map_ = geopandas.read_parquet(tmp_path / "two" / "tiles")
    assert map_.crs.to_epsg() == 4326 or map_.crs.to_string() == "OGC:CRS84"
    assert len(map_) == len(found)


def test_a_run_with_another_grid_or_other_colours_is_refused(scenes: Path, tmp_path: Path):
    told = {"source": str(scenes), "archive": str(tmp_path / "a"), "workers": 1}
    run(grid="globe", gsd=2.0, **told)
    assert all(row["crs"].startswith("EPSG:326") for row in rows_of(tmp_path / "a"))
    for other in ({"gsd": 3.0}, {"gsd": 2.0, "stretch": "0..4000"}, {"gsd": 2.0, "min_valid": 0.9}):
        with pytest.raises(ConfigError, match=rf"was made with {[*other][-1]}="):
            run(grid="globe", **told | other)
    with pytest.raises(ConfigError, match="--grid metres wants --gsd; give it"):
        run(grid="metres", **told)

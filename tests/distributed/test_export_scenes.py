"""From drawn scenes to polygons on the map: `ingest`, `segment` and `export` together."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import shapely
from rasterio.features import rasterize

from urbancross import cli, storage
from urbancross.segments.choice import ordered
from urbancross.segments.masks import decode
from urbancross.world import NORTHLAND, write_country

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**settings)))


def rows_of(archive: Path, table: str) -> dict[str, dict[str, Any]]:
    shards = (storage.read_shard(archive / table / name) for name in storage.shards(archive / table))
    return {row["tile_id"]: row for shard in shards for row in shard.to_pylist()}


def test_segments_of_drawn_scenes_lie_on_the_ground_that_they_were_seen_on(tmp_path: Path):
    written = write_country(NORTHLAND, tmp_path / "country", scenes=2, scene_px=512)
    with rasterio.open(written.scenes[1], "r+") as scene:
        scene.transform = scene.transform @ rasterio.Affine.rotation(20)
    archive, out = tmp_path / "archive", tmp_path / "out"
    run("ingest", source=str(tmp_path / "country" / "scenes"), archive=str(archive), domain="north", tile_px=224)
    run("segment", archive=str(archive), engine="felzenszwalb")
    line = run("export", archive=str(archive), out=str(out))
    assert line.startswith("read 8 = written 8 ")

    (file,) = out.iterdir()
    assert file.name == f"segments-{NORTHLAND.crs.replace(':', '-')}.parquet"
    to_degrees = pyproj.Transformer.from_crs(NORTHLAND.crs, "EPSG:4326", always_xy=True).transform
    tiles, segments = rows_of(archive, "tiles"), rows_of(archive, "segments@felzenszwalb")
    plan = rows_of(archive, "plan")
    rows = pq.read_table(file).to_pylist()
    assert {row["tile_id"] for row in rows} == set(tiles)
    for row in rows:
        shape = shapely.from_wkb(row["geometry"])
        centroid = shapely.Point(to_degrees(shape.centroid.x, shape.centroid.y))
        assert shapely.from_wkb(tiles[row["tile_id"]]["geometry"]).contains(centroid)
        assert shape.area == pytest.approx(row["area_px"] * row["gsd_m"] ** 2, rel=1e-6)
        assert row["area_m2"] == pytest.approx(shape.area, rel=2e-3)
        with rasterio.open(plan[row["tile_id"]]["source"]) as scene:  # drawn into the scene, it is the mask again
            burnt = rasterize([shape], (scene.height, scene.width), transform=scene.transform)
        x0, y0, x1, y1 = plan[row["tile_id"]]["window"]
        mask = decode(ordered(segments[row["tile_id"]]["segments"], "quality")[row["rank"]])
        np.testing.assert_array_equal(burnt[y0:y1, x0:x1].astype(bool), mask)
        assert burnt.sum() == mask.sum()

"""`export --tile`: a GeoTIFF that rasterio opens with the same pixels in the same place."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from rasterio import Affine

from urbancross import cli, schemas, storage
from urbancross.config import ExportConfig
from urbancross.errors import ConfigError
from urbancross.scenes.cells import cells
from urbancross.scenes.grids import Pixels
from urbancross.tiles import encode

TURNED = (6.0, 8.0, 500_000.0, 8.0, -6.0, 6_000_000.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)


def export(tmp_path: Path, **known: Any) -> Path:
    row = {"tile_id": "s/0-1", "domain": "north", "image": encode(PIXELS), **known}
    shard = pa.Table.from_pylist([{"tile_id": "first", "domain": "north"}, row], schema=schemas.TILES)
    storage.publish_shard(tmp_path / "archive" / "tiles" / "part-00000.parquet", shard)
    config = ExportConfig(archive=str(tmp_path / "archive"), tile="s/0-1", out=str(tmp_path / "out" / "tile.tif"))
    assert str(cli.call("export", config)) == "read 1 = written 1 + done before 0 + failed 0"
    return tmp_path / "out" / "tile.tif"


def test_a_tile_of_a_scene_lies_in_its_system_by_its_transform(tmp_path: Path):
    file = export(
        tmp_path, crs="EPSG:32635", transform=TURNED, bounds=[1, 2, 3, 4], datetime="2024-06-01T12:00:05+02:00"
    )
    with rasterio.open(file) as raster:
        np.testing.assert_array_equal(raster.read(), PIXELS.transpose(2, 0, 1))
        assert (raster.crs.to_epsg(), raster.transform) == (32635, Affine(*TURNED))
        assert raster.tags()["TIFFTAG_IMAGEDESCRIPTION"] == "s/0-1"
        (again,) = cells(raster, "s", Pixels(8))  # ingest reads the time back
        assert again.datetime == "2024-06-01T10:00:05Z"
    assert [found.name for found in file.parent.iterdir()] == ["tile.tif"]


@pytest.mark.parametrize("bounds", [[10.0, 50.0, 11.0, 51.0], [179.5, -18.0, -179.5, -17.0]])
def test_a_tile_with_bounds_alone_lies_north_up_in_them(tmp_path: Path, bounds: list[float]):
    with rasterio.open(export(tmp_path, bounds=bounds, datetime="2024")) as raster:
        west, south, east, north = raster.bounds
        assert (west, south, north) == (bounds[0], bounds[1], bounds[3])
        assert east == pytest.approx(bounds[2] % 360)
        assert raster.crs.to_epsg() == 4326
        assert "TIFFTAG_DATETIME" not in raster.tags()  # a year is no moment


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        ({}, "--tile s/0-1: it has no place on the globe; give another"),
        ({"crs": "no system", "transform": TURNED}, "its reference system cannot be read"),
        ({"crs": "EPSG:32635", "transform": [0.0] * 6}, "its place has no extent"),
        ({"bounds": [1, 2, 3, 4], "failure": "failed:corrupt image"}, r"has no pixels \(failed:corrupt image\)"),
    ],
)
def test_a_tile_that_cannot_be_one_says_why_and_leaves_nothing(tmp_path: Path, known: dict[str, Any], wanted: str):
    with pytest.raises(ConfigError, match=wanted) as caught:
        export(tmp_path, **known)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "tile.tif").exists()


def test_a_tile_that_is_not_there_and_a_file_that_is(tmp_path: Path):
    file = export(tmp_path, bounds=[1, 2, 3, 4])
    told = {"archive": str(tmp_path / "archive")}
    with pytest.raises(ConfigError, match="has no tile nowhere"):
        cli.call("export", ExportConfig(**told, tile="nowhere", out=str(tmp_path / "x.tif")))
    with pytest.raises(ConfigError, match="exists already"):
        cli.call("export", ExportConfig(**told, tile="s/0-1", out=str(file)))

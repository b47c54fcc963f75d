"""Corners of tiles, beside what rasterio makes of the same pixels."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import rasterio
from rasterio import Affine
from rasterio.transform import from_origin
from rasterio.warp import transform as warp_points

from urbancross import corners, tiles
from urbancross.scenes.grids import Pixels, WebMap
from urbancross.scenes.tiling import Tiling

SIDE = 64
UTM = from_origin(440_000, 6_600_000, 5.0, 5.0)  # west of its zone's middle, so that north is not up
SCENES = {
    "as it lies": ("EPSG:32635", UTM),
    "turned": ("EPSG:32635", UTM @ Affine.rotation(40)),
    "bottom up": ("EPSG:32635", Affine(5, 0, 440_000, 0, 5, 6_599_000)),
    "mirrored": ("EPSG:32635", Affine(-5, 0, 441_000, 0, -5, 6_600_000)),
    "sheared": ("EPSG:32635", UTM @ Affine.shear(10)),
    "across 180 degrees": ("EPSG:32701", from_origin(175_000, 8_200_000, 30, 30)),
    "degrees, turned, across 180": ("EPSG:4326", from_origin(179.99, -16.9, 1e-4, 1e-4) @ Affine.rotation(30)),
    "degrees, turned, beyond 180": ("EPSG:4326", from_origin(180.1, -16.9, 1e-4, 1e-4) @ Affine.rotation(30)),
    "Mercator, turned, across 180": ("EPSG:3857", from_origin(20_037_000, -1_900_000, 10, 10) @ Affine.rotation(30)),
    "near the pole": ("EPSG:3413", from_origin(-600_000, -600_000, 20, 20)),
    "degrees, turned": ("EPSG:4326", from_origin(24, 60, 1e-4, 1e-4) @ Affine.rotation(10)),
}


def placed(scene: Path, crs: str, transform: Affine, grid: Pixels | WebMap) -> tuple[pa.Table, list]:
    with rasterio.open(
        scene, "w", driver="GTiff", width=200, height=200, count=1, dtype="uint8", crs=crs, transform=transform
    ) as raster:
        raster.write(np.full((1, 200, 200), 9, np.uint8))
    cells = [cell for cell, _ in Tiling(grid).plan(scene, "s")]
    rows = [
        {"bounds": cell.bounds, "geometry": cell.footprint, "crs": cell.crs, "transform": cell.transform}
        for cell in cells
    ]
    return pa.Table.from_pylist(rows, schema=corners.SCHEMA), cells


@pytest.mark.parametrize("name", SCENES)
def test_corners_are_those_of_the_pixels(tmp_path, name):
    table, cells = placed(tmp_path / "s.tif", *SCENES[name], Pixels(SIDE))
    assert len(cells) == 9
    found = corners.corners(table)
    for cell, (west, _, east, _), ends in zip(cells, table["bounds"].to_pylist(), found, strict=True):
        xs, ys = Affine(*cell.transform) @ (np.array([0, SIDE, SIDE, 0]), np.array([0, 0, SIDE, SIDE]))
        lon, lat = (np.array(axis) for axis in warp_points(cell.crs, "EPSG:4326", xs, ys))
        np.testing.assert_allclose((ends[:, 0] - lon + 180) % 360 - 180, 0, atol=1e-6)
        np.testing.assert_allclose(ends[:, 1], lat, atol=1e-6)
        assert west - 1e-6 <= ends[:, 0].min() < ends[:, 0].max() <= (east if west <= east else east + 360) + 1e-6


def test_what_stands_upright_in_its_bounds_has_none(tmp_path):
    for number, (crs, transform, grid) in enumerate(
        [
            ("EPSG:4326", from_origin(24, 60, 1e-4, 1e-4), Pixels(SIDE)),
            ("EPSG:4326", from_origin(179.99, -16.9, 1e-4, 1e-4), Pixels(SIDE)),
            ("EPSG:4326", from_origin(180.1, -16.9, 1e-4, 1e-4), Pixels(SIDE)),
            ("EPSG:3857", from_origin(20_037_000, -1_900_000, 10, 10), Pixels(SIDE)),
            ("EPSG:3857", from_origin(2_600_000, 8_400_000, 3, 3), Pixels(SIDE)),
            ("EPSG:32635", UTM, WebMap(SIDE, 15)),
        ]
    ):
        table, cells = placed(tmp_path / f"{number}.tif", crs, transform, grid)
        assert cells
        assert np.isnan(corners.corners(table)).all()


def test_what_says_too_little_or_nonsense_has_none(tmp_path):
    table, _ = placed(tmp_path / "s.tif", *SCENES["turned"], Pixels(SIDE))
    good = table.slice(0, 1).to_pylist()[0]
    rows = [
        *({**good, name: None} for name in corners.COLUMNS),
        {**good, "crs": "no system"},
        {**good, "transform": [0.0] * 6},
        {**good, "transform": [float("nan")] * 6},
        {**good, "geometry": b"no shape"},
        {**good, "geometry": tiles.footprint([100.0, -5.0, 101.0, -4.0])},
        {**good, "bounds": [24.0, 60.0, 24.0, 60.0]},
        good,
    ]
    found = corners.corners(pa.Table.from_pylist(rows, schema=corners.SCHEMA))
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [*[True] * (len(rows) - 1), False]
    assert corners.corners(corners.SCHEMA.empty_table()).shape == (0, 4, 2)

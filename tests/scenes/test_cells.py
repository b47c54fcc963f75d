"""A scene's tiles on a grid of its own pixels: their places on the globe, and their pixels."""

import math
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.transform import from_origin

from urbancross import globe, tiles
from urbancross.errors import TileError, TileSkipped
from urbancross.scenes.cells import Cell
from urbancross.scenes.grids import Pixels
from urbancross.scenes.pixels import Screen
from urbancross.scenes.tiling import Reader, Tiling

NOISE = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)  # H 8, W 10


def cells(scene: Path, name: str, tile_px: int) -> list[Cell]:
    return [cell for cell, _ in Tiling(Pixels(tile_px)).plan(scene, name)]


def read_window(scene: Path, window: tuple[int, int, int, int], min_valid: float = 0.0) -> bytes:
    tiling = Tiling(Pixels(2), screen=Screen(min_valid))
    return Reader(tiling).read({"source": str(scene), "window": window, "colours": None})


def write_scene(file: Path, pixels: np.ndarray, crs="EPSG:32635", transform=None, tags=None, **profile) -> Path:
    bands, height, width = pixels.shape
    transform = transform or from_origin(500_000, 6_000_000, 10, 10)
    profile |= {"driver": "GTiff", "width": width, "height": height, "count": bands, "dtype": pixels.dtype}
    with rasterio.open(file, "w", crs=crs, transform=transform, **profile) as raster:
        raster.write(pixels)
        raster.update_tags(**(tags or {}))
    return file


def test_cells_in_degrees_have_the_bounds_that_their_pixels_have(tmp_path):
    scene = write_scene(
        tmp_path / "scene.tif", np.zeros((3, 5, 6), np.uint8), "EPSG:4326", from_origin(24.0, 60.0, 0.001, 0.001)
    )
    found = cells(scene, "scene", tile_px=2)
    assert [cell.tile_id for cell in found] == [f"scene/{row:05d}-{col:05d}" for row in (0, 1) for col in (0, 1, 2)]
    last = found[-1]  # row 1, column 2
    assert last.window == (4, 2, 6, 4)
    assert last.bounds == pytest.approx((24.004, 59.996, 24.006, 59.998), abs=1e-9)
    assert last.crs == "EPSG:4326"
    # 0.001 degrees are 111.32 m from south to north, and at 60 degrees half of that from west to east.
    assert last.gsd_m == pytest.approx(111.32 * math.sqrt(0.5), rel=1e-4)
    assert last.datetime is None


def test_cells_in_metres_get_their_bounds_in_degrees(tmp_path):
    # UTM zone 35 has its central meridian at 27 degrees east, where x is 500,000 and the scale 0.9996.
    scene = write_scene(
        tmp_path / "scene.tif",
        np.zeros((3, 200, 200), np.uint8),
        transform=from_origin(499_000, 1_000, 10, 10),
        tags={"TIFFTAG_DATETIME": "2024:06:01 10:20:30"},
    )
    (cell,) = cells(scene, "scene", tile_px=200)
    # At the equator a degree of longitude is pi * 6,378,137 m / 180, and one of latitude 110,574 m.
    lon, lat = 1000 / 0.9996 / 111_319.49, 1000 / 0.9996 / 110_574.4
    assert cell.bounds == pytest.approx((27 - lon, -lat, 27 + lon, lat), abs=1e-6)
    assert cell.gsd_m == 10.0
    assert cell.crs == "EPSG:32635"
    assert cell.datetime == "2024-06-01T10:20:30Z"


def test_a_scene_in_feet_has_its_ground_sample_distance_in_metres(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", np.zeros((3, 2, 2), np.uint8), "EPSG:2263")  # New York, US survey feet
    (cell,) = cells(scene, "scene", tile_px=2)
    assert cell.gsd_m == pytest.approx(3.048, abs=1e-4)  # pixels of 10 feet


def test_a_raster_without_a_reference_system_and_a_file_that_is_none_are_told_apart(tmp_path):
    scene = write_scene(tmp_path / "scene.tif", np.zeros((3, 2, 2), np.uint8), crs=None)
    with pytest.raises(TileError, match="no coordinate reference system"):
        cells(scene, "scene", tile_px=2)
    (tmp_path / "text.tif").write_text("not a raster")
    with pytest.raises(TileError, match="not a raster"):
        cells(tmp_path / "text.tif", "text", tile_px=2)


def test_the_transform_of_a_cell_takes_its_own_pixels_to_where_the_scene_has_them(tmp_path):
    turned = Affine(2, 1, 500_000, 3, -2, 6_000_000)  # a step to the right goes 2 east and 3 north
    scene = write_scene(tmp_path / "s.tif", np.zeros((3, 8, 12), np.uint8), transform=turned)
    cell = cells(scene, "s", 4)[5]
    assert cell.window == (8, 4, 12, 8)
    assert cell.transform == (2, 1, 500_020, 3, -2, 6_000_016)  # 8 steps right and 4 down from the scene's corner
    assert Affine(*cell.transform) @ (3, 2) == turned @ (11, 6)


def test_a_window_holds_the_pixels_of_its_place(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 8), dtype=np.uint8)  # a fourth band, left out
    scene = write_scene(tmp_path / "scene.tif", pixels, photometric="RGB", alpha="NO")
    read = tiles.decode(read_window(scene, (3, 1, 7, 4)))
    np.testing.assert_array_equal(read, np.moveaxis(pixels[:3, 1:4, 3:7], 0, -1))


def test_a_scene_that_is_gone_is_told(tmp_path):
    with pytest.raises(TileError, match="cannot be read"):
        read_window(tmp_path / "absent.tif", (0, 0, 2, 2))


def test_a_scene_that_lies_nowhere_on_the_globe_is_refused_with_what_it_says(tmp_path):
    flat = np.zeros((3, 2, 2), np.uint8)
    metres = write_scene(tmp_path / "metres.tif", flat, "EPSG:4326", from_origin(500_000, 6_000_000, 10, 10))
    with pytest.raises(
        TileError, match="corners at 500000, 6e\\+06 degrees are not on the globe; is EPSG:4326 its CRS"
    ):
        cells(metres, "metres", tile_px=2)
    geocentric = write_scene(tmp_path / "geocentric.tif", flat, "EPSG:4978")
    with pytest.raises(TileError, match="globe"):
        cells(geocentric, "geocentric", tile_px=2)


def test_a_turned_scene_has_the_ground_sample_distance_of_its_pixels(tmp_path):
    turned = from_origin(500_000, 6_000_000, 10, 10) @ Affine.rotation(90)
    scene = write_scene(tmp_path / "scene.tif", np.zeros((3, 2, 2), np.uint8), transform=turned)
    (cell,) = cells(scene, "scene", tile_px=2)
    assert cell.gsd_m == pytest.approx(10)


def test_a_window_without_data_is_skipped_whether_alpha_or_nodata_says_so(tmp_path):
    nothing = np.zeros((3, 2, 4), np.uint8)
    nothing[:, 1, 2:] = (7, 9)
    scene = write_scene(tmp_path / "nodata.tif", nothing, nodata=0)
    with pytest.raises(TileSkipped, match="blank"):
        read_window(scene, (0, 0, 2, 2))
    assert tiles.decode(read_window(scene, (2, 0, 4, 2))).shape == (2, 2, 3)
    with pytest.raises(TileSkipped, match=r"no data \(50 % of it\)"):
        read_window(scene, (2, 0, 4, 2), min_valid=0.6)
    pixels = np.zeros((4, 2, 4), np.uint8)
    pixels[:3, 1, 3], pixels[3, 1, 2:] = 5, 255
    scene = write_scene(tmp_path / "scene.tif", pixels, photometric="RGB", alpha="YES")
    with pytest.raises(TileSkipped, match="blank"):
        read_window(scene, (0, 0, 2, 2))
    assert tiles.decode(read_window(scene, (2, 0, 4, 2))).shape == (2, 2, 3)


def test_a_tile_of_one_colour_and_one_of_cloud_are_skipped_with_their_reason(tmp_path):
    pixels = np.full((3, 4, 8), 90, np.uint8)
    pixels[:, :, 4:] = np.linspace(205, 250, 16, dtype=np.uint8).reshape(4, 4)
    pixels[0, 0, 4:] = 120
    scene = write_scene(tmp_path / "scene.tif", pixels)
    with pytest.raises(TileSkipped, match="one colour"):
        read_window(scene, (0, 0, 4, 4))
    assert read_window(scene, (4, 0, 8, 4))
    row = {"source": str(scene), "window": (4, 0, 8, 4), "colours": None}
    with pytest.raises(TileSkipped, match=r"cloud \(75 % of it\)"):
        Reader(Tiling(Pixels(4), screen=Screen(max_cloud=0.7))).read(row)
    assert Reader(Tiling(Pixels(4), screen=Screen(max_cloud=0.8))).read(row)


def footprints(tmp_path: Path, crs: str, transform: Affine, tile_px: int = 2) -> list[Cell]:
    scene = write_scene(tmp_path / "scene.tif", np.zeros((3, 4, 4), np.uint8), crs, transform)
    return cells(scene, "scene", tile_px)


@pytest.mark.parametrize("crs", ["EPSG:3067", "EPSG:3035", "EPSG:2193", "EPSG:31468", "EPSG:32635", "EPSG:4326"])
def test_a_footprint_is_where_pyproj_puts_its_corners_whatever_the_order_of_axes(tmp_path, crs):
    """3035, 2193, 31468 and 4326 are defined with north first; rasters hold x before y."""
    lon, lat = {"EPSG:2193": (174.0, -41.0), "EPSG:31468": (12.0, 49.0)}.get(crs, (25.0, 60.0))
    x, y = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform(lon, lat)
    pixel = 1e-4 if crs == "EPSG:4326" else 10.0
    first = footprints(tmp_path, crs, from_origin(x, y, pixel, pixel))[0]
    back = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
    corners = [back.transform(x + i * pixel, y - j * pixel) for i, j in ((0, 0), (0, 2), (2, 2), (2, 0))]
    assert shapely.Polygon(corners).symmetric_difference(shapely.from_wkb(first.footprint)).area < 1e-10
    assert first.bounds == pytest.approx(shapely.Polygon(corners).bounds, abs=1e-6)
    assert first.bounds[0] == pytest.approx(lon, abs=1e-3)
    assert first.bounds[3] == pytest.approx(lat, abs=1e-3)


def test_a_tile_across_the_antimeridian_has_west_over_east_and_two_parts(tmp_path):
    """UTM 60 south runs over 180 degrees near Fiji; so may a scene in degrees that goes on past 180."""
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32760", always_xy=True).transform(180.0, -17.0)
    utm = footprints(tmp_path, "EPSG:32760", from_origin(x - 1000, y, 1000, 1000), tile_px=2)[0]
    degrees = footprints(tmp_path, "EPSG:4326", from_origin(179.99, -17.0, 0.01, 0.01))[0]
    for cell in (utm, degrees):
        west, south, east, north = cell.bounds
        assert west == pytest.approx(179.99, abs=2e-3)
        assert east == pytest.approx(-179.99, abs=2e-3)
        assert south < north
        parts = shapely.from_wkb(cell.footprint).geoms
        assert sorted(part.bounds[0] for part in parts) == pytest.approx([-180, west])
        assert sorted(part.bounds[2] for part in parts) == pytest.approx([east, 180])


def test_a_tile_that_ends_at_the_antimeridian_does_not_cross_it(tmp_path):
    first, second, *_ = footprints(tmp_path, "EPSG:4326", from_origin(179.98, -17.0, 0.01, 0.01))
    assert first.bounds == pytest.approx((179.98, -17.02, 180, -17))
    assert second.bounds == pytest.approx((-180, -17.02, -179.98, -17))


def test_tiles_at_the_pole_hold_it_in_their_middle_or_at_their_corner(tmp_path):
    """Antarctica, polar stereographic: four tiles that share the pole, and one around it."""
    four = footprints(tmp_path, "EPSG:3031", from_origin(-2000, 2000, 1000, 1000))
    bounds = {tuple(round(edge) for edge in cell.bounds[::2]) for cell in four}
    assert bounds == {(-90, 0), (0, 90), (90, 180), (-180, -90)}
    (one,) = footprints(tmp_path, "EPSG:3031", from_origin(-2000, 2000, 1000, 1000), tile_px=4)
    assert one.bounds[::2] == (-180, 180)
    assert one.bounds[1] == -90
    whole = globe.areas_m2(np.array([shapely.from_wkb(one.footprint)], dtype=object))[0]
    quarters = globe.areas_m2(np.array([shapely.from_wkb(cell.footprint) for cell in four], dtype=object))
    # Its scale is true at 71 south, and 0.9727 at the pole.
    np.testing.assert_allclose(4 * quarters, 16e6 / 0.9727**2, rtol=1e-3)
    assert whole == pytest.approx(quarters.sum(), rel=0.05)  # its edges bend within a tenth of its pixels of 1 km


def test_edges_that_bend_on_the_map_of_degrees_have_corners_in_between(tmp_path):
    small = footprints(tmp_path, "EPSG:3067", from_origin(385_000, 6_672_000, 10, 10))[0]
    large = footprints(tmp_path, "EPSG:3067", from_origin(385_000, 6_672_000, 10_000, 10_000))[0]
    assert shapely.get_num_coordinates(shapely.from_wkb(small.footprint)) == 5
    assert shapely.get_num_coordinates(shapely.from_wkb(large.footprint)) == 5  # 0.1 px are 1,000 m here
    polar = footprints(tmp_path, "EPSG:3413", from_origin(-1e6, 1e6, 500_000, 500_000))[0]
    assert shapely.get_num_coordinates(shapely.from_wkb(polar.footprint)) > 20

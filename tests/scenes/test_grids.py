"""Squares on the ground: they cover it, each is named once, and neighbours have in common what was asked."""

import math

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.warp import transform as warp_points

from urbancross.errors import ConfigError
from urbancross.scenes.grids import WEB_SIDE_M, Globe, Metres, Pixels, WebMap, zone_of
from urbancross.scenes.tiling import bands_of, grid_of

UTM = CRS.from_epsg(32635)


def test_windows_of_a_scenes_own_pixels_overlap_and_stay_inside():
    plain = dict(Pixels(4).within(10, 9))
    assert list(plain) == ["00000-00000", "00000-00001", "00001-00000", "00001-00001"]
    assert plain["00001-00001"] == (4, 4, 8, 8)
    half = dict(Pixels(4, 0.5).within(10, 9))
    assert [window[0] for window in half.values()][:4] == [0, 2, 4, 6]
    assert all(x1 <= 10 and y1 <= 9 for _, _, x1, y1 in half.values())


@pytest.mark.parametrize("overlap", [0.0, 0.25])
def test_squares_of_metres_hang_on_the_systems_origin_alone(overlap: float):
    grid = Metres(100, 0.5, overlap)
    one = {square.name: square for square in grid.within(UTM, 500_010, 6_000_020, 500_300, 6_000_200)}
    other = {square.name: square for square in grid.within(UTM, 500_120, 5_999_900, 500_500, 6_000_100)}
    both = one.keys() & other.keys()
    assert both
    assert all(one[name] == other[name] for name in both)
    lefts = sorted({square.transform.c for square in one.values()})
    assert np.allclose(np.diff(lefts), 50 * (1 - overlap))
    assert min(lefts) <= 500_010
    assert max(lefts) + 50 >= 500_300
    assert {(square.transform.a, square.transform.e) for square in one.values()} == {(0.5, -0.5)}


def test_a_system_in_feet_has_squares_in_metres():
    (first, *_) = Metres(100, 1.0).within(CRS.from_epsg(2263), 0, 0, 10, 10)
    assert first.transform.a == pytest.approx(1 / 0.3048006096)


def test_tiles_of_a_web_map_are_those_of_everyone():
    # 18/148549/76119 holds 60.0048 N, 24.0016 E: x = (lon + 180) / 360 * 2^z, y by Mercator
    lon, lat, zoom = 24.0016, 60.0048, 18
    x = lon / 360 * WEB_SIDE_M
    y = math.asinh(math.tan(math.radians(lat))) / (2 * math.pi) * WEB_SIDE_M
    (square,) = WebMap(256, zoom).within(x, y, x, y)
    col = math.floor((lon + 180) / 360 * 2**zoom)
    row = math.floor((1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**zoom)
    assert square.name == f"{zoom}-{col}-{row}"
    left, top = square.transform @ (0, 0)
    right, bottom = square.transform @ (256, 256)
    assert left <= x <= right
    assert bottom <= y <= top
    assert right - left == pytest.approx(WEB_SIDE_M / 2**zoom)
    (grown,) = WebMap(256, zoom, 0.5).within(x, y, x, y)
    assert grown.name == square.name
    assert grown.transform.a == pytest.approx(1.5 * square.transform.a)
    assert (grown.transform @ (128, 128)) == pytest.approx(square.transform @ (128, 128))


def test_a_web_map_goes_on_behind_the_antimeridian():
    half = WEB_SIDE_M / 2
    names = [square.name for square in WebMap(256, 3).within(half - 10, 10, half + 10, 20)]
    assert names == ["3-7-3", "3-0-3"]


@pytest.mark.parametrize("overlap", [0.0, 0.3])
@pytest.mark.parametrize(
    "box", [(24.0, 60.0, 24.05, 60.03), (179.98, -16.02, -179.98, -16.0), (10, 83.98, 10.3, 84.02)]
)
def test_squares_of_the_globe_leave_no_ground_between_them(box: tuple[float, float, float, float], overlap: float):
    grid = Globe(128, 4.0, overlap)
    west, south, east, north = box
    squares = list(grid.within(*box))
    assert len({square.name for square in squares}) == len(squares)
    rng = np.random.default_rng(0)
    inner = 0.2  # of the box, away from its edge, whose squares lie outside
    width, height = (east - west) % 360, north - south
    lons = west + width * (inner + (1 - 2 * inner) * rng.random(200))
    lats = south + height * (inner + (1 - 2 * inner) * rng.random(200))
    covered = np.zeros(200, int)
    for square in squares:
        xs, ys = (np.array(axis) for axis in warp_points("EPSG:4326", square.crs, lons, lats))
        cols, rows = ~square.transform @ (xs, ys)
        covered += (cols >= 0) & (cols <= 128) & (rows >= 0) & (rows <= 128)
    # Rows are not turned to each other's north: at a corner a sliver may lie between two squares without overlap.
    assert (covered > 0).mean() >= (1.0 if overlap else 0.96)


def test_squares_of_the_globe_are_named_from_the_equator_and_greenwich():
    grid = Globe(1000, 10.0)  # 10 km: as Major TOM's
    assert grid.rows == 2002
    assert grid.square(0, 0).name == "0U_0R"
    assert grid.square(-1, -1).name == "0D_0L"
    assert grid.square(-2, 5).name == "1D_5R"
    assert all(grid.columns(row) == grid.columns(-1 - row) for row in range(0, 1001, 50))
    assert grid.columns(0) > grid.columns(500) > grid.columns(1000) >= 1
    square = grid.square(660, 17)  # 59 N, 3 E
    assert square.crs == CRS.from_epsg(32631)
    assert square.transform.c % 10 == square.transform.f % 10 == 0


def test_each_place_has_a_zone_and_the_poles_their_own_map():
    assert zone_of(60.2, 24.9).to_epsg() == 32635
    assert zone_of(-17.0, 179.99).to_epsg() == 32760
    assert zone_of(-17.0, -179.99).to_epsg() == 32701
    assert zone_of(88.0, 10.0).to_epsg() == 32661
    assert zone_of(-85.0, 10.0).to_epsg() == 32761


def test_flags_that_do_not_go_together_are_told_with_what_to_give():
    assert grid_of("globe", 224, 2.0, None, 0.1) == Globe(224, 2.0, 0.1)
    for told, message in (
        (("metres", 224, None, None, 0.0), "--grid metres wants --gsd"),
        (("xyz", 224, None, None, 0.0), "--grid xyz wants --zoom"),
        (("pixels", 224, 0.5, None, 0.0), "--gsd means nothing with --grid pixels"),
        (("globe", 224, 0.5, 3, 0.0), "--zoom means nothing with --grid globe"),
    ):
        with pytest.raises(ConfigError, match=message):
            grid_of(*told)
    assert (bands_of("4, 3,2"), bands_of("1"), bands_of(None)) == ((4, 3, 2), (1,), None)
    for text in ("4,3", "red", "0,1,2"):
        with pytest.raises(ConfigError, match=f"--bands {text}: want those of red"):
            bands_of(text)

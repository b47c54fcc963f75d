import numpy as np
import pyproj
import pytest
import shapely

from urbancross import globe

PLACES = [(0, 0), (24.9, 60.2), (180, -17), (-179.99, 66), (10, 89.99), (0, -90)]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_plane_about_a_place_is_proj_s_equal_area_plane(place):
    xy = np.random.default_rng(0).uniform(-5000, 5000, (50, 2))
    plane = pyproj.Proj(proj="laea", lon_0=place[0], lat_0=place[1], ellps="WGS84")
    lonlat = np.column_stack(plane(*xy.T, inverse=True))
    here = np.array([place], dtype=float)
    np.testing.assert_allclose(globe.plane(lonlat, here), xy, atol=0.02)
    np.testing.assert_allclose(globe.plane(globe.unplane(xy, here), here), xy, atol=5 * 5000 * 1e-3)


def test_the_middle_of_a_shape_is_found_across_the_antimeridian_and_at_a_pole():
    shapes = [
        globe.box((179.9, -17.1, -179.9, -16.9)),
        globe.outline(np.array([0, 90, 180, 270]), np.full(4, -89.9))[0],
        shapely.box(24, 60, 24.01, 60.01),
    ]
    lons, lats = globe.centres(np.array(shapes, dtype=object)).T
    assert abs(lons[0]) == pytest.approx(180, abs=1e-6)
    assert lats == pytest.approx([-17, -90, 60.005], abs=1e-4)
    assert lons[2] == pytest.approx(24.005, abs=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ((177, -20, -178, -15), (179, -18, 180, -17), True),
        ((177, -20, -178, -15), (-180, -18, -179, -17), True),
        ((177, -20, -178, -15), (-177, -18, 176, -17), False),
        ((177, -20, -178, -15), (179, -18, -179, -17), True),
        ((177, -20, -178, -15), (179, -30, -179, -21), False),
        ((24, 60, 25, 61), (24.5, 60.5, 26, 62), True),
        ((24, 60, 25, 61), (25.1, 60, 26, 61), False),
    ],
)
def test_boxes_meet_across_the_antimeridian(one, other, meet):
    assert globe.meets(one, other) is meet
    assert globe.meets(other, one) is meet


def test_bounds_may_cross_the_antimeridian_but_not_go_half_the_way_around():
    assert globe.are_bounds(177, -20, -178, -15)
    assert not globe.are_bounds(2, 0, 1, 1)  # more likely west and east in the wrong order
    assert not globe.are_bounds(0, 1, 1, 0)


def test_bounds_around_others_are_the_shortest_way_round():
    def sides(*boxes: tuple[float, float]) -> tuple[float, float]:
        west, south, east, north = globe.around([(w, -1.0, e, 2.0) for w, e in boxes])
        assert (south, north) == (-1, 2)
        return west, east

    assert sides((10, 20)) == (10, 20)
    assert sides((10, 10)) == (10, 10)
    assert sides((10, 20), (-30, -20)) == (-30, 20)
    assert sides((170, 175), (-175, -170)) == (170, -170)
    assert sides((179, -179), (-178, -170), (160, 161)) == (160, -170)
    assert sides((150, -120), (-140, -130), (140, 145)) == (140, -120)
    assert sides((-180, 180), (3, 4)) == (-180, 180)
    assert sides((-180, -50), (-60, 70), (60, 180)) == (-180, 180)
    assert sides((100, -100), (-120, 110)) == (-180, 180)
    rng = np.random.default_rng(0)
    for _ in range(300):
        boxes = [(float(w), float((w + d + 180) % 360 - 180)) for w, d in rng.integers([-180, 1], [180, 60], (3, 2))]
        west, east = sides(*boxes)
        held = {x % 360 for w, e in boxes for x in range(int(w), int(e if w <= e else e + 360))}
        width = (east - west) % 360 or 360
        assert held <= {(int(west) + k) % 360 for k in range(int(width))}
        turns = ((max(((x - start) % 360 for x in held)) + 1) for start in held)
        assert width == min(turns)

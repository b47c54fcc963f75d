"""Masks as polygons, against pixels counted one by one."""

import numpy as np
import pytest
import shapely

from urbancross.errors import TileError
from urbancross.segments import shapes
from urbancross.segments.masks import Mask

TURNED = (2.0, 1.0, 100.0, 3.0, -3.0, 200.0)  # a pixel to the right: 2 east, 3 north; one down: 1 east, 3 south


def mask_of(*rows: str) -> Mask:
    return Mask.of(np.array([[pixel == "#" for pixel in row] for row in rows]))


def test_an_outline_follows_the_edges_of_the_pixels_with_holes_and_pieces():
    shape = shapes.outline(mask_of(".....", ".###.", ".#.#.", ".###.", "....#"))
    ring = shapely.Polygon([(1, 1), (4, 1), (4, 4), (1, 4)], [[(2, 2), (3, 2), (3, 3), (2, 3)]])
    assert shape.geom_type == "MultiPolygon"  # the last pixel touches at a corner alone
    assert shape.equals(shapely.MultiPolygon([ring, shapely.box(4, 4, 5, 5)]))


def test_any_mask_gives_a_valid_shape_that_covers_its_pixels_and_no_others():
    draw = np.random.default_rng(0)
    for _ in range(300):
        pixels = draw.random(draw.integers(1, 8, 2)) < draw.random()
        if pixels.any():
            shape = shapes.outline(Mask.of(pixels))
            y, x = np.indices(pixels.shape) + 0.5
            assert shape.is_valid
            assert shape.area == pixels.sum()
            assert (shapely.contains_xy(shape, x, y) == pixels).all()


def test_a_known_mask_on_a_turned_grid_lands_on_coordinates_worked_out_by_hand():
    (there,) = shapes.placed([shapes.outline(mask_of("....", ".##.", "...."))], TURNED)
    # (1, 1) -> 100 + 2 + 1, 200 + 3 - 3; (3, 1) -> 100 + 6 + 1, 200 + 9 - 3; and a row further down 1 east, 3 south
    assert there.normalize() == shapely.Polygon([(103, 200), (107, 206), (108, 203), (104, 197)]).normalize()
    assert there.exterior.is_ccw


@pytest.mark.parametrize("transform", [TURNED, (0.5, 0, 7, 0, 0.25, 9), (10, 0, 5e5, 0, -10, 6e6)])
def test_the_area_is_that_of_the_pixels_times_the_determinant(transform):
    pixels = np.random.default_rng(1).random((20, 30)) < 0.6
    (there,) = shapes.placed([shapes.outline(Mask.of(pixels))], transform)
    a, b, _, d, e, _ = transform
    assert there.is_valid
    assert there.area == pytest.approx(pixels.sum() * abs(a * e - b * d), rel=1e-9)
    assert all(piece.exterior.is_ccw for piece in shapely.get_parts(there))


def test_a_simpler_outline_strays_by_no_more_than_was_asked_and_stays_valid():
    y, x = np.indices((40, 40))
    exact = shapes.outline(Mask.of(np.hypot(x - 20, y - 20) < 15))
    simple = shapes.outline(Mask.of(np.hypot(x - 20, y - 20) < 15), simplify_px=1.5)
    assert len(simple.exterior.coords) < len(exact.exterior.coords) / 2
    assert shapely.hausdorff_distance(simple, exact) <= 1.5
    draw = np.random.default_rng(2)
    for _ in range(100):
        found = shapes.outline(Mask.of(draw.random((12, 12)) < 0.5), simplify_px=1.2)
        assert found.is_valid
        assert found.geom_type in ("Polygon", "MultiPolygon")


def test_bounds_are_filled_from_north_west_and_go_on_past_the_antimeridian():
    assert shapes.across([10, 40, 14, 50], (5, 8)) == (0.5, 0, 10, 0, -2, 50)
    assert shapes.across([179, 0, -179, 2], (4, 4)) == (0.5, 0, 179, 0, -0.5, 2)
    drawn = shapes.placed([shapely.box(0, 0, 4, 2), shapely.box(0, 0, 1, 1)], (0.5, 0, 179, 0, -0.5, 2))
    both, west = shapes.cut_at_antimeridian(drawn)
    assert both.equals(shapely.MultiPolygon([shapely.box(179, 1, 180, 2), shapely.box(-180, 1, -179, 2)]))
    assert west.equals(shapely.box(179, 1.5, 179.5, 2))


def test_a_mask_that_is_not_in_its_box_is_refused():
    with pytest.raises(TileError, match="a mask of 2 pixels does not lie in its box"):
        shapes.outline(vars(mask_of(".##")) | {"box": [0, 0, 2, 1]})
    with pytest.raises(TileError, match="a mask of 0 pixels"):
        shapes.outline(mask_of("..."))


def test_a_path_draws_every_ring_and_a_number_stands_on_its_segment():
    shape = shapes.outline(mask_of("###", "#.#", "###"))
    path = shapes.svg_path(shape)
    assert path.count("M") == path.count("Z") == 2
    assert shapes.svg_path(shapely.Polygon([(0, 0), (4, 0), (4, 2), (1, 3)])) == "M0 0H4V2L1 3Z"
    for _ in range(20):
        found = shapes.outline(Mask.of(np.random.default_rng(3).random((9, 9)) < 0.4))
        assert shapely.contains_xy(found, *shapes.roomiest_point(found))

"""The land under the tiles lies where there is land, on both sides of the antimeridian."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import shapely

from urbancross import serve

FILE = Path(serve.__file__).parent / "static" / "land.js"


@pytest.fixture(scope="module")
def land() -> shapely.Geometry:
    found = re.search(r"house\.land = (\{.*\});", FILE.read_text())
    assert found is not None
    return shapely.from_geojson(found[1])


@pytest.mark.parametrize(
    ("lon", "lat", "is_land"),
    [
        (27, 68.5, True),  # Lapland
        (105, 69, True),  # Siberia
        (-175, 66.5, True),  # Chukotka, beyond the antimeridian
        (178.2, -17.9, True),  # Fiji
        (0, -80, True),
        (-30, 68, False),
        (0, 70, False),
        (-150, 0, False),
    ],
)
def test_land_is_land_and_sea_is_sea(land: shapely.Geometry, lon: float, lat: float, is_land: bool):
    assert bool(shapely.contains_xy(land, lon, lat)) is is_land


def test_no_outline_goes_round_the_globe(land: shapely.Geometry):
    for polygon in land.geoms:
        lons = shapely.get_coordinates(polygon.exterior)[:, 0]
        jumps = [(a, b) for a, b in pairwise(lons) if abs(a - b) > 180 and {a, b} != {-180, 180}]
        assert not jumps

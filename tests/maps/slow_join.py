"""The join as it was before it learned to take many tiles at once: one tile, one box, plain shapely. Slow and clear."""

from collections.abc import Sequence

import numpy as np
import pyproj
import shapely

from urbancross.maps.visible import width_m


def tags_of(
    bounds: Sequence[float], tags: Sequence[Sequence[str]], shapes: np.ndarray, max_tags: int = 12
) -> tuple[list[str], list[str], dict[str, int]]:
    """Center tags, surrounding tags, and how many features of the tile carry each tag."""
    west, south, east, north = bounds
    tile = shapely.box(west, south, east, north)
    found = [i for i in range(len(shapes)) if shapes[i].intersects(tile)]
    inside = {i: shapes[i].intersection(tile) for i in found}
    found = [i for i in found if shapely.get_dimensions(inside[i]) == shapely.get_dimensions(shapes[i])]
    if not found:
        return [], [], {}
    plane = pyproj.Proj(proj="laea", lon_0=(west + east) / 2, lat_0=(south + north) / 2, ellps="WGS84")
    areas_m2, distances_m = {}, {}
    for i in found:
        flat = shapely.transform(inside[i], lambda lonlat: np.column_stack(plane(*lonlat.T)))
        line = shapely.get_dimensions(flat) == 1
        areas_m2[i] = flat.length * width_m(tags[i]) if line else flat.area
        distances_m[i] = max(flat.distance(shapely.Point(0, 0)) - (width_m(tags[i]) / 2 if line else 0), 0)
    nearest = min(distances_m.values())
    central = [i for i in found if distances_m[i] == nearest]
    central = sorted(central, key=lambda i: areas_m2[i]) if nearest == 0 else central[:1]
    center = list(dict.fromkeys(tag for i in central for tag in tags[i]))[:max_tags]
    covered_m2: dict[str, float] = {}
    numbers: dict[str, int] = {}
    for i in found:
        for tag in tags[i]:
            numbers[tag] = numbers.get(tag, 0) + 1
            if i not in central:
                covered_m2[tag] = covered_m2.get(tag, 0.0) + areas_m2[i]
    others = sorted(covered_m2.keys() - set(center), key=lambda tag: (-covered_m2[tag], tag))
    return center, others[: max_tags - len(center)], numbers

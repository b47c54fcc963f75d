"""Outlines on the globe: across the antimeridian, around a pole, and in metres about a place.

Degrees are longitude first. A shape never crosses the antimeridian: it is cut there, as RFC 7946 has it, and its bounds
then say west > east. Between two corners it follows the straight line on the map of longitude and latitude.
"""

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

Bounds = tuple[float, float, float, float]  # west, south, east, north; degrees; west > east across the antimeridian

CRS84 = "OGC:CRS84"  # degrees, longitude first
WORLD = shapely.box(-180, -90, 180, 90)
EQUATOR_M, FLATTENING = 6_378_137.0, 1 / 298.257223563  # WGS 84
SQUARED_ECCENTRICITY = FLATTENING * (2 - FLATTENING)
AT_POLE = 90 - 1e-9


def outline(lons: np.ndarray, lats: np.ndarray) -> tuple[BaseGeometry, Bounds]:
    """The area within a ring of corners, and its bounds.

    A ring that goes once around the globe holds the pole on its side of the equator; a corner at a pole has no
    longitude of its own.

    Args:
        lons, lats: the corners in turn, each once; from one to the next is less than half the way around.
    """
    lons, lats = _with_lines_to_poles(np.asarray(lons, float), np.asarray(lats, float))
    lons = np.unwrap(lons, period=360)
    back = lons[0] + np.remainder(lons[-1] - lons[0] + 180, 360) - 180  # the last corner, as seen from the first
    turns = round((lons[-1] - back) / 360)
    if turns:
        pole = 90.0 if lats.mean() > 0 else -90.0
        lons = np.concatenate([lons, [lons[0] + 360 * turns] * 2, [lons[0]]])
        lats = np.concatenate([lats, [lats[0], pole, pole]])
        bounds = (-180.0, float(lats.min()), 180.0, float(lats.max()))
    else:
        west, east = float(lons.min()), float(lons.max())
        bounds = (_into_range(west, up=False), float(lats.min()), _into_range(east, up=True), float(lats.max()))
    return wrapped(shapely.Polygon(np.column_stack([lons, lats]))), bounds


def _with_lines_to_poles(lons: np.ndarray, lats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A corner at a pole stands for two: one under each of its neighbours' meridians."""
    if not (np.abs(lats) > AT_POLE).any():
        return lons, lats
    at_pole, found = np.abs(lats) > AT_POLE, []
    for i in range(len(lons)):
        if at_pole[i]:
            found += [(lons[j], lats[i]) for j in (i - 1, (i + 1) % len(lons)) if not at_pole[j]]
        else:
            found.append((lons[i], lats[i]))
    return np.array([lon for lon, _ in found]), np.array([lat for _, lat in found])


def _into_range(lon: float, up: bool) -> float:
    """A longitude in [-180, 180]; the antimeridian itself is 180 as an eastern edge (`up`), -180 as a western one."""
    if -180 <= lon <= 180 and lon != (-180 if up else 180):
        return lon
    lon = (lon + 180) % 360 - 180
    return 180.0 if up and lon == -180 else lon


def box(bounds: Sequence[float]) -> BaseGeometry:
    """The area within bounds, two boxes where they cross the antimeridian."""
    west, south, east, north = bounds
    return wrapped(shapely.box(west, south, east if west <= east else east + 360, north))


def wrapped(shape: BaseGeometry) -> BaseGeometry:
    """A shape whose longitudes run past the antimeridian, cut there and moved back into the range."""
    west, _, east, _ = shape.bounds
    if west >= -180 and east <= 180:
        return shape
    copies = [shapely.transform(shape, lambda xy, by=360.0 * k: xy + np.array([by, 0])) for k in range(-2, 3)]
    parts = shapely.intersection(shapely.make_valid(np.array(copies, dtype=object)), WORLD)
    same = shapely.get_dimensions(parts) == shapely.get_dimensions(shape)  # not where a copy only touches the edge
    return shapely.union_all(parts[same & ~shapely.is_empty(parts)])


def cut(shapes: np.ndarray) -> np.ndarray:
    """Shapes as maps tell them, those that jump from one side of the antimeridian to the other cut there."""
    west, _, east, _ = shapely.bounds(shapes).T
    for i in np.flatnonzero(east - west > 180):
        shapes[i] = _cut(shapes[i])
    return shapes


def _cut(shape: BaseGeometry) -> BaseGeometry:
    if shapely.get_num_geometries(shape) > 1:
        return shapely.union_all([_cut(part) for part in shapely.get_parts(shape)])
    shape = shapely.get_geometry(shape, 0)
    corners = shapely.get_coordinates(shape)
    jumps = np.abs(np.diff(corners[:, 0]))
    along_pole = np.abs(corners[:-1, 1] + corners[1:, 1]) > 2 * AT_POLE
    if not ((jumps > 180) & (jumps < 360) & ~along_pole).any():  # 360 is the frame of a map that goes all around
        return shape
    return wrapped(
        shapely.transform(shape, lambda xy: np.column_stack([np.where(xy[:, 0] < 0, 360, 0) + xy[:, 0], xy[:, 1]]))
    )


def are_bounds(west: float, south: float, east: float, north: float) -> bool:
    """Whether these are bounds; those across the antimeridian go less than half the way around: more is a mix-up."""
    in_range = -180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90
    return in_range and (west <= east or east - west + 360 <= 180)


def around(boxes: Sequence[Bounds]) -> Bounds:
    """The smallest bounds that hold all of some bounds, at least one; across the antimeridian where that is shorter."""
    spans = sorted((west, east if west <= east else east + 360) for west, _, east, _ in boxes)
    first, last = spans[0]
    gap, begins, ends = 0.0, first, last
    for west, east in spans[1:]:
        if west - last > gap:
            gap, begins, ends = west - last, west, last
        last = max(last, east)
    if first + 360 - last >= gap:
        begins, ends = first, last
    else:  # what crosses the antimeridian may cover the beginning of what lies beyond
        ends = max(ends, last - 360)
    south, north = min(box[1] for box in boxes), max(box[3] for box in boxes)
    if ends - begins >= 360 or (gap == 0 and last - first >= 360):
        begins, ends = -180.0, 180.0
    return begins, south, _into_range(ends, up=True), north


def meets(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two bounds have a place in common; either may cross the antimeridian."""
    if one[1] > other[3] or one[3] < other[1]:
        return False
    spans = [((b[0], b[2]),) if b[0] <= b[2] else ((b[0], 180.0), (-180.0, b[2])) for b in (one, other)]
    return any(a[0] <= b[1] and a[1] >= b[0] for a in spans[0] for b in spans[1])


def _radii_m(lats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far a radian goes along the meridian, and along the parallel."""
    phi = np.radians(lats)
    bent = 1 - SQUARED_ECCENTRICITY * np.sin(phi) ** 2
    return EQUATOR_M * (1 - SQUARED_ECCENTRICITY) / bent**1.5, EQUATOR_M * np.cos(phi) / np.sqrt(bent)


def metres_per_degree(lats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of longitude and of latitude, on the ellipsoid."""
    north, east = _radii_m(lats)
    return np.radians(east), np.radians(north)


def areas_m2(shapes: np.ndarray) -> np.ndarray:
    """What shapes in degrees cover: their area on the map, by the scale at their middle.

    The width of a degree goes down in a straight line towards a pole, so that this holds there too.
    """
    areas = shapely.area(shapes)
    seen = np.flatnonzero(areas)
    east, north = metres_per_degree(shapely.get_y(shapely.centroid(shapes[seen])))
    areas[seen] *= east * north
    return areas


def lengths_m(shapes: np.ndarray) -> np.ndarray:
    """How long lines in degrees are."""
    found = np.empty(len(shapes))
    many = shapely.get_num_geometries(shapes) > 1
    found[~many] = _line_lengths_m(shapes[~many])
    parts, shape = shapely.get_parts(shapes[many], return_index=True)
    found[many] = np.bincount(shape, _line_lengths_m(parts), np.count_nonzero(many))
    return found


def _line_lengths_m(lines: np.ndarray) -> np.ndarray:
    corners, line = shapely.get_coordinates(lines, return_index=True)
    same = line[1:] == line[:-1]
    east, north = metres_per_degree((corners[1:, 1] + corners[:-1, 1]) / 2)
    steps = np.hypot(np.diff(corners[:, 0]) * east, np.diff(corners[:, 1]) * north) * same
    return np.bincount(line[1:], steps, len(lines))


def _on_ellipsoid(lonlat: np.ndarray) -> tuple[np.ndarray, ...]:
    lon, lat = np.radians(lonlat).T
    sin, cos = np.sin(lat), np.cos(lat)
    normal = EQUATOR_M / np.sqrt(1 - SQUARED_ECCENTRICITY * sin**2)
    return normal * cos * np.cos(lon), normal * cos * np.sin(lon), normal * (1 - SQUARED_ECCENTRICITY) * sin


def plane(lonlat: np.ndarray, centres: np.ndarray, of: np.ndarray | int = 0) -> np.ndarray:
    """Metres east and north of a centre, `[N, 2]`, on an equal-area map of its own about each centre.

    The points of the ellipsoid are seen in the tangent plane and drawn outward as Lambert's azimuthal map does; a tile
    at a pole or on the antimeridian is like any other. Areas 100 km away are off by less than 0.3 %.

    Args:
        lonlat: `[N, 2]` degrees.
        centres: `[M, 2]` degrees.
        of: `[N]` of each point, the number of its centre; or the one of all.
    """
    lon, lat = np.radians(centres).T
    sin_lon, cos_lon, sin_lat, cos_lat = (each[of] for each in (np.sin(lon), np.cos(lon), np.sin(lat), np.cos(lat)))
    here = (each[of] for each in _on_ellipsoid(centres))
    x, y, z = (there - origin for there, origin in zip(_on_ellipsoid(lonlat), here, strict=True))
    east = cos_lon * y - sin_lon * x
    ahead = cos_lon * x + sin_lon * y
    north, up = cos_lat * z - sin_lat * ahead, cos_lat * ahead + sin_lat * z
    outward = 1 / np.sqrt(np.maximum(1 + up / (2 * EQUATOR_M), 1e-6))
    return np.column_stack([east * outward, north * outward])


def unplane(xy: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Degrees of points given as `plane` gives them, right to a thousandth of their distance from the centre."""
    lon, lat = np.radians(centres).T
    normal = EQUATOR_M / np.sqrt(1 - SQUARED_ECCENTRICITY * np.sin(lat) ** 2)
    radius = normal * np.sqrt((1 - SQUARED_ECCENTRICITY) / (1 - SQUARED_ECCENTRICITY * np.sin(lat) ** 2))
    far = np.maximum(np.hypot(xy[:, 0], xy[:, 1]), 1e-9)
    angle = 2 * np.arcsin(np.minimum(far / (2 * radius), 1))
    sin, cos = np.sin(angle), np.cos(angle)
    up = np.clip(cos * np.sin(lat) + xy[:, 1] * sin * np.cos(lat) / far, -1, 1)
    east = np.arctan2(xy[:, 0] * sin, far * np.cos(lat) * cos - xy[:, 1] * np.sin(lat) * sin)
    lons = np.degrees(lon + east)
    return np.column_stack(
        [np.where(np.abs(lons) > 180, np.remainder(lons + 180, 360) - 180, lons), np.degrees(np.arcsin(up))]
    )


def centres(shapes: np.ndarray) -> np.ndarray:
    """`[N, 2]` degrees: the middle of each shape, whatever cut or pole runs through it."""
    corners, shape = shapely.get_coordinates(shapes, return_index=True)
    x, y, z = (np.bincount(shape, axis, len(shapes)) for axis in _on_ellipsoid(corners))
    lats = np.arctan2(z, (1 - SQUARED_ECCENTRICITY) * np.hypot(x, y))
    found = np.degrees(np.column_stack([np.arctan2(y, x), lats]))
    for _ in range(2):  # the mean of the corners may lie to one side
        found = unplane(shapely.get_coordinates(shapely.centroid(on_planes(shapes, found))), found)
    return found


def on_planes(shapes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Each shape in metres on the plane about its own centre, as `plane` draws it."""
    corners, shape = shapely.get_coordinates(shapes, return_index=True)
    return shapely.set_coordinates(shapes.copy(), plane(corners, centres, shape))

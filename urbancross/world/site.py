"""The ground of one district, on which things are put, and the small things that several districts share."""

from collections.abc import Iterator

import numpy as np
import shapely
from shapely import LineString, Point, Polygon, affinity, box
from shapely.geometry.base import BaseGeometry

from urbancross.world.shapes import Feature, Style, feature, polygons, rectangle, scale

ROUND = np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 10, endpoint=False)])


class Site:
    """One district to fill, in its own axes: metres from its middle, +y turned to `facing`."""

    def __init__(self, cell: Polygon, facing: float, style: Style, rng: np.random.Generator) -> None:
        """`cell` in metres of the scene; `facing` in degrees: 0 leaves +y to the south, 90 turns it to the west."""
        spoke = shapely.maximum_inscribed_circle(cell, tolerance=1.0)
        a = np.deg2rad(facing)
        self.turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])  # of row vectors
        self.middle = np.array(spoke.coords[0])
        self.reach = spoke.length  # metres from the middle to the nearest edge
        self.cell = shapely.transform(cell, lambda xy: (xy - self.middle) @ self.turn.T)
        self.style, self.rng = style, rng
        self.made: list[Feature] = []
        shapely.prepare(self.cell)

    def features(self) -> list[Feature]:
        """All that was built, in metres of the scene."""
        shapes = np.array([f.shape for f in self.made], dtype=object)
        placed = shapely.transform(shapes, lambda xy: xy @ self.turn + self.middle)
        return [Feature(shape, f.look, f.rgb, f.tags, f.height_m) for shape, f in zip(placed, self.made, strict=True)]

    def pick(self, *looks: str) -> str:
        return looks[self.rng.integers(len(looks))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def ground(self, look: str, tags: str) -> None:
        """Cover the whole district."""
        self.made.append(feature(self.cell, look, self.style, self.rng, tags))

    def area(self, shape: BaseGeometry, look: str, tags: str = "", shade: float = 1, vary: float = 0.03) -> None:
        """Lay something flat and cut it off at the district's edge; of several pieces the largest stays."""
        pieces = polygons(shape & self.cell)
        if pieces:
            largest = max(pieces, key=lambda piece: piece.area)
            self.made.append(feature(largest, look, self.style, self.rng, tags, shade=shade, vary=vary))

    def put(
        self, shape: BaseGeometry, look: str, tags: str = "", height_m: float = 0, shade: float = 1, vary: float = 0.04
    ) -> bool:
        """Set something up if the whole of it has room in the district; say whether it had."""
        fits = bool(shapely.contains_properly(self.cell, shape))
        if fits:
            self.made.append(feature(shape, look, self.style, self.rng, tags, height_m, shade, vary))
        return fits

    def street(self, points: list[tuple[float, float]], look: str, width_m: float, tags: str) -> None:
        """A line in the map, `width_m` wide on the ground, cut off at the district's edge."""
        line = LineString(points) & self.cell
        if isinstance(line, LineString) and line.length > 5:
            surface = line.buffer(width_m / 2, cap_style="flat")
            self.made.append(feature(surface, look, self.style, self.rng))
            self.made.append(feature(line, look, self.style, self.rng, tags))

    def plant(self, points: np.ndarray, size: float = 1.0) -> None:
        """A tree at each of the points `[N, 2]` that the district holds; `fell` takes away those in the way."""
        points = points[shapely.contains_xy(self.cell, points)]
        diameters = self.style.crown_m * size * self.rng.uniform(0.7, 1.3, len(points))
        crowns = shapely.polygons(points[:, None] + ROUND * diameters[:, None, None] / 2)
        lights = 1 + 0.12 * self.rng.standard_normal(len(points))
        base = self.style.palette["crown"]
        for crown, light, diameter in zip(crowns, lights.tolist(), diameters.tolist(), strict=True):
            self.made.append(Feature(crown, "crown", scale(base, light), {}, diameter))

    def tree(self, x: float, y: float, size: float = 1.0) -> None:
        self.plant(np.array([[x, y]]), size)

    def trees(self, count: int) -> None:
        self.plant(self.rng.uniform(-1.2, 1.2, (count, 2)) * self.reach)

    def building(self, shape: Polygon, look: str, tags: str, height_m: float, pitched: bool = False) -> Polygon | None:
        """A building with a flat roof and its rim, or with a pitched one whose halves take the light differently.

        Returns:
            Its outline, smaller than `shape` where the site is narrow; nothing where it is too narrow.
        """
        sizes = (shape, affinity.scale(shape, 0.85, 0.85), affinity.scale(shape, 0.7, 0.7))
        built = next((size for size in sizes if self.put(size, look, tags, height_m)), None)
        if built is None:
            return None
        rgb = self.made[-1].rgb
        x0, y0, x1, y1 = built.bounds
        if pitched:
            half = box(x0, (y0 + y1) / 2, x1, y1) if x1 - x0 > y1 - y0 else box((x0 + x1) / 2, y0, x1, y1)
            self.made.append(Feature(half, look, scale(rgb, 0.8), {}, height_m + 0.1))
        elif built.area > 250:
            self.made.append(Feature(built.buffer(-1.2), look, scale(rgb, 0.92), {}, height_m + 0.1))
        return built

    def lattice(self, step_x: float, step_y: float, reach: float = 1.25) -> Iterator[tuple[float, float]]:
        """Points of a regular grid over the district, row by row."""
        far = self.reach * reach
        for y in np.arange(-far, far, step_y).tolist():
            for x in np.arange(-far, far, step_x).tolist():
                yield x, y


def vehicle(site: Site, x: float, y: float, length: float, width: float, height_m: float = 1.5) -> None:
    look = site.pick("white", "white", "dark", "dark", "red", "blue", "roof_hall")
    site.put(rectangle(x, y, length, width), look, height_m=height_m)


def car_park(site: Site, area: Polygon, full: float) -> None:
    """Rows of bays along x; `full` is the share of bays with a car."""
    site.area(area, "asphalt", "amenity=parking surface=asphalt")
    x0, y0, x1, y1 = area.bounds
    for row, y in enumerate(np.arange(y0 + 4, y1 - 3, 8.3)):
        y += 1.6 if row % 2 == 0 else -1.6  # two rows back to back, then a lane
        for x in np.arange(x0 + 4, x1 - 3, 2.9):
            if site.chance(full):
                vehicle(site, x, y, 2.0, 4.6)
        if row % 2 == 0:
            site.put(rectangle((x0 + x1) / 2, y + 2.6, x1 - x0 - 6, 0.6), "white", shade=0.8)


def pitch(site: Site, x: float, y: float, width: float, height: float, look: str, sport: str) -> None:
    """A marked playing field, three quarters as large where there is not enough room."""
    tags = f"leisure=pitch sport={sport}"
    if not site.put(rectangle(x, y, width, height), look, tags):
        width, height = 0.75 * width, 0.75 * height
        if not site.put(rectangle(x, y, width, height), look, tags):
            return
    lines = [rectangle(x, y, width * 0.9, height * 0.88).exterior]
    lines.append(LineString([(x, y - height * 0.44), (x, y + height * 0.44)]))
    if width > 40:
        lines.append(Point(x, y).buffer(height * 0.16).exterior)
        for k in (-0.375, -0.125, 0.125, 0.375):
            site.put(rectangle(x + k * width, y, width / 8, height), look, shade=0.9, vary=0)
    for line in lines:
        site.put(line.buffer(0.55), "white", vary=0)

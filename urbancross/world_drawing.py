"""What stands on the ground of the demo world, district by district, and how it looks from above.

Shapes are in metres east and south of their scene's north-west corner. A feature is painted from the same shape that
goes to the map. A feature without tags (a car, a tree, a crop row) is seen from above and in no map.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from PIL import Image, ImageDraw, ImageFilter
from shapely import LineString, Point, Polygon, affinity, box
from shapely.geometry.base import BaseGeometry

RGB = tuple[int, int, int]
PAINT: dict[str, RGB] = {
    "white": (232, 234, 234),
    "red": (172, 58, 48),
    "blue": (52, 84, 142),
    "dark": (52, 52, 56),
    "orange": (204, 128, 58),
}
# Relative brightness noise per look: of a pixel, of a few metres, of a few tens of metres.
TEXTURE: dict[str, tuple[float, float, float]] = {
    "grass": (0.05, 0.05, 0.06),
    "lawn": (0.05, 0.05, 0.05),
    "meadow": (0.06, 0.08, 0.10),
    "forest": (0.12, 0.10, 0.08),
    "crown": (0.12, 0.06, 0.05),
    "crop": (0.05, 0.04, 0.05),
    "crop_green": (0.06, 0.05, 0.05),
    "stubble": (0.05, 0.04, 0.06),
    "soil": (0.06, 0.06, 0.07),
    "water": (0.02, 0.03, 0.03),
    "sand": (0.03, 0.03, 0.04),
    "gravel": (0.09, 0.05, 0.04),
    "fairway": (0.03, 0.02, 0.03),
}
SMOOTH = (0.03, 0.02, 0.02)
ROUND = np.array([(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 10, endpoint=False)])
NAMES = ("Alder", "Birch", "Cedar", "Dune", "Elm", "Fern", "Gorse", "Heath", "Ivy", "Juniper", "Linden", "Mallow")
NAMED = {"leisure", "amenity", "aeroway", "power", "water", "waterway", "railway", "highway"}
INVISIBLE = {"name", "ref", "source", "maxspeed", "opening_hours", "addr:housenumber", "operator"}


@dataclass(frozen=True)
class Style:
    """How one country is built and how its sensor sees it."""

    palette: dict[str, RGB]
    courtyards: bool  # homes are packed blocks around courtyards; otherwise detached houses in gardens
    wobble: float  # how far street crossings stray from a regular grid, as a share of a district
    crown_m: float  # diameter of a tree's crown
    forest_gap_m: float  # between the trees of a forest
    shadow: tuple[float, float]  # metres (east, south) that a metre of height throws
    shade: float  # brightness left in a shadow
    haze: float  # share of the light that comes from the air
    haze_rgb: RGB
    gain: float
    blur_px: float
    noise: float  # standard deviation in grey values


@dataclass(frozen=True)
class Feature:
    """One thing on the ground."""

    shape: BaseGeometry
    look: str
    rgb: RGB
    tags: dict[str, str]
    height_m: float = 0.0  # above 0, it throws a shadow and lies on top of what is flat


def add_invisible(tags: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """Add what real maps also hold and nobody sees from above: names, numbers, speed limits, sources."""
    key = next(iter(tags))
    added = {}
    if key in NAMED and rng.random() < 0.4:
        added["name"] = f"{NAMES[rng.integers(len(NAMES))]} {tags[key].replace('_', ' ').title()}"
    if key == "building" and rng.random() < 0.3:
        added["addr:housenumber"] = str(rng.integers(1, 120))
    if key == "highway" and rng.random() < 0.5:
        added["maxspeed"] = str(rng.choice([30, 50, 70]))
    if tags[key] in ("primary", "runway"):
        added["ref"] = str(rng.integers(1, 90))
    if key in ("shop", "amenity") and rng.random() < 0.5:
        added["opening_hours"] = "Mo-Fr 08:00-18:00"
    if rng.random() < 0.15:
        added["source"] = str(rng.choice(["survey", "imagery", "cadastre"]))
    return tags | added


def scale(rgb: RGB, factor: float) -> RGB:
    red, green, blue = rgb
    return min(255, int(red * factor)), min(255, int(green * factor)), min(255, int(blue * factor))


def feature(
    shape: BaseGeometry,
    look: str,
    style: Style,
    rng: np.random.Generator,
    tags: str = "",
    height_m: float = 0,
    shade: float = 1,
    vary: float = 0.03,
) -> Feature:
    """A feature in its country's colours, `vary` brighter or darker than its like; `tags` as "key=value key=value"."""
    rgb = scale(style.palette[look], shade * (1 + vary * rng.standard_normal()))
    known = dict(pair.split("=", 1) for pair in tags.split())
    return Feature(shape, look, rgb, add_invisible(known, rng) if known else {}, height_m)


def polygons(shape: BaseGeometry) -> list[Polygon]:
    """The polygons among the parts of `shape`, without slivers below a square metre."""
    return [part for part in getattr(shape, "geoms", [shape]) if isinstance(part, Polygon) and part.area > 1]


def rectangle(x: float, y: float, width: float, height: float) -> Polygon:
    """Axis-parallel, centred at (x, y)."""
    return box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def blob(x: float, y: float, radius: float, rng: np.random.Generator) -> Polygon:
    """A smooth, roughly round outline of 48 points."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    r = np.ones(48)
    for k in (2, 3, 4):
        r += rng.normal(0, 0.18 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    r = radius * np.clip(r, 0.5, 1.4)
    return Polygon(np.c_[x + r * np.cos(angle), y + r * np.sin(angle)])


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


def residential(site: Site) -> None:
    site.ground("dirt" if site.style.courtyards else "lawn", "landuse=residential")
    far = site.reach * 1.5
    if site.style.courtyards:
        for x, y in site.lattice(26, 24):
            wide, deep = site.rng.uniform(19, 24, 2)
            block = rectangle(x, y, wide, deep)
            if site.chance(0.55):
                block = block - rectangle(x, y, wide * 0.4, deep * 0.4)
            site.building(block, "roof_house", "building=house", site.rng.uniform(4, 8))
        site.trees(12)
        return
    for row, street_y in enumerate(np.arange(-far, far, 52) + site.rng.uniform(8, 30)):
        site.street([(-far, street_y), (far, street_y)], "road", 6, "highway=residential")
        for x in np.arange(-far, far, 17) + 5 * (row % 2):
            for side in (-1, 1):
                wide, deep = site.rng.uniform(9, 13), site.rng.uniform(8, 10)
                y = street_y + side * site.rng.uniform(12, 15)
                house = rectangle(x, y, wide, deep) if site.chance(0.5) else rectangle(x, y, deep, wide)
                if site.chance(0.92) and site.building(house, "roof_house", "building=house", 6, pitched=True):
                    site.put(rectangle(x + 6, street_y + side * 6, 3, 6), "concrete")
                    if site.chance(0.12):
                        site.put(rectangle(x, street_y + side * 24, 7, 4), "pool", "leisure=swimming_pool")
                site.tree(x + site.rng.uniform(-6, 6), street_y + side * site.rng.uniform(20, 25), 0.9)


def apartments(site: Site) -> None:
    site.ground("lawn", "landuse=residential")
    wide, deep, step_x, step_y = (24, 24, 46, 44) if site.style.courtyards else (54, 13, 64, 42)
    far = site.reach * 1.1
    site.street([(0, -far * 1.4), (0, far * 1.4)], "asphalt", 6, "highway=service")
    for y in np.arange(-far + step_y / 2, far, step_y):
        for side in (-1, 1):
            for x in np.arange(6 + wide / 2, far, step_x):
                block = rectangle(side * x, y, wide, deep)
                if site.building(block, "roof_flat", "building=apartments", site.rng.uniform(16, 26)):
                    for _ in range(3):
                        corner = site.rng.uniform(-0.35, 0.35, 2) * (wide, deep)
                        site.put(rectangle(side * x + corner[0], y + corner[1], 3, 3), "roof_hall", height_m=30)
                    if site.chance(0.3):
                        site.put(Point(side * x, y), "white", "shop=convenience")
                for k in range(6):
                    if site.chance(0.6):
                        vehicle(site, side * (x - wide / 2 + 3 * k), y + deep / 2 + 6, 2, 4.5)
    site.trees(40)


def industrial(site: Site) -> None:
    site.ground("concrete", "landuse=industrial")
    far = site.reach * 1.05
    cut_x, cut_y = site.rng.uniform(-0.25, 0.25, 2) * site.reach
    site.street([(cut_x, -far * 1.4), (cut_x, far * 1.4)], "asphalt", 9, "highway=service")
    for x0, x1 in ((-far, cut_x), (cut_x, far)):
        for y0, y1 in ((-far, cut_y), (cut_y, far)):
            lot = box(x0 + 9, y0 + 7, x1 - 9, y1 - 7)
            hall = site.building(lot, "roof_hall", "building=industrial", site.rng.uniform(8, 13))
            a0, b0, a1, b1 = hall.bounds if hall else lot.bounds
            for x in np.arange(a0 + 6, a1 - 4, 9) if hall else ():
                site.put(rectangle(x, (b0 + b1) / 2, 1.6, (b1 - b0) * 0.8), "white", height_m=15, vary=0.1)
            for x in np.arange(a0, a1, 5):
                if site.chance(0.5):
                    vehicle(site, x, y1 - 1, 2.6, 9, 3.5)


def forest(site: Site) -> None:
    site.ground("forest", "landuse=forest")
    gap, r = site.style.forest_gap_m, site.reach
    x, y, radius = site.rng.uniform((-0.6, -0.6, 0.1), (0.6, 0.6, 0.3)) * r
    clearing = blob(x, y, radius, site.rng)
    spots = np.array(list(site.lattice(gap, gap * 0.87)))
    if site.chance(0.5):
        site.area(clearing, "meadow", "natural=grassland")
        spots = spots[~shapely.contains_xy(clearing.buffer(2), spots)]
    site.plant(spots + site.rng.uniform(-0.4, 0.4, spots.shape) * gap)


def farmland(site: Site) -> None:
    site.ground("soil", "landuse=farmland")
    left, far = -site.reach * 1.5, site.reach * 1.5
    while left < far:
        wide, split = site.rng.uniform(28, 55), site.rng.uniform(-0.6, 0.6) * site.reach
        for y0, y1 in ((-far, split), (split + 2, far)):
            look = site.pick("crop", "crop_green", "stubble", "soil")
            site.area(box(left + 1, y0, left + wide - 1, y1), look, vary=0.08)
            for x in np.arange(left + 2.5, left + wide - 2, 4.2):
                site.area(box(x, y0, x + 1.5, y1), look, shade=0.86, vary=0.02)
        left += wide


def meadow(site: Site) -> None:
    site.ground("meadow", "landuse=meadow")
    far, slope = site.reach * 1.5, site.rng.uniform(-0.3, 0.3)
    for _ in range(4):
        x, y = site.rng.uniform(-0.8, 0.8, 2) * site.reach
        site.area(blob(x, y, site.rng.uniform(12, 28), site.rng), "meadow", vary=0.06)
    site.street([(-far, -far * slope), (0, site.rng.uniform(-8, 8)), (far, far * slope)], "dirt", 2, "highway=path")
    for x in np.arange(-far, far, 5):
        site.tree(x, 0.55 * site.reach + slope * x, 0.8)
    site.trees(9)


def lake(site: Site) -> None:
    site.ground("grass", "landuse=grass")
    shore = blob(0, 0, site.reach * site.rng.uniform(0.65, 0.9), site.rng)
    island = blob(site.reach * 0.2, -site.reach * 0.1, site.reach * 0.2, site.rng)
    site.area(shore.buffer(3.5), "sand")
    water = shore - island if site.chance(0.6) else shore
    site.area(water, "water", "natural=water water=lake")
    if len(water.interiors):
        site.area(island, "grass", "place=islet")
        for angle in np.arange(0, 6.2, 1.0):
            r = site.reach * 0.1
            site.tree(site.reach * 0.2 + r * np.cos(angle), r * np.sin(angle) - site.reach * 0.1)
    for angle in np.arange(0, 6.28, 0.16):
        r = site.reach * site.rng.uniform(1.12, 1.5)
        if not shore.contains(Point(r * np.cos(angle), r * np.sin(angle)).buffer(4)):
            site.tree(r * np.cos(angle), r * np.sin(angle), 1.2)


def wavy(site: Site, y: float, swing: float) -> list[tuple[float, float]]:
    """A shoreline from west to east around `y`."""
    x = np.linspace(-2, 2, 40) * site.reach
    phase = site.rng.uniform(0, 6.28, 2)
    bend = np.sin(x / site.reach * 1.7 + phase[0]) + 0.4 * np.sin(x / site.reach * 4.1 + phase[1])
    return [(float(a), float(b)) for a, b in zip(x, y + swing * bend, strict=True)]


def beach(site: Site) -> None:
    site.ground("grass", "landuse=grass")
    far, line = site.reach * 2, wavy(site, site.reach * 0.15, site.reach * 0.1)
    upper = [(x, y - site.reach * 0.55) for x, y in line]
    site.area(Polygon([*upper, (far, far), (-far, far)]), "sand", "natural=beach surface=sand")
    site.area(Polygon([*line, (far, far), (-far, far)]), "water", "natural=water water=lagoon")
    for away in (1.5, 9, 18):
        wave = LineString([(x, y + away + site.rng.uniform(-0.8, 0.8)) for x, y in line])
        site.area(wave.buffer(1.1 if away < 5 else 0.5), "foam")
    for x, y in line:
        if site.chance(0.7):
            spot = Point(x + site.rng.uniform(-2, 2), y - site.rng.uniform(8, site.reach * 0.4))
            site.put(spot.buffer(1.6), site.pick("red", "white", "blue", "orange"), height_m=2)
    for x, y in upper:
        site.tree(x, y - 6, 0.9)
    site.building(rectangle(0, -site.reach * 0.8, 26, 12), "roof_flat", "building=hotel", 14)


def boat(site: Site, x: float, y: float, length: float, heading: float) -> None:
    """A hull amidships at (x, y) with its cabin; `heading` in degrees from +x to +y."""
    a = np.deg2rad(heading)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) * length / 2
    hull = np.array([(-1, -0.3), (0.3, -0.3), (1, 0), (0.3, 0.3), (-1, 0.3)])
    cabin = np.array([(-0.6, -0.16), (0, -0.16), (0, 0.16), (-0.6, 0.16)])
    if site.put(Polygon(hull @ turn + (x, y)), "white", height_m=1.5):
        site.put(Polygon(cabin @ turn + (x, y)), "blue", height_m=2)


def harbour(site: Site) -> None:
    cargo = site.chance(0.4)
    site.ground("concrete", "landuse=harbour" if cargo else "leisure=marina")
    r = site.reach
    quay, far = -0.45 * r, 2 * r
    site.area(box(-far, quay, far, far), "water", "natural=water water=harbour")
    if cargo:
        for x, y in site.lattice(13.5, 5):
            if y < quay - 12 and site.chance(0.75):
                look = site.pick("red", "blue", "orange", "white", "dark")
                site.put(rectangle(x, y, 12, 2.6), look, height_m=site.rng.choice([2.6, 5.2]))
        for x, length in ((-0.35 * r, 0.95 * r), (0.55 * r, 0.7 * r)):
            ship = rectangle(x, quay + 13, length, 18)
            if site.put(ship, "red", height_m=8):
                site.put(affinity.scale(ship, 0.96, 0.8), "roof_flat", height_m=9)
                for k in range(8):
                    spot = x + (k / 8 - 0.38) * length
                    look = site.pick("blue", "orange", "white", "dark")
                    site.put(rectangle(spot, quay + 13, length / 10, 10), look, height_m=12)
        for x in (-0.5 * r, 0.1 * r, 0.6 * r):
            site.put(rectangle(x, quay, 3, 34), "orange", height_m=25)
    for x in np.arange(-1.1 * r, 1.15 * r, 34) if not cargo else ():
        end = site.rng.uniform(0.6, 0.9) * r
        site.put(box(x - 1.3, quay, x + 1.3, end), "pier", "man_made=pier area=yes", height_m=1)
        for y in np.arange(quay + 6, end - 2, 4.6):
            for side in (0, 180):
                if site.chance(0.8):
                    boat(site, x + 7.5 * (1 - side / 90), y, site.rng.uniform(8, 11), side)
    for _ in range(2 if cargo else 5):
        x, y = site.rng.uniform((-0.9, 0.75), (0.9, 1.0)) * r
        boat(site, x, y, 11, site.rng.uniform(0, 360))
    for x in (-0.6 * r, 0.5 * r) if not cargo else ():
        site.building(rectangle(x, quay - 16, 30, 12), "roof_hall", "building=warehouse", 8)


def plane(site: Site, x: float, y: float, span: float) -> None:
    """An aircraft, nose to +y."""
    half = span / 2
    site.put(rectangle(x, y, span * 0.11, span), "white", height_m=4, vary=0)
    wings = [(-half, -0.12), (0, 0.2), (half, -0.12), (half, -0.2), (0, 0), (-half, -0.2)]
    site.put(Polygon([(x + a, y + b * span) for a, b in wings]), "white", height_m=4, vary=0)
    site.put(rectangle(x, y - half * 0.9, span * 0.38, span * 0.09), "white", height_m=4, vary=0)


def airfield(site: Site) -> None:
    site.ground("grass", "aeroway=aerodrome")
    r, far = site.reach, site.reach * 2
    site.area(rectangle(0, 0.5 * r, 2 * far, 30), "asphalt", "aeroway=runway surface=asphalt area=yes")
    for x in np.arange(-1.2 * r, 1.2 * r, 18):
        site.put(rectangle(x, 0.5 * r, 9, 1.2), "white", vary=0)
    for k in range(-5, 6):
        site.put(rectangle(-0.95 * r, 0.5 * r + k * 2.4, 14, 1.3), "white", vary=0)
    for side in (-1, 1):
        site.put(rectangle(0, 0.5 * r + side * 13.5, 2 * r, 0.7), "white", vary=0)
    site.area(rectangle(0, 0.08 * r, 2 * far, 12), "concrete", "aeroway=taxiway area=yes")
    site.area(rectangle(0.6 * r, 0.3 * r, 12, 0.45 * r), "concrete", "aeroway=taxiway area=yes")
    site.area(box(-0.95 * r, -0.78 * r, 0.95 * r, 0.08 * r - 4), "concrete", "aeroway=apron")
    span = site.rng.choice([17, 24])
    for x in np.arange(-0.8 * r, 0.85 * r, span * 1.25):
        if site.chance(0.85):
            plane(site, x, -0.28 * r + site.rng.uniform(-2, 2), span)
    for x in (-0.6 * r, 0.0, 0.6 * r):
        site.building(rectangle(x, -0.85 * r, 0.45 * r, 0.26 * r), "roof_hall", "building=hangar", 10)


def stadium(site: Site) -> None:
    site.ground("concrete", "leisure=stadium")
    r = site.reach
    spine = LineString([(-0.42 * r, 0), (0.42 * r, 0)])
    track = spine.buffer(0.48 * r)
    site.put(track.buffer(0.04 * r), "lawn")
    site.put(track - spine.buffer(0.34 * r), "running", "leisure=track sport=athletics")
    for k in (0.37, 0.41, 0.45):
        site.put(spine.buffer(k * r).exterior.buffer(0.3), "white", vary=0)
    site.put(spine.buffer(0.34 * r), "lawn")
    pitch(site, 0, 0, 1.0 * r, 0.56 * r, "pitch", "soccer")
    for side in (-1, 1):
        stand = rectangle(0, side * 0.72 * r, 1.3 * r, 0.26 * r)
        if site.building(stand, "roof_flat", "building=grandstand", 14):
            for k in (-0.06, 0, 0.06):
                site.put(rectangle(0, side * (0.72 + k) * r, 1.28 * r, 1), "dark", height_m=15)
    car_park(site, box(-0.9 * r, 0.9 * r, 0.9 * r, 1.2 * r), 0.6)


def pitches(site: Site) -> None:
    site.ground("grass", "leisure=sports_centre")
    r = site.reach
    pitch(site, 0, -0.5 * r, 1.6 * r, 0.8 * r, "pitch", "soccer")
    look, sport = ("court", "tennis") if site.chance(0.7) else ("running", "basketball")
    for x in np.arange(-0.8 * r, 0.8 * r, 19):
        for y in (0.2 * r, 0.2 * r + 36):
            if site.put(rectangle(x + 9, y + 12, 17, 33), look, shade=0.8):
                pitch(site, x + 9, y + 12, 11, 24, look, sport)
    for x in np.arange(-r, r, 8):
        site.tree(x, -0.02 * r)
    site.trees(14)


def retail(site: Site) -> None:
    site.ground("asphalt", "landuse=retail")
    r = site.reach
    store = site.building(rectangle(0, -0.72 * r, 1.6 * r, 0.5 * r), "roof_flat", "building=retail", 9)
    for x in np.arange(-0.5 * r, 0.55 * r, 14) if store else ():
        site.put(rectangle(x, -0.7 * r, 4, 4), "roof_hall", height_m=11)
    car_park(site, box(-1.1 * r, -0.38 * r, 1.1 * r, 1.1 * r), site.rng.uniform(0.55, 0.85))


def railyard(site: Site) -> None:
    site.ground("gravel", "landuse=railway")
    r, far = site.reach, site.reach * 2
    for y in np.arange(-0.85 * r, 0.62 * r, 6.2):
        site.street([(-far, y), (far, y)], "rail", 2.6, "railway=rail service=yard")
        x = -1.3 * r
        while site.chance(0.97) and x < 1.3 * r:
            if site.chance(0.5):
                look = site.pick("red", "dark", "blue", "orange", "roof_hall")
                for _ in range(site.rng.integers(2, 6)):
                    site.put(rectangle(x, y, 14, 3), look, height_m=4)
                    x += 15.5
            x += site.rng.uniform(15, 60)
    site.building(rectangle(0, 0.85 * r, 0.9 * r, 0.26 * r), "roof_flat", "building=train_station", 9)


def tanks(site: Site) -> None:
    site.ground("gravel", "landuse=industrial industrial=oil")
    step = site.rng.uniform(34, 46)
    for x, y in site.lattice(step, step, 1.0):
        radius = site.rng.uniform(0.28, 0.4) * step
        x, y = x + step / 2, y + step / 2
        site.put(rectangle(x, y, step * 0.94, step * 0.94).exterior.buffer(0.8), "concrete")
        tank = Point(x, y).buffer(radius, quad_segs=8)
        if site.put(tank, "steel", "man_made=storage_tank content=oil", 12):
            inner = affinity.scale(tank, 0.86, 0.86)
            site.put(inner, "steel", height_m=12.1, shade=0.93)
            site.put(rectangle(x, y, radius * 1.6, 0.9), "roof_flat", height_m=12.2, shade=0.9)


def solar(site: Site) -> None:
    site.ground("meadow", "power=plant plant:source=solar")
    r = site.reach
    for x0, x1 in ((-1.15 * r, -4.0), (4.0, 1.15 * r)):
        array = box(x0, -1.05 * r, x1, 1.05 * r)
        site.area(array, "meadow", "power=generator generator:source=solar")
        for y in np.arange(-1.05 * r, 1.05 * r, 7.5):
            for x in np.arange(x0, x1 - 12, 13):
                site.put(box(x, y, x + 12.6, y + 4.2), "panel", vary=0.05)
    site.street([(0, -1.5 * r), (0, 1.5 * r)], "dirt", 4, "highway=track")
    site.building(rectangle(0, 0, 6, 10), "roof_flat", "building=service", 4)


def school(site: Site) -> None:
    site.ground("lawn", "amenity=school")
    r = site.reach
    site.area(box(-0.5 * r, -0.6 * r, 0.55 * r, 0.15 * r), "asphalt", "leisure=playground")
    for k in range(3):
        site.put(Point((-0.2 + 0.25 * k) * r, -0.2 * r).buffer(0.08 * r).exterior.buffer(0.5), "white")
    wings = box(-0.85 * r, -0.85 * r, 0.85 * r, -0.6 * r) | box(-0.85 * r, -0.7 * r, -0.58 * r, 0.2 * r)
    if site.chance(0.6):
        wings = wings | box(0.6 * r, -0.7 * r, 0.85 * r, 0.1 * r)
    site.building(wings, "roof_school", "building=school", 10)
    pitch(site, 0.1 * r, 0.6 * r, 1.1 * r, 0.6 * r, "pitch", "soccer")
    car_park(site, box(-0.95 * r, 0.3 * r, -0.6 * r, 0.95 * r), 0.6)
    site.trees(30)


def cemetery(site: Site) -> None:
    site.ground("lawn", "landuse=cemetery")
    r = site.reach
    for k in (-0.62, 0.0, 0.62):
        site.street([(-2 * r, k * r), (2 * r, k * r)], "dirt", 3, "highway=footway")
        site.street([(k * r, -2 * r), (k * r, 2 * r)], "dirt", 3, "highway=footway")
    for x, y in site.lattice(0.055 * r, 0.09 * r, 1.3):
        if min(abs(abs(x) - 0.62 * r), abs(abs(y) - 0.62 * r), abs(x), abs(y)) > 4 and site.chance(0.9):
            site.put(rectangle(x, y, 0.028 * r, 0.048 * r), "grave", vary=0.12)
    site.building(rectangle(0, 0, 18, 9), "roof_school", "building=chapel", 9, pitched=True)
    for k in np.arange(-1.2, 1.2, 0.16):
        site.tree(k * r, 0.62 * r + 5, 0.8)
        site.tree(0.62 * r + 5, k * r, 0.8)


def golf(site: Site) -> None:
    site.ground("grass", "leisure=golf_course")
    r = site.reach
    for k, x in enumerate((-0.7 * r, 0.0, 0.7 * r)):
        y, bend = (-1) ** k * 0.75 * r, site.rng.uniform(-0.2, 0.2) * r
        fairway = LineString([(x, -y), (x + bend, 0), (x - bend / 2, y)]).buffer(0.17 * r).buffer(-4).buffer(4)
        site.area(fairway, "fairway", "golf=fairway")
        site.put(blob(x - bend / 2, y, 0.13 * r, site.rng), "green", "golf=green")
        for angle in site.rng.uniform(0, 6.28, 3):
            bunker = blob(x - bend / 2 + 0.23 * r * np.cos(angle), y + 0.23 * r * np.sin(angle), 0.06 * r, site.rng)
            site.put(bunker, "sand", "golf=bunker natural=sand")
    site.put(blob(-0.36 * r, 0.1 * r, 0.14 * r, site.rng), "water", "natural=water water=pond")
    for x in (-0.36 * r, 0.36 * r, -1.05 * r, 1.05 * r):
        for y in np.arange(-1.1 * r, 1.1 * r, 7):
            if abs(y - 0.1 * r) > 0.25 * r and site.chance(0.75):
                site.tree(x + site.rng.uniform(-5, 5), y, 1.1)


KINDS: dict[str, Callable[[Site], None]] = {
    maker.__name__: maker
    for maker in (
        *(residential, apartments, industrial, forest, farmland, meadow, lake, beach, harbour, airfield),
        *(stadium, pitches, retail, railyard, tanks, solar, school, cemetery, golf),
    )
}
COASTAL = ("beach", "harbour")  # belong to a scene's edge, their water turned outward
RURAL = ("forest", "farmland", "meadow", "lake", "golf", "solar")  # no paved street between two of these


def fell(features: list[Feature]) -> list[Feature]:
    """Take away the trees that would hide water, a pitch, a street or something raised."""
    kept_clear = ("water", "road", "asphalt", "pitch", "court", "running", "pool", "rail")
    solid = [f.shape for f in features if f.look != "crown" and (f.height_m > 0 or f.look in kept_clear)]
    crowns = [k for k, f in enumerate(features) if f.look == "crown"]
    shapes = np.array([features[k].shape for k in crowns], dtype=object)
    hits, _ = shapely.STRtree(solid).query(shapes, predicate="intersects")
    felled = {crowns[k] for k in hits.tolist()}
    return [f for k, f in enumerate(features) if k not in felled]


class Canvas:
    """An image painted in metres. Corners fall into the pixel that holds them, and outlines are painted too."""

    def __init__(self, mode: str, size_px: int, px_per_m: float, value: RGB | int) -> None:
        self.image, self.px_per_m = Image.new(mode, (size_px, size_px), value), px_per_m
        self.pen = ImageDraw.Draw(self.image)

    def fill(self, rings: Sequence[np.ndarray], value: RGB | int) -> None:
        """Paint a polygon: its outline `[N, 2]`, then those of its holes, which stay as they are."""
        outer = rings[0] * self.px_per_m
        if len(rings) == 1:
            self.pen.polygon(outer.ravel().tolist(), fill=value)
            return
        corner = np.floor(outer.min(axis=0)).astype(int) - 1
        width, height = (np.ceil(outer.max(axis=0)).astype(int) - corner + 2).tolist()
        mask = Image.new("1", (width, height))
        for k, ring in enumerate(rings):
            inside = ring * self.px_per_m - corner
            ImageDraw.Draw(mask).polygon(inside.ravel().tolist(), fill=int(k == 0))
        self.image.paste(value, (int(corner[0]), int(corner[1])), mask)


def outlines(shapes: Sequence[BaseGeometry]) -> list[list[np.ndarray]]:
    """The rings `[N, 2]` of every polygon, the outer one first."""
    rings, owner = shapely.get_rings(np.array(shapes, dtype=object), return_index=True)
    points, ring_of = shapely.get_coordinates(rings, return_index=True)
    ends = np.cumsum(np.bincount(ring_of)).tolist()
    found: list[list[np.ndarray]] = [[] for _ in shapes]
    for k, start, end in zip(owner.tolist(), [0, *ends], ends, strict=False):
        found[k].append(points[start:end])
    return found


def throw(shadow: Canvas, f: Feature, rings: Sequence[np.ndarray], style: Style) -> None:
    """Darken where the shadow of `f` ends, and for what is tall and not a round crown, all on the way there."""
    away = np.multiply(style.shadow, f.height_m)
    shadow.fill([rings[0] + away], 255)
    if f.height_m > 5 and f.look != "crown":
        for ring in rings:
            for start, end in pairwise(ring):
                shadow.fill([np.array([start, end, end + away, start + away])], 255)


def noise(size: int, grain: float, rng: np.random.Generator) -> np.ndarray:
    """`[size, size]` float32 with unit deviation whose lumps are about `grain` pixels wide."""
    few = int(size / grain) + 2
    field = Image.fromarray(rng.standard_normal((few, few), dtype=np.float32))
    field = field.resize((size, size), Image.Resampling.BICUBIC) if few < size else field.crop((0, 0, size, size))
    values = np.asarray(field)
    return values / values.std()


def draw(features: list[Feature], style: Style, scene_px: int, gsd_m: float, rng: np.random.Generator) -> np.ndarray:
    """Paint a scene, `[scene_px, scene_px, 3]` uint8, at twice its size; reduce it, texture it, pass it to a sensor."""
    looks = {look: k for k, look in enumerate(style.palette)}
    canvas = Canvas("RGB", 2 * scene_px, 2 / gsd_m, style.palette["grass"])
    shadow = Canvas("L", 2 * scene_px, 2 / gsd_m, 0)
    look_map = Canvas("L", scene_px, 1 / gsd_m, looks["grass"])
    seen = sorted((f for f in features if isinstance(f.shape, Polygon)), key=lambda f: f.height_m)  # flat ones as made
    rings = outlines([f.shape for f in seen])
    flat = sum(f.height_m == 0 for f in seen)
    for k, f in enumerate(seen):
        if k == flat:  # what is flat is painted: darken it before anything stands on it
            for tall, outline in zip(seen[flat:], rings[flat:], strict=True):
                throw(shadow, tall, outline, style)
            dark = canvas.image.point(lambda value: value * style.shade)
            canvas.image.paste(dark, (0, 0), shadow.image)
        canvas.fill(rings[k], f.rgb)
        if f.look == "crown":  # the side towards the sun is brighter
            x, y = shapely.get_coordinates(f.shape.centroid)[0] * 0.4 - np.multiply(style.shadow, f.height_m * 0.2)
            sunny = rings[k][0] * 0.6 + (x, y)
            canvas.fill([sunny], scale(f.rgb, 1.25))
        elif f.tags or (f.height_m == 0 and f.shape.area > 30):
            look_map.fill(rings[k], looks[f.look])
    strength = np.array([TEXTURE.get(look, SMOOTH) for look in looks], np.float32)
    light = np.ones((scene_px, scene_px), np.float32)
    for k, grain_m in enumerate((gsd_m, 4.0, 30.0)):
        light += noise(scene_px, grain_m / gsd_m, rng) * strength[:, k][np.asarray(look_map.image)]
    ground = np.array(canvas.image.reduce(2), np.float32)
    ground *= light[..., None]
    np.clip(ground, 0, 255, out=ground)
    seen_by = Image.fromarray(ground.astype(np.uint8)).filter(ImageFilter.GaussianBlur(style.blur_px))
    values = np.array(seen_by, np.float32)
    values *= (1 - style.haze) * style.gain
    values += np.array(style.haze_rgb, np.float32) * style.haze
    values += rng.standard_normal((scene_px, scene_px, 1), dtype=np.float32) * style.noise
    return np.clip(values, 0, 255, out=values).astype(np.uint8)

"""The kinds of district that grow or flow, each as a function that fills a site."""

import numpy as np
import shapely
from shapely import LineString, Point, Polygon, box

from urbancross.world.shapes import blob, rectangle
from urbancross.world.site import Site


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

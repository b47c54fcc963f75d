"""The kinds of district, each as a function that fills a site: what people built; `nature` holds the rest."""

from collections.abc import Callable

import numpy as np
from shapely import LineString, Point, Polygon, affinity, box

from urbancross.world.nature import beach, farmland, forest, lake, meadow
from urbancross.world.shapes import blob, rectangle
from urbancross.world.site import Site, car_park, pitch, vehicle


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
    else:
        for x in np.arange(-1.1 * r, 1.15 * r, 34):
            end = site.rng.uniform(0.6, 0.9) * r
            site.put(box(x - 1.3, quay, x + 1.3, end), "pier", "man_made=pier area=yes", height_m=1)
            for y in np.arange(quay + 6, end - 2, 4.6):
                for side in (0, 180):
                    if site.chance(0.8):
                        boat(site, x + 7.5 * (1 - side / 90), y, site.rng.uniform(8, 11), side)
    for _ in range(2 if cargo else 5):
        x, y = site.rng.uniform((-0.9, 0.75), (0.9, 1.0)) * r
        boat(site, x, y, 11, site.rng.uniform(0, 360))
    if not cargo:
        for x in (-0.6 * r, 0.5 * r):
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
    for along in r * np.arange(-1.2, 1.2, 0.16):
        site.tree(along, 0.62 * r + 5, 0.8)
        site.tree(0.62 * r + 5, along, 0.8)


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

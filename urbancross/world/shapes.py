"""What stands on the ground, as shapes in metres east and south of a scene's north-west corner, with look and tags.

A feature is painted from the same shape that goes to the map. One without tags (a car, a tree, a crop row) is seen from
above and in no map.
"""

from dataclasses import dataclass

import numpy as np
from shapely import Polygon, box
from shapely.geometry.base import BaseGeometry

RGB = tuple[int, int, int]
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

"""What the map says of the ground: a survey with omissions, wrong tags and stale features, written as OSM XML."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely
from pyproj import Transformer
from shapely import Point, Polygon, affinity, box
from shapely.geometry.base import BaseGeometry

from urbancross.world.country import Country, corner
from urbancross.world.shapes import INVISIBLE, Feature


@dataclass
class Entry:
    """One feature between ground and map; `shape` in degrees (longitude, latitude), to the seventh decimal."""

    scene: int
    shape: BaseGeometry
    tags: dict[str, str]  # on the ground; of a stale entry: none
    map_tags: dict[str, str]  # in the map; none if omitted
    in_map: str  # true | omitted | wrong | stale
    osm_id: str = ""


def main_tag(tags: dict[str, str]) -> str:
    """What a feature is: its first tag. Features that share it are of one class."""
    key, value = next(iter(tags.items()))
    return f"{key}={value}"


def survey(
    country: Country, ground: Sequence[Sequence[Feature]], scene_px: int, rng: np.random.Generator
) -> tuple[list[Entry], list[Entry]]:
    """Map the ground with the country's share of mistakes: (what is there, what is in the map only)."""
    there = [(k, f) for k, features in enumerate(ground) for f in features if f.tags]
    order = rng.permutation(len(there)).tolist()
    omitted = set(order[: round(country.omitted * len(there))])
    apt = [k for k in order if k not in omitted and there[k][1].shape.geom_type != "Point"]
    wrong = set(apt[: round(country.wrong * len(there))])
    entries = []
    for k, (scene, f) in enumerate(there):
        if k in omitted:
            entries.append(Entry(scene, f.shape, f.tags, {}, "omitted"))
        elif k in wrong:
            entries.append(Entry(scene, f.shape, f.tags, mistake(f, there, rng), "wrong"))
        else:
            entries.append(Entry(scene, f.shape, f.tags, f.tags, "true"))
    size_m = scene_px * country.gsd_m
    standing: dict[tuple[int, str], list[BaseGeometry]] = defaultdict(list)
    for scene, f in there:
        standing[scene, main_tag(f.tags)].append(f.shape)
    stale = [gone(there, standing, len(ground), size_m, rng) for _ in range(round(country.stale * len(there)))]
    everything = [*entries, *stale]
    for entry, shape in zip(everything, to_degrees(country, everything, scene_px), strict=True):
        entry.shape = shape
    return entries, stale


def to_degrees(country: Country, entries: Sequence[Entry], scene_px: int) -> np.ndarray:
    """The shapes of `entries`, from metres of their scenes to longitude and latitude."""
    scenes = np.array([entry.scene for entry in entries])
    corners = np.array([corner(country, scene, scene_px) for scene in range(scenes.max() + 1)])[scenes]
    shapes = np.array([entry.shape for entry in entries], dtype=object)
    points, owner = shapely.get_coordinates(shapes, return_index=True)
    east, north = (corners[owner] + points * (1, -1)).T
    lon_lat = Transformer.from_crs(country.crs, "EPSG:4326", always_xy=True).transform(east, north)
    shapes = shapely.set_coordinates(shapes, np.round(np.stack(lon_lat, axis=1), 7))
    return shapely.remove_repeated_points(shapes)  # corners less than a centimetre apart


def mistake(f: Feature, there: Sequence[tuple[int, Feature]], rng: np.random.Generator) -> dict[str, str]:
    """The tags of another class: a building taken for another building, an area for another area, a line for a line."""
    for k in rng.integers(len(there), size=10_000).tolist():
        donor = there[k][1]
        alike = donor.shape.geom_type == f.shape.geom_type and ("building" in donor.tags) == ("building" in f.tags)
        if alike and main_tag(donor.tags) != main_tag(f.tags):
            seen = {key: value for key, value in donor.tags.items() if key not in INVISIBLE}
            return seen | {key: value for key, value in f.tags.items() if key in INVISIBLE}
    return {"building": "yes"} if isinstance(f.shape, Polygon) else {"barrier": "fence"}  # a world of one class


def gone(
    there: Sequence[tuple[int, Feature]],
    standing: Mapping[tuple[int, str], list[BaseGeometry]],
    scenes: int,
    size_m: float,
    rng: np.random.Generator,
) -> Entry:
    """Something that the map still holds: an area or building like another, where none of its class stands now."""
    frame = box(0, 0, size_m, size_m)
    while True:
        _, donor = there[int(rng.integers(len(there)))]
        scene = int(rng.integers(scenes))
        x, y = rng.uniform(0, size_m, 2)
        middle = donor.shape.centroid
        shape = affinity.translate(donor.shape, x - middle.x, y - middle.y)
        if not isinstance(shape, Polygon) or not frame.contains(shape):
            continue
        if not shapely.intersects(shape, standing.get((scene, main_tag(donor.tags)), [])).any():
            return Entry(scene, shape, {}, donor.tags, "stale")


def write_osm(path: Path, entries: Sequence[Entry]) -> dict[str, int]:
    """Write an OSM XML file, note in every entry the id it got, and count nodes, ways and relations.

    Shapes that meet share their nodes. A polygon with holes becomes a multipolygon relation.
    """
    nodes: dict[tuple[float, float], int] = {}
    node_tags: dict[int, dict[str, str]] = {}
    ways: list[str] = []
    relations: list[str] = []

    def node(point: tuple[float, ...]) -> int:
        return nodes.setdefault((point[0], point[1]), len(nodes) + 1)

    def way(points: Iterable[tuple[float, ...]], tags: dict[str, str]) -> int:
        refs = "".join(f'<nd ref="{node(point)}"/>' for point in points)
        ways.append(f'<way id="{len(ways) + 1}" version="1">{refs}{xml_tags(tags)}</way>')
        return len(ways)

    for entry in entries:
        shape = entry.shape
        if isinstance(shape, Point):
            number = node(shape.coords[0])
            node_tags[number] = entry.map_tags
            entry.osm_id = f"node/{number}"
        elif isinstance(shape, Polygon) and len(shape.interiors):
            outer = way(shape.exterior.coords, {})
            parts = [f'<member type="way" ref="{outer}" role="outer"/>']
            parts += [f'<member type="way" ref="{way(hole.coords, {})}" role="inner"/>' for hole in shape.interiors]
            number = len(relations) + 1
            tags = xml_tags({"type": "multipolygon"} | entry.map_tags)
            relations.append(f'<relation id="{number}" version="1">{"".join(parts)}{tags}</relation>')
            entry.osm_id = f"relation/{number}"
        else:
            line = shape.exterior if isinstance(shape, Polygon) else shape
            entry.osm_id = f"way/{way(line.coords, entry.map_tags)}"

    lines = ["<?xml version='1.0' encoding='UTF-8'?>", '<osm version="0.6" generator="urbancross">']
    for (lon, lat), number in nodes.items():
        tags = xml_tags(node_tags.get(number, {}))
        lines.append(f'<node id="{number}" version="1" lat="{lat:.7f}" lon="{lon:.7f}">{tags}</node>')
    path.write_text("\n".join([*lines, *ways, *relations, "</osm>", ""]), encoding="utf-8")
    return {"nodes": len(nodes), "ways": len(ways), "relations": len(relations)}


def xml_tags(tags: dict[str, str]) -> str:
    return "".join(f"<tag k={quoteattr(key)} v={quoteattr(value)}/>" for key, value in tags.items())


def write_truth(
    path: Path, country: Country, entries: Sequence[Entry], stale: Sequence[Entry], counts: dict[str, int]
) -> None:
    """GeoJSON of what is on the ground; what only the map holds stands apart, under `stale`."""

    def as_json(entry: Entry) -> dict[str, object]:
        shape = shapely.orient_polygons(entry.shape, exterior_cw=False)
        about = {"in_map": entry.in_map, "scene": f"{country.name}-{entry.scene:02d}"}
        if entry.osm_id:
            about["osm_id"] = entry.osm_id
        if entry.in_map == "wrong":
            about["map_tag"] = main_tag(entry.map_tags)
        tags = entry.tags or entry.map_tags
        return {"type": "Feature", "properties": tags | about, "geometry": shapely.geometry.mapping(shape)}

    there = counts["features"]
    about = {
        "country": country.name,
        "crs_of_scenes": country.crs,
        "gsd_m": country.gsd_m,
        "features": there,
        **{state: counts[state] / there for state in ("omitted", "wrong", "stale")},
    }
    collection = {
        "type": "FeatureCollection",
        "properties": about,
        "features": [as_json(entry) for entry in entries],
        "stale": [as_json(entry) for entry in stale],
    }
    path.write_text(json.dumps(collection) + "\n", encoding="utf-8")

"""The demo's two small countries: GeoTIFF scenes and an OSM file that describes them imperfectly, from a seed.

Pixels and map come from the same shapes (`world_drawing`), so where they disagree, it was meant: `truth.geojson` says
what is on the ground and how the map treats it.
"""

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import rasterio
import shapely
from pyproj import Transformer
from rasterio.enums import Resampling
from shapely import LineString, Point, Polygon, affinity, box
from shapely.geometry.base import BaseGeometry

from urbancross.errors import ConfigError
from urbancross.world_drawing import (
    COASTAL,
    INVISIBLE,
    KINDS,
    PAINT,
    RGB,
    RURAL,
    Feature,
    Site,
    Style,
    draw,
    feature,
    fell,
    polygons,
)

DISTRICT_PX = 250  # about what a common tile shows
SMALLEST_PX = 450  # a scene of two districts by two
ROAD_CLASSES = {"primary": 11.0, "tertiary": 8.0, "residential": 6.5, "track": 4.0}  # metres wide


@dataclass(frozen=True)
class Country:
    """A place, a look, and how far its map is to be trusted."""

    name: str
    lon: float  # degrees; its UTM zone follows from these two
    lat: float
    gsd_m: float
    taken: str  # when the scenes were seen, as TIFF writes it
    compress: str  # of the GeoTIFF: jpeg | deflate
    style: Style
    omitted: float  # share of the features on the ground that the map lacks
    stale: float  # features in the map that are gone from the ground, as a share of those that are there
    wrong: float  # share of the features on the ground that carry another class's tags

    @property
    def crs(self) -> str:
        """UTM, as `EPSG:...`."""
        return f"EPSG:{(32600 if self.lat >= 0 else 32700) + int((self.lon + 180) // 6) + 1}"

    @property
    def origin(self) -> tuple[float, float]:
        """North-west corner of the first scene: UTM metres east and north, on whole pixels."""
        east, north = Transformer.from_crs("EPSG:4326", self.crs, always_xy=True).transform(self.lon, self.lat)
        return round(east / 100) * 100.0, round(north / 100) * 100.0


def colours(text: str) -> dict[str, RGB]:
    """`"sand e6d4ac foam dee0d2"` -> looks and their RGB."""
    words = text.split()
    rgb = [tuple(bytes.fromhex(code)) for code in words[1::2]]
    return {look: (red, green, blue) for look, (red, green, blue) in zip(words[::2], rgb, strict=True)}


NORTHLAND = Country(
    name="northland",
    lon=10.4,
    lat=55.4,
    gsd_m=0.7,
    taken="2024:06:18 10:32:00",
    compress="jpeg",
    omitted=0.06,
    stale=0.02,
    wrong=0.03,
    style=Style(
        palette=PAINT
        | colours(
            """
            grass 627848  lawn 6e864e  meadow 7c8e54  forest 263824  crown 36522e  crop a6a45c
            crop_green 58803e  stubble b8aa74  soil 806c56  water 243e52  sand d0c4a2  foam ced8da
            road 82807e  asphalt 626266  dirt a8987a  concrete acaaa4  gravel 8a8278  rail 58504c
            pier 9e907c  roof_house aa4c36  roof_flat 989492  roof_hall bcc2c8  roof_school 88423a
            steel e2e4e2  panel 242c4c  pitch 548a40  running b45440  court 386692  pool 5cb0c8
            grave c6c4be  fairway 80a454  green 96ba66
            """
        ),
        courtyards=False,
        wobble=0.1,
        crown_m=6.5,
        forest_gap_m=5.6,
        shadow=(0.35, -0.75),
        shade=0.5,
        haze=0.05,
        haze_rgb=(190, 205, 225),
        gain=1.04,
        blur_px=0.5,
        noise=2.0,
    ),
)
SOUTHLAND = Country(
    name="southland",
    lon=18.6,
    lat=-33.2,
    gsd_m=0.95,
    taken="2023:02:09 08:15:00",
    compress="deflate",
    omitted=0.18,
    stale=0.05,
    wrong=0.08,
    style=Style(
        palette=PAINT
        | colours(
            """
            grass ac9464  lawn 8e8a56  meadow b89c6a  forest 7a6c46  crown 525834  crop ccae72
            crop_green 707a40  stubble b08c58  soil b27c52  water 3e6868  sand e6d4ac  foam dee0d2
            road 968a7c  asphalt 766e6a  dirt c6a478  concrete ccbea8  gravel b8a48c  rail 706054
            pier ac987e  roof_house e0d6c4  roof_flat cec6b8  roof_hall a0b0be  roof_school be845c
            steel e8e2d4  panel 323448  pitch 86904e  running c06442  court 4a8070  pool 68b8be
            grave e2d8c8  fairway 84964c  green 96ac5c
            """
        ),
        courtyards=True,
        wobble=0.15,
        crown_m=6.0,
        forest_gap_m=8.5,
        shadow=(-0.6, 0.35),
        shade=0.58,
        haze=0.16,
        haze_rgb=(226, 208, 178),
        gain=1.02,
        blur_px=0.7,
        noise=3.5,
    ),
)


@dataclass(frozen=True)
class WrittenCountry:
    """Where a country was written and what it holds."""

    scenes: tuple[Path, ...]
    map: Path
    truth: Path
    counts: dict[str, int]  # features, omitted, wrong, stale; nodes, ways, relations of the map
    districts: dict[str, int]  # of each kind


def write_country(country: Country, out: Path, scenes: int = 6, scene_px: int = 1536, seed: int = 0) -> WrittenCountry:
    """Write `scenes/<name>-00.tif` ..., `map.osm` and `truth.geojson` below `out`; the same seed writes the same bytes.

    Raises:
        ConfigError: a scene too small for two districts a side, or no scene.
    """
    if scenes < 1 or scene_px < SMALLEST_PX:
        raise ConfigError(f"{scenes} scenes of {scene_px} px asked for; ask for 1 or more of {SMALLEST_PX} px or more")
    (out / "scenes").mkdir(parents=True, exist_ok=True)
    start = [seed, zlib.crc32(country.name.encode())]
    rng = np.random.default_rng(start)
    across = max(2, round(scene_px / DISTRICT_PX))
    deck = deal(scenes, across * across, rng)
    paths, ground = [], []
    for k, kinds in enumerate(deck):
        own = np.random.default_rng([*start, k])
        features = lay_out(country, kinds, across, scene_px * country.gsd_m, own)
        ground.append(features)
        paths.append(out / "scenes" / f"{country.name}-{k:02d}.tif")
        pixels = draw(features, country.style, scene_px, country.gsd_m, own)
        write_scene(paths[-1], country, pixels, corner(country, k, scene_px))
    entries, stale = survey(country, ground, scene_px, rng)
    written = write_osm(out / "map.osm", [e for e in entries if e.map_tags] + stale)
    counts = {state: sum(e.in_map == state for e in entries) for state in ("omitted", "wrong")}
    counts = {"features": len(entries), **counts, "stale": len(stale), **written}
    write_truth(out / "truth.geojson", country, entries, stale, counts)
    districts = Counter(kind for kinds in deck for kind in kinds)
    return WrittenCountry(tuple(paths), out / "map.osm", out / "truth.geojson", counts, dict(sorted(districts.items())))


def corner(country: Country, scene: int, scene_px: int) -> tuple[float, float]:
    """UTM metres of a scene's north-west corner: three scenes to a row, 64 px apart."""
    step = (scene_px + 64) * country.gsd_m
    east, north = country.origin
    return east + scene % 3 * step, north - scene // 3 * step


def deal(scenes: int, cells: int, rng: np.random.Generator) -> list[list[str]]:
    """Give every scene its district kinds; over the country each kind comes up equally often, give or take one."""
    rounds = [rng.permutation(list(KINDS)) for _ in range(scenes * cells // len(KINDS) + 1)]
    deck = rng.permutation(np.concatenate(rounds)[: scenes * cells])
    return [[str(kind) for kind in deck[k * cells : (k + 1) * cells]] for k in range(scenes)]


def lay_out(
    country: Country, kinds: Sequence[str], across: int, size_m: float, rng: np.random.Generator
) -> list[Feature]:
    """Everything on the ground of one scene of `across` x `across` districts: districts, then streets, then a river."""
    style, step = country.style, size_m / across
    crossings = np.stack(np.meshgrid(np.arange(across + 1), np.arange(across + 1)), axis=-1) * step  # [row, column, xy]
    crossings[1:-1, 1:-1] += rng.uniform(-style.wobble, style.wobble, (across - 1, across - 1, 2)) * step
    crossings[:, [0, -1], 0] += (-9, 9)  # outer districts run on beyond the scene, where nobody sees the verge
    crossings[[0, -1], :, 1] += np.array([[-9], [9]])
    if rng.random() < 0.5:
        crossings = crossings.transpose(1, 0, 2)  # the river now runs the other way
    frame = box(0, 0, size_m, size_m)
    rivers = rng.random() < 0.7
    column = int(rng.integers(1, across)) if rivers else -1
    course = smooth(crossings[:, column])
    river = course.buffer(rng.uniform(0.08, 0.12) * step) & frame if rivers else Polygon()
    banks = river.buffer(4)

    order = place(kinds, across, rng)
    features: list[Feature] = []
    for (row, col), kind in order.items():
        quad = crossings[[row, row, row + 1, row + 1], [col, col + 1, col + 1, col]]
        cell = Polygon(quad).buffer(-7, join_style="mitre") & frame
        cell = max(polygons(cell - banks), key=lambda part: part.area)
        side = quad[1] - quad[0]
        facing = float(np.degrees(np.arctan2(side[1], side[0])))
        facing = turn_out(cell, size_m, facing) if kind in COASTAL else facing + 90 * int(rng.integers(4))
        site = Site(cell, facing, style, rng)
        KINDS[kind](site)
        features += site.features()
    for shape, road, bridge in streets(crossings, order, column, banks, frame, rng):
        features += pave(shape, road, bridge, style, rng)
    if rivers:
        water = feature(river, "water", style, rng, "natural=water water=river")
        line = feature(course & frame, "water", style, rng, "waterway=river")
        first_bridge = next((k for k, f in enumerate(features) if f.tags.get("man_made") == "bridge"), len(features))
        features = [*features[:first_bridge], water, line, *features[first_bridge:]]
    return fell(features)


def smooth(points: np.ndarray) -> LineString:
    """A rounder line through about the same places, by cutting corners three times."""
    for _ in range(3):
        early, late = points[:-1] * 0.75 + points[1:] * 0.25, points[:-1] * 0.25 + points[1:] * 0.75
        points = np.concatenate([points[:1], np.stack([early, late], axis=1).reshape(-1, 2), points[-1:]])
    return LineString(points)


def place(kinds: Sequence[str], across: int, rng: np.random.Generator) -> dict[tuple[int, int], str]:
    """(row, column) -> kind, at random but for the coastal kinds, which get the edge of the scene."""
    spots = [(row, col) for row in range(across) for col in range(across)]
    rng.shuffle(spots)
    edge_first = sorted(spots, key=lambda spot: not {0, across - 1} & set(spot))
    coast_first = sorted(kinds, key=lambda kind: kind not in COASTAL)
    coast = sum(kind in COASTAL for kind in kinds)
    rest = edge_first[coast:]
    rng.shuffle(rest)
    return dict(sorted(zip([*edge_first[:coast], *rest], coast_first, strict=True)))


def turn_out(cell: Polygon, size_m: float, facing: float) -> float:
    """The quarter turn from `facing` degrees whose +y looks out of the scene."""
    x, y = np.array([cell.centroid.x, cell.centroid.y]) - size_m / 2
    outward = (0 if y > 0 else 180) if abs(y) >= abs(x) else (270 if x > 0 else 90)
    return facing + 90 * round((outward - facing) / 90)


def streets(
    crossings: np.ndarray,
    order: dict[tuple[int, int], str],
    column: int,
    banks: BaseGeometry,
    frame: Polygon,
    rng: np.random.Generator,
) -> list[tuple[BaseGeometry, str, bool]]:
    """(line, road class, whether it is a bridge) between districts; the river takes the place of its `column`."""
    across = len(crossings) - 1
    classes = ["primary", "tertiary", *["residential"] * across]
    found, bridges = [], []
    for along_row in (True, False):
        ranks = rng.permutation(across - 1)
        for line in range(1, across):
            if not along_row and line == column:
                continue
            points = crossings[line] if along_row else crossings[:, line]
            road = classes[ranks[line - 1]]
            for k in range(across):
                beside = [(line - 1, k), (line, k)] if along_row else [(k, line - 1), (k, line)]
                rural = road != "primary" and all(order[spot] in RURAL for spot in beside)
                dry = (LineString(points[k : k + 2]) & frame) - banks
                if isinstance(dry, LineString) and dry.length > 5:
                    found.append((dry, "track" if rural else road, False))
            over = LineString(points) & banks & frame
            if isinstance(over, LineString) and over.length > 5 and (road == "primary" or rng.random() < 0.6):
                bridges.append((over, road, True))
    return [*sorted(found, key=lambda item: ROAD_CLASSES[item[1]]), *bridges]  # the widest on top


def pave(line: BaseGeometry, road: str, bridge: bool, style: Style, rng: np.random.Generator) -> list[Feature]:
    """A street: its surface, which only the pixels show, and the line that the map holds."""
    width, look = ROAD_CLASSES[road], "dirt" if road == "track" else "road"
    deck = line.buffer(width / 2 + 2, cap_style="flat") if bridge else None
    surface = Feature(line.buffer(width / 2, cap_style="flat" if bridge else "round"), look, style.palette[look], {})
    tags = f"highway={road}" + (" bridge=yes" if bridge else "")
    made = [surface, feature(line, look, style, rng, tags)]
    if road == "primary":
        made.insert(1, feature(line.buffer(0.5, cap_style="flat"), "white", style, rng))
    return [feature(deck, "concrete", style, rng, "man_made=bridge"), *made] if deck else made


def write_scene(path: Path, country: Country, pixels: np.ndarray, north_west: tuple[float, float]) -> None:
    """A tiled GeoTIFF with overviews inside; `pixels` is `[H, W, 3]` uint8."""
    height, width, _ = pixels.shape
    options = {"photometric": "ycbcr", "jpeg_quality": 90} if country.compress == "jpeg" else {"predictor": 2}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=3,
        dtype="uint8",
        crs=country.crs,
        transform=rasterio.Affine(country.gsd_m, 0, north_west[0], 0, -country.gsd_m, north_west[1]),
        tiled=True,
        blockxsize=256,
        blockysize=256,
        compress=country.compress,
        **options,
    ) as scene:
        scene.write(pixels.transpose(2, 0, 1))
        scene.update_tags(TIFFTAG_DATETIME=country.taken)
        scene.build_overviews([2, 4, 8], Resampling.average)


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
        state = "omitted" if k in omitted else "wrong" if k in wrong else "true"
        mapped = {"omitted": {}, "true": f.tags, "wrong": mistake(f, there, rng) if k in wrong else {}}[state]
        entries.append(Entry(scene, f.shape, f.tags, mapped, state))
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
    other = {"Polygon": "building=yes", "LineString": "barrier=fence"}[f.shape.geom_type]  # a world of one class
    return dict([other.split("=")])


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

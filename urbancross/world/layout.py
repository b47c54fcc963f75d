"""Districts, streets and rivers of one scene."""

from collections.abc import Sequence

import numpy as np
import shapely
from shapely import LineString, Polygon, box
from shapely.geometry.base import BaseGeometry

from urbancross.world.country import Country
from urbancross.world.districts import COASTAL, KINDS, RURAL
from urbancross.world.shapes import Feature, Style, feature, polygons
from urbancross.world.site import Site

ROAD_CLASSES = {"primary": 11.0, "tertiary": 8.0, "residential": 6.5, "track": 4.0}  # metres wide


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


def fell(features: list[Feature]) -> list[Feature]:
    """Take away the trees that would hide water, a pitch, a street or something raised."""
    kept_clear = ("water", "road", "asphalt", "pitch", "court", "running", "pool", "rail")
    solid = [f.shape for f in features if f.look != "crown" and (f.height_m > 0 or f.look in kept_clear)]
    crowns = [k for k, f in enumerate(features) if f.look == "crown"]
    shapes = np.array([features[k].shape for k in crowns], dtype=object)
    hits, _ = shapely.STRtree(solid).query(shapes, predicate="intersects")
    felled = {crowns[k] for k in hits.tolist()}
    return [f for k, f in enumerate(features) if k not in felled]

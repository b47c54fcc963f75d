"""The demo world: what is painted, what is mapped and what is true agree, but for the mistakes that were asked for."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import osmium
import pytest
import rasterio
import shapely
from pyproj import Transformer
from rasterio.features import rasterize
from shapely import LineString, Point, Polygon
from shapely.geometry.base import BaseGeometry

from urbancross.errors import ConfigError
from urbancross.world import NORTHLAND, SOUTHLAND, Country, WrittenCountry, write_country
from urbancross.world.districts import KINDS
from urbancross.world.osm import main_tag
from urbancross.world.shapes import INVISIBLE

SCENES, SCENE_PX = 6, 512
ABOUT = {"in_map", "scene", "osm_id", "map_tag"}


@dataclass
class Mapped:
    shape: BaseGeometry
    tags: dict[str, str]


@dataclass
class World:
    country: Country
    written: WrittenCountry
    truth: dict  # the GeoJSON
    osm: dict[str, Mapped]  # by "way/12"

    def true(self, tag: str | None = None) -> Iterator[tuple[dict, BaseGeometry]]:
        """Properties and shapes on the ground."""
        for feature in self.truth["features"]:
            if tag is None or main_tag(feature["properties"]) == tag:
                yield feature["properties"], shapely.geometry.shape(feature["geometry"])


def read_osm(path: Path) -> dict[str, Mapped]:
    """The map as pyosmium sees it: tagged nodes, open ways, and areas under the way or relation they come from."""
    found = {}
    for thing in osmium.FileProcessor(str(path)).with_areas():
        tags = {tag.k: tag.v for tag in thing.tags if (tag.k, tag.v) != ("type", "multipolygon")}
        if thing.is_node() and tags:
            found[f"node/{thing.id}"] = Mapped(Point(thing.lon, thing.lat), tags)
        elif thing.is_way() and tags and not thing.is_closed():
            found[f"way/{thing.id}"] = Mapped(LineString([(n.lon, n.lat) for n in thing.nodes]), tags)
        elif thing.is_area():
            (outer,) = thing.outer_rings()
            holes = [[(n.lon, n.lat) for n in ring] for ring in thing.inner_rings(outer)]
            kind = "way" if thing.from_way() else "relation"
            found[f"{kind}/{thing.orig_id()}"] = Mapped(Polygon([(n.lon, n.lat) for n in outer], holes), tags)
    for mapped in found.values():
        mapped.shape = shapely.transform(mapped.shape, lambda points: np.round(points, 7))  # as they are written
    return found


@pytest.fixture(scope="module", params=[NORTHLAND, SOUTHLAND], ids=lambda country: country.name)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    written = write_country(request.param, tmp_path_factory.mktemp(request.param.name), SCENES, SCENE_PX, seed=4)
    return World(request.param, written, json.loads(written.truth.read_text()), read_osm(written.map))


def to_pixels(shape: BaseGeometry, scene: rasterio.DatasetReader) -> BaseGeometry:
    """From degrees to columns and rows of the scene, by its own georeference."""
    to_scene = Transformer.from_crs("EPSG:4326", scene.crs, always_xy=True)
    across = ~scene.transform

    def place(points: np.ndarray) -> np.ndarray:
        return np.stack(across @ to_scene.transform(points[:, 0], points[:, 1]), axis=1)

    return shapely.transform(shape, place)


def cover(shapes: list[BaseGeometry], size: int) -> np.ndarray:
    """`[size, size]` bool: pixels whose middle one of the shapes holds."""
    return rasterize(shapes, out_shape=(size, size)).astype(bool)


def test_the_same_seed_makes_the_same_world_and_another_seed_another(tmp_path):
    first, again, other = (
        write_country(SOUTHLAND, tmp_path / name, 1, SCENE_PX, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    for name in ("map", "truth"):
        assert getattr(first, name).read_bytes() == getattr(again, name).read_bytes()
        assert getattr(first, name).read_bytes() != getattr(other, name).read_bytes()
    pixels = [rasterio.open(made.scenes[0]).read() for made in (first, again, other)]
    assert np.array_equal(pixels[0], pixels[1])
    assert not np.array_equal(pixels[0], pixels[2])


def test_every_kind_of_district_comes_up_equally_often(world):
    assert set(world.written.districts) == set(KINDS)
    assert sum(world.written.districts.values()) == SCENES * 4
    assert max(world.written.districts.values()) - min(world.written.districts.values()) <= 1


def test_what_a_district_is_known_by_stands_on_the_ground(world):
    found = Counter(main_tag(about) for about, _ in world.true())
    for tag in (
        *("building=house", "building=apartments", "building=industrial", "building=retail", "building=school"),
        *("landuse=forest", "landuse=farmland", "landuse=meadow", "landuse=cemetery", "landuse=railway"),
        *("natural=water", "natural=beach", "aeroway=runway", "leisure=track", "leisure=pitch", "leisure=golf_course"),
        *("amenity=parking", "railway=rail", "man_made=storage_tank", "power=plant", "highway=primary"),
    ):
        assert found[tag], tag


def test_a_scene_is_tiled_and_placed_as_its_country_says(world):
    hemisphere_zone = {"northland": "EPSG:32632", "southland": "EPSG:32734"}
    boxes = []
    for path in world.written.scenes:
        with rasterio.open(path) as scene:
            assert scene.crs == hemisphere_zone[world.country.name]
            assert scene.res == (world.country.gsd_m, world.country.gsd_m)
            assert (scene.count, scene.dtypes[0], scene.shape) == (3, "uint8", (SCENE_PX, SCENE_PX))
            assert scene.block_shapes[0] == (256, 256)
            assert scene.overviews(1) == [2, 4, 8]
            assert scene.compression.value.lower() == {"northland": "jpeg", "southland": "deflate"}[world.country.name]
            assert scene.tags()["TIFFTAG_DATETIME"] == world.country.taken
            boxes.append(shapely.box(*scene.bounds))
    assert shapely.union_all(boxes).area == pytest.approx(sum(one.area for one in boxes))  # none overlaps
    to_degrees = Transformer.from_crs(hemisphere_zone[world.country.name], "EPSG:4326", always_xy=True)
    assert to_degrees.transform(boxes[0].bounds[0], boxes[0].bounds[3]) == pytest.approx(
        (world.country.lon, world.country.lat), abs=0.001
    )


def test_pyosmium_finds_every_mapped_feature_where_the_truth_says(world):
    mapped = [(about, shape) for about, shape in world.true() if about["in_map"] != "omitted"]
    assert len(world.osm) == len(mapped) + len(world.truth["stale"])
    for about, shape in mapped:
        found = world.osm[about["osm_id"]]
        assert found.shape.geom_type == shape.geom_type
        assert found.shape.normalize().wkb == shape.normalize().wkb, about["osm_id"]
        tags = {key: value for key, value in about.items() if key not in ABOUT}
        if about["in_map"] == "true":
            assert found.tags == tags
        else:
            assert main_tag({k: v for k, v in found.tags.items() if k not in INVISIBLE}) != main_tag(tags)


def test_holes_are_multipolygon_relations(world):
    rings = {
        name: len(found.shape.interiors) for name, found in world.osm.items() if found.shape.geom_type == "Polygon"
    }
    assert {name.split("/")[0] for name, holes in rings.items() if holes} == {"relation"}
    assert {name.split("/")[0] for name, holes in rings.items() if not holes} == {"way"}
    holed = {main_tag(found.tags) for name, found in world.osm.items() if name.startswith("relation")}
    assert ("building=house" if world.country.style.courtyards else "natural=water") in holed


def test_relations_name_one_outer_ring_and_then_the_inner_ones(world):
    relations = ElementTree.parse(world.written.map).getroot().findall("relation")
    assert len(relations) == world.written.counts["relations"] > 0
    for relation in relations:
        roles = [member.get("role") for member in relation.findall("member")]
        assert roles == ["outer", *["inner"] * (len(roles) - 1)]
        assert relation.find("tag[@k='type']").get("v") == "multipolygon"


def test_houses_keep_their_right_angles_in_the_map(world):
    """Coordinates cut short would bend them."""
    with rasterio.open(world.written.scenes[0]) as scene:
        houses = [to_pixels(Polygon(shape.exterior), scene) for _, shape in world.true("building=house")]
    assert min(house.area / house.minimum_rotated_rectangle.area for house in houses) > 0.99


def test_the_map_errs_as_often_as_the_country_says(world):
    true = [(about, shape) for about, shape in world.true()]
    by_shape = {shape.normalize().wkb: about for about, shape in true}
    on_map = {about["osm_id"] for about, _ in true if "osm_id" in about}
    stale = [found for name, found in world.osm.items() if name not in on_map]
    states = Counter(about["in_map"] for about in by_shape.values())
    country, half = world.country, 0.51 / len(true)  # rates are kept to the nearest feature
    assert states["omitted"] / len(true) == pytest.approx(country.omitted, abs=half)
    assert states["wrong"] / len(true) == pytest.approx(country.wrong, abs=half)
    assert len(stale) / len(true) == pytest.approx(country.stale, abs=half)
    stated = world.truth["properties"]
    assert [stated[key] for key in ("omitted", "wrong")] == [states[key] / len(true) for key in ("omitted", "wrong")]
    assert stated["stale"] == len(stale) / len(true)
    for ghost in stale:
        assert ghost.shape.geom_type == "Polygon"
        like = [shape for about, shape in true if main_tag(about) == main_tag(ghost.tags)]
        assert not shapely.intersects(ghost.shape, like).any()


def test_a_country_without_mistakes_has_a_faithful_map(tmp_path):
    faithful = replace(NORTHLAND, omitted=0.0, stale=0.0, wrong=0.0)
    written = write_country(faithful, tmp_path, 1, SCENE_PX)
    truth = json.loads(written.truth.read_text())
    assert truth["stale"] == []
    tags = [{k: v for k, v in f["properties"].items() if k not in ABOUT} for f in truth["features"]]
    assert Counter(map(str, tags)) == Counter(str(found.tags) for found in read_osm(written.map).values())


def test_the_map_also_holds_what_nobody_sees_from_above(world):
    keys = {key for found in world.osm.values() for key in found.tags}
    assert {"name", "ref", "source", "maxspeed", "addr:housenumber"} <= keys


@pytest.mark.parametrize(
    ("country", "tag", "weights"),
    [(NORTHLAND, "building=house", (1, -1, 0)), (SOUTHLAND, "golf=fairway", (-1, 1, 0))],
    ids=["red-roofs", "green-fairways"],
)
def test_map_and_pixels_agree_to_half_a_pixel(country, tag, weights, tmp_path):
    """Slide the mapped shapes over the scene: what tells them from their surroundings must be strongest in place."""
    written = write_country(replace(country, omitted=0.0, stale=0.0, wrong=0.0), tmp_path, 5, SCENE_PX, seed=3)
    key, value = tag.split("=")
    shapes = [found.shape for found in read_osm(written.map).values() if found.tags.get(key) == value]
    fine = 4  # steps to a pixel
    totals: Counter[tuple[int, int]] = Counter()
    for path in written.scenes:
        with rasterio.open(path) as scene:
            shown = np.tensordot(weights, scene.read().astype(float), axes=1)
            inside = [to_pixels(shape, scene) for shape in shapes]
        inside = [shape for shape in inside if shapely.box(3, 3, SCENE_PX - 3, SCENE_PX - 3).contains(shape)]
        if not inside:
            continue
        mask = cover([shapely.transform(shape, lambda xy: xy * fine) for shape in inside], SCENE_PX * fine)
        shown = np.kron(shown, np.ones((fine, fine)))
        for dy in range(-8, 9, 2):
            for dx in range(-8, 9, 2):
                totals[dx, dy] += shown[np.roll(mask, (dy, dx), axis=(0, 1))].sum()
    (dx, dy), _ = totals.most_common(1)[0]
    assert max(abs(dx), abs(dy)) <= fine / 2, (dx / fine, dy / fine)


def test_water_is_painted_where_it_is_mapped_and_nowhere_else(world):
    """Water of the truth, 2 px inside its shore and away from what floats on it or spans it, has the water's colour."""
    style = world.country.style
    colour = np.array(style.palette["water"]) * (1 - style.haze) * style.gain + np.array(style.haze_rgb) * style.haze
    hits, strays = [], []
    for path in world.written.scenes:
        with rasterio.open(path) as scene:
            near = np.abs(scene.read().transpose(1, 2, 0) - colour).max(axis=2) < 30
            water, other = [], []
            for about, shape in world.true():
                if about["scene"] == path.stem:
                    (water if main_tag(about) == "natural=water" else other).append((about, to_pixels(shape, scene)))
        lakes = [shape for about, shape in water if about.get("water") != "harbour"]
        spans = [shape.buffer(8) for about, shape in other if about.get("man_made") == "bridge"]
        inner = [shape.buffer(-2) - shapely.union_all(spans) for shape in lakes]
        fields = [shape.buffer(-2) for about, shape in other if about.get("landuse") in ("farmland", "meadow")]
        for shapes, share in ((inner, hits), (fields, strays)):
            kept = [shape for shape in shapes if not shape.is_empty]
            share += near[cover(kept, SCENE_PX)].tolist() if kept else []
    assert np.mean(hits) > 0.93
    assert np.mean(strays) < 0.05


def test_the_two_countries_look_different(tmp_path):
    means = {}
    for country in (NORTHLAND, SOUTHLAND):
        written = write_country(country, tmp_path / country.name, 4, SCENE_PX)
        means[country.name] = np.array([rasterio.open(path).read().mean(axis=(1, 2)) for path in written.scenes])
    gap = np.linalg.norm(means["northland"].mean(axis=0) - means["southland"].mean(axis=0))
    spread = max(np.linalg.norm(shown - shown.mean(axis=0), axis=1).mean() for shown in means.values())
    assert gap > 2 * spread
    assert NORTHLAND.gsd_m != SOUTHLAND.gsd_m


@pytest.mark.parametrize(("scenes", "scene_px"), [(0, 512), (1, 400)])
def test_a_world_too_small_is_refused(scenes, scene_px, tmp_path):
    with pytest.raises(ConfigError, match="450 px"):
        write_country(NORTHLAND, tmp_path, scenes, scene_px)
    assert not list(tmp_path.iterdir())

"""The file of `report --map` in a real browser without any network, beside what `Archive` says of the same archive."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import served
import shapely
from browsing import (
    HOSTILE,
    ON_TURNED,
    asked_box,
    chromium,
    draw_box,
    is_too_wide,
    lies_as_its_scene,
    lies_together,
    looking,
    numbers,
    reloaded,
    search,
)
from playwright.sync_api import Browser, Page, expect

from urbancross import globe, schemas
from urbancross.archive import Archive
from urbancross.index.moments import span_of

FOREST, HARBOUR = "a dense forest", "a harbour with boats"
EXACT = "a harbour beside a dense forest"
TOP = 40
IN_ALL = 2 * served.COUNT - 2  # tiles with a vector

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return served.models_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Path:
    return served.made(tmp_path_factory.mktemp("mapped") / "finland", models, indexed=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def file(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "map.html"
    served.map_of(place, out, "--queries", EXACT)
    return out


@pytest.fixture(scope="module")
def before(place: Path) -> Archive:
    return Archive(str(place), embeddings="before", indexed=False)


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    with looking(browser, own=("file:", "data:", "blob:"), offline=True) as found:
        found.goto(file.as_uri())
        expect(found.locator("#name")).to_have_text("finland")
        found.locator("#model").select_option("before")
        yield found


def agree(shown: list[int], archive: Archive, *asked: Any, **filters: Any) -> None:
    """The page finds what Python finds: bytes turn the order of tiles only where their scores are nearly the same."""
    found = archive.search(*asked, **filters, top=IN_ALL).hits
    scores = {hit.number: hit.score for hit in found}
    assert set(shown) <= scores.keys()
    assert len(shown) == min(TOP, len(found))
    mine = np.array([scores[number] for number in shown])
    np.testing.assert_allclose(mine, [hit.score for hit in found[: len(shown)]], atol=0.02)


def test_the_file_answers_offline_as_python_does(page: Page, before: Archive):
    page.locator("#examples button", has_text=EXACT).click()
    expect(page.locator(".hit")).to_have_count(TOP)
    agree(numbers(page), before, EXACT)
    expect(page.locator("#note")).to_be_hidden()
    search(page, FOREST)  # a phrase of the captions: exact too
    expect(page.locator("#note")).to_contain_text(f"Went by “{FOREST}”.")
    agree(numbers(page), before, FOREST)
    first = page.locator(".hit img").first
    expect(first).to_have_js_property("complete", True)
    assert first.evaluate("image => image.naturalWidth") == 64


def test_words_that_are_no_phrase_go_by_phrases_that_have_them(page: Page, before: Archive):
    search(page, "harbours, boat and a zebra")
    expect(page.locator("#note")).to_have_text(f"Went by “{HARBOUR}”. No caption here says “zebra”.")
    agree(numbers(page), before, HARBOUR)
    search(page, "fores")  # the beginning of a word
    expect(page.locator("#note")).to_contain_text("forest")
    page.locator("#text").fill("zebra")
    page.locator("#text").press("Enter")
    expect(page.locator("#error")).to_have_text("no caption here says “zebra”; try other words")


def test_a_box_more_and_less_like_and_filters_work_offline(page: Page, before: Archive, file: Path):
    page.goto(f"{file.as_uri()}#text={FOREST}&bbox=20,59.5,21,60.5&model=before")
    reloaded(page)
    agree(numbers(page), before, FOREST, bbox=[20, 59.5, 21, 60.5])
    draw_box(page, (0.5, 0.95))
    box = asked_box(page)
    assert 19 < box[0] < 20.3 < box[2] < 20.8
    agree(numbers(page), before, FOREST, bbox=box)
    page.locator("#chips .chip").click()
    expect(page.locator("#chips")).to_be_hidden()
    was = numbers(page)
    page.locator(".hit").nth(4).locator(".like").click()
    expect(page.locator("#chips")).to_contain_text(f"like tile {was[4]}")
    assert numbers(page) != was
    agree(numbers(page), before, FOREST, like=[was[4]])
    page.locator(f".hit[data-number='{was[9]}'] .unlike").click()
    expect(page.locator("#chips")).to_contain_text(f"unlike tile {was[9]}")
    agree(numbers(page), before, FOREST, like=[was[4]], unlike=[was[9]])
    page.locator("#more").click()
    for field, value in {"tag": "natural=n1", "since": "2024-03", "until": "2024-07"}.items():
        page.locator(f"#{field}").fill(value)
    page.locator("#domain").select_option("late")
    expect(page.locator("#chips")).to_contain_text("domain late")
    filters = {"tags": ["natural=n1"], "since": "2024-03", "until": "2024-07", "domain": "late"}
    agree(numbers(page), before, FOREST, like=[was[4]], unlike=[was[9]], **filters)


def test_two_models_and_a_download_offline(page: Page, place: Path, tmp_path: Path):
    search(page, FOREST)
    page.locator("#beside").select_option("after")
    expect(page.locator("#hits h2")).to_have_text(["before", "after"])
    agree(numbers(page, 1), Archive(str(place), embeddings="after", indexed=False), FOREST)
    with page.expect_download() as download:
        page.locator("[data-format=geojson]").click()
    download.value.save_as(tmp_path / "hits.geojson")
    assert geopandas.read_file(tmp_path / "hits.geojson")["tile_id"].tolist() == [f"t{n}" for n in numbers(page)]


def test_a_phone_and_the_keyboard_work_offline(browser: Browser, file: Path):
    size = {"width": 390, "height": 844}
    with looking(browser, own=("file:", "data:", "blob:"), viewport=size, offline=True) as page:
        page.goto(file.as_uri())
        page.keyboard.press("/")
        page.keyboard.type(FOREST)
        page.keyboard.press("Enter")
        expect(page.locator(".hit")).to_have_count(TOP)
        assert not is_too_wide(page)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator("#tile")).to_be_visible()
        assert not is_too_wide(page)
        page.go_back()
        expect(page.locator("#tile")).to_be_hidden()


def test_hostile_texts_in_the_file_do_nothing(browser: Browser, tmp_path: Path, models: tuple[str, str]):
    place = served.made(tmp_path / "hostile", models, indexed=False)
    for shard in range(served.SHARDS):
        ids = [f"t{shard * served.COUNT + k}" for k in range(served.COUNT)]
        rows = [{"tile_id": one, "captions": list(HOSTILE)} for one in ids]
        served.publish(place, "captions@given", shard, rows, schemas.CAPTIONS)
        tags = [{"tile_id": one, "center_tags": [f"name={HOSTILE[1]}"], "surrounding_tags": []} for one in ids]
        served.publish(place, "geotags", shard, tags, schemas.GEOTAGS)
    served.map_of(place, tmp_path / "map.html", "--queries", HOSTILE[1])
    with looking(browser, own=("file:", "data:", "blob:"), offline=True) as page:
        page.goto((tmp_path / "map.html").as_uri())
        page.locator("#examples button").click()
        expect(page.locator(".hit")).to_have_count(TOP)
        search(page, "img src")
        expect(page.locator("#note")).to_contain_text("<img src=x")
        page.locator(".hit .open").nth(1).click()
        expect(page.locator("#tile .captions")).to_contain_text("</script><script>")
        page.locator("#tile .tags button").first.click()
        expect(page.locator("#chips")).to_contain_text("name=</script>")


def test_places_and_times_are_filtered_as_in_python(page: Page):
    rng = np.random.default_rng(5)
    west, south = rng.uniform(-180, 180, 200), rng.uniform(-90, 80, 200)
    spans = rng.uniform(0, 60, (200, 2))
    east = (west + spans[:, 0] + 180) % 360 - 180
    boxes = np.stack([west, south, east, np.minimum(south + spans[:, 1], 90)], axis=1).tolist()
    met = page.evaluate("boxes => boxes.map((a) => boxes.map((b) => urbancross.allowed.meets(a, b)))", boxes)
    assert met == [[globe.meets(a, b) for b in boxes] for a in boxes]
    shapes = [
        shapely.Point(x, y).buffer(r).difference(shapely.Point(x, y).buffer(r / 2)) if k % 2 else
        shapely.Polygon([(x, y), (x + r, y - r), (x + 3 * r, y + r / 2), (x - r, y + 2 * r)])
        for k, (x, y, r) in enumerate(rng.uniform([-60, -50, 1], [60, 50, 25], (40, 3)))
    ]  # fmt: skip
    plain = [box for box in boxes if box[0] < box[2]]
    polygons = [[shapely.geometry.mapping(shape)["coordinates"]] for shape in shapes]
    found = page.evaluate(
        "([shapes, boxes]) => shapes.map((one) => boxes.map((box) => urbancross.allowed.inPolygons(box, one)))",
        [polygons, plain],
    )
    assert found == [[shape.intersects(shapely.box(*box)) for box in plain] for shape in shapes]
    assert {True, False} == {answer for row in found for answer in row}
    times = ["2024", "2024-02", "2023-12", "2024-05-17", "2024-05-17T10:30Z", "2024-05-17T10:30:00+02:00", "1969-07"]
    told = page.evaluate("times => times.map(urbancross.allowed.spanOf)", times)
    assert told == [[us // 1000 for us in span_of(text)] for text in times]


def test_a_turned_tile_lies_on_the_map_as_its_scene_does_offline(page: Page, file: Path):
    page.goto(f"{file.as_uri()}#text={FOREST}&bbox={ON_TURNED}")
    reloaded(page)
    assert numbers(page) == [served.TURNED]
    lies_as_its_scene(page)


def test_an_archive_across_180_degrees_lies_together_offline(
    browser: Browser, tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    served.lie_across(monkeypatch)
    place = served.made(tmp_path / "fiji", models, indexed=False)
    served.map_of(place, tmp_path / "map.html", "--embeddings", "before")
    with looking(browser, own=("file:", "data:", "blob:"), offline=True) as page:
        page.goto((tmp_path / "map.html").as_uri() + "#top=200")
        search(page, FOREST)
        lies_together(page)
        with page.expect_download() as download:
            page.locator("#downloads button", has_text="GeoJSON").click()
        download.value.save_as(tmp_path / "hits.geojson")
    shapes = geopandas.read_file(tmp_path / "hits.geojson").set_index("tile_id").geometry
    assert shapes.is_valid.all()
    for number in (served.STRADDLING, served.STRADDLING - 1, served.STRADDLING + 1, served.TURNED):
        wanted, found = shapely.from_wkb(served.footprint_of(number)["geometry"]), shapes[f"t{number}"]
        assert found.geom_type == ("MultiPolygon" if number in (served.STRADDLING, served.TURNED) else "Polygon")
        assert wanted.symmetric_difference(found).area < 1e-3 * wanted.area


def test_a_picture_in_the_address_is_told_to_need_a_model(page: Page, file: Path):
    page.goto(f"{file.as_uri()}#text={FOREST}&pictures=xyz")
    page.reload()
    expect(page.locator("#error")).to_have_text("a picture needs the model: start urbancross serve")
    expect(page.locator(".hit")).to_have_count(0)


def test_a_download_offline_has_the_outline_of_a_turned_tile(page: Page, file: Path, tmp_path: Path):
    page.goto(f"{file.as_uri()}#text={FOREST}&bbox={ON_TURNED}")
    reloaded(page)
    with page.expect_download() as download:
        page.locator("#downloads button", has_text="GeoJSON").click()
    download.value.save_as(tmp_path / "hits.geojson")
    (shape,) = geopandas.read_file(tmp_path / "hits.geojson").geometry
    assert shape.exterior.is_ccw
    assert shapely.Polygon(served.ends_of_turned()).symmetric_difference(shape).area < 1e-4 * shape.area

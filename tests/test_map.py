"""`report --map`: its parts beside plainer versions of them; and the file in a browser without any network."""

import base64
import io
import json
import re
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
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from urbancross import cli, globe, schemas
from urbancross.archive import Archive
from urbancross.config import MapConfig, ReportConfig
from urbancross.errors import ConfigError
from urbancross.index.moments import span_of
from urbancross.report import map as mapping
from urbancross.report import offline, reduced, thumbnails
from urbancross.report.phrasebook import best_parts, phrases_and_words

FOREST, HARBOUR = "a dense forest", "a harbour with boats"
EXACT = "a harbour beside a dense forest"
TOP = 40
IN_ALL = 2 * served.COUNT - 2  # tiles with a vector


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_all_coordinates_keep_every_product_and_few_keep_those_of_queries_like_the_texts():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(500, 12)) * np.geomspace(4, 0.2, 12) + 1).astype(np.float32)
    texts = (rng.normal(size=(300, 12)) * np.geomspace(0.2, 4, 12)).astype(np.float32)  # of what tiles vary in least
    exact = texts @ vectors.T
    full = reduced.reduction(vectors, texts, 12, 64)
    np.testing.assert_allclose((texts @ full.queries.T) @ (vectors @ full.tiles.T).T, exact, atol=1e-2)
    few = reduced.reduction(vectors, texts, 12, 5)
    assert few.tiles.shape == few.queries.shape == (5, 12)
    chief = np.linalg.svd(vectors)[2][:5]
    plain = np.linalg.norm((texts @ chief.T) @ (vectors @ chief.T).T - exact)
    assert np.linalg.norm((texts @ few.queries.T) @ (vectors @ few.tiles.T).T - exact) < 0.9 * plain


def test_lengths_of_queries_are_kept():
    rng = np.random.default_rng(3)
    vectors, texts = (rng.normal(size=(200, 6)).astype(np.float32) for _ in range(2))
    found = reduced.reduction(vectors, texts, 6, 6)
    seen = texts @ found.queries.T
    lengths = np.einsum("nd,de,ne->n", seen, found.metric, seen)
    np.testing.assert_allclose(lengths, (texts**2).sum(axis=1), rtol=1e-3)


def test_a_byte_is_off_by_half_a_step_at_most_and_zeros_stay_zeros():
    values = np.random.default_rng(1).normal(size=(300, 6)).astype(np.float32) * [100, 1, 0.01, 0, 5, 1]
    codes = reduced.coded(values)
    assert codes.codes.dtype == np.int8
    assert (np.abs(codes.values - values) <= codes.scale / 2 + 1e-6).all()
    assert not codes.values[:, 3].any()


def test_a_tile_as_a_query_says_only_how_it_looks():
    rng = np.random.default_rng(2)
    vectors = unit(rng.normal(size=(50, 8))).astype(np.float32)
    found = reduced.reduction(vectors, vectors[:0], 5, 8)
    tiles = vectors @ found.tiles.T
    seen = vectors * (np.arange(8) < 5)  # without the coordinates that a query bank added
    np.testing.assert_allclose((tiles @ found.as_query.T) @ tiles.T, seen @ vectors.T, atol=1e-3)


def test_phrases_are_the_commonest_and_a_quarter_may_be_words():
    counts = {"a red roof": 5, "red sand": 4, "a lake": 3, "the roof of it": 2, "sand": 1}
    assert phrases_and_words(counts, 4) == ["a red roof", "red sand", "a lake", "red"]
    assert phrases_and_words(counts, 100) == [*counts, "red", "roof", "lake"]
    assert phrases_and_words(counts, 0) == []
    assert phrases_and_words({}, 10) == []


def test_the_parts_of_captions_that_say_most_come_first_and_unknown_ones_last():
    told = [["far", "near", "unknown", "near"], ["unknown"], []]
    texts = np.eye(2, dtype=np.float32)
    looks = np.array([[0.1, 0.9], [1, 0], [1, 0]], np.float32)
    found = best_parts(told, looks, {"far": 0, "near": 1}, texts, 2)
    assert found == [["near", "far"], ["unknown"], []]


def test_pictures_are_as_large_as_there_is_room_for_and_else_spread_over_all():
    sizes = {256: 10_000.0, 96: 2_000.0}
    assert thumbnails.plan(sizes, count=10, room=100_000) == (256, 10)
    assert thumbnails.plan(sizes, count=10, room=99_999) == (96, 10)
    assert thumbnails.plan(sizes, count=1000, room=100_000) == (96, 50)
    assert thumbnails.spread(1000, 5).tolist() == [0, 249, 499, 749, 999]
    assert thumbnails.spread(3, 5).tolist() == [0, 1, 2]
    assert thumbnails.spread(0, 5).tolist() == thumbnails.spread(5, 0).tolist() == []


@pytest.mark.parametrize("room", [0, 5_000, 40_000, 10_000_000])
def test_pictures_take_no_more_than_their_room(room: int):
    images = {k: served.encoded(served.pixels(k)) for k in range(60)} | {7: b"no image"}
    found = thumbnails.chosen(60, room, lambda rows: ((row, images[row]) for row in rows))
    assert sum(len(base64.b64encode(picture)) for picture in found.values()) <= room
    assert 7 not in found
    assert (len(found) == 59) == (room > 1_000_000)
    for picture in found.values():
        with Image.open(io.BytesIO(picture)) as opened:
            assert max(opened.size) <= 256


def test_no_text_ends_the_element_that_holds_it():
    value = {"texts": [*HOSTILE, "<!--", "\u2028"], "n": [1, None, 2.5]}
    text = offline.as_json(value)
    assert "<" not in text
    assert json.loads(text) == value


def test_columns_and_lists_come_back():
    def numbers_of(told: dict[str, Any]) -> list[int]:
        return np.frombuffer(base64.b64decode(told["at"]), f"<u{told['bits'] // 8}").tolist()

    column = offline.column(["b", None, "a", "b"])
    assert (column["values"], numbers_of(column)) == (["b", "a"], [1, 0, 2, 1])
    assert offline.column([None])["bits"] == 8
    assert offline.column([str(k) for k in range(300)])["bits"] == 16
    lists = offline.lists([["x", "y"], [], ["y"]], first=["z"])
    assert lists["values"] == ["z", "x", "y"]
    assert (numbers_of(lists), numbers_of(lists["counts"])) == ([1, 2, 2], [2, 0, 1])


def test_report_help_names_the_map_and_the_map_explains_every_flag(capsys: pytest.CaptureFixture[str]):
    for verb, before in ((None, ["report"]), ("report", [])):
        with pytest.raises(SystemExit):
            cli.main(verb, [*before, "--help"])
        assert "report --map --help" in capsys.readouterr().out
        with pytest.raises(SystemExit) as ended:
            cli.main(verb, [*before, "--map", "--help"])
        assert ended.value.code == 0
        told = capsys.readouterr().out
        for name, field in MapConfig.model_fields.items():
            assert field.description
            assert f"--{name.replace('_', '-')}" in told
    assert cli.VERBS["report"].kind is ReportConfig


def test_three_tables_are_one_too_many(capsys: pytest.CaptureFixture[str]):
    flags = [part for name in "abc" for part in ("--embeddings", name)]
    with pytest.raises(SystemExit) as ended:
        cli.main(None, ["report", "--map", "--archive", "a", *flags])
    assert ended.value.code == 2
    assert "--embeddings: a page compares two at most" in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return served.models_in(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, models: tuple[str, str]) -> Path:
    return served.made(tmp_path_factory.mktemp("mapped") / "finland", models, indexed=False)


def written(place: Path, out: Path, *flags: str) -> str:
    cli.main(None, ["report", "--map", "--archive", str(place), "--out", str(out), *flags])
    return out.read_text()


def held(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_filters_choose_the_tiles_and_the_balance_counts_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = written(place, tmp_path / "m.html", "--split", "valid", "--domain", "late", "--embeddings", "before")
    assert held(page, "tiles")["ids"] == [f"t{k}" for k in range(served.COUNT, 2 * served.COUNT) if k % 2]
    assert capsys.readouterr().out.splitlines()[-1] == "read 30 = written 30 + done before 0 + failed 0"
    page = written(place, tmp_path / "m.html", "--bbox", "20.05,59,20.111,61", "--embeddings", "before")
    assert held(page, "tiles")["ids"] == ["t5", "t6", "t10"]  # 11 has no vector, 7 and 8 no place, 9 lies elsewhere
    assert capsys.readouterr().out.splitlines()[-1] == "read 4 = written 3 + done before 0 + skipped 1 + failed 0"
    page = written(place, tmp_path / "m.html", "--sample", "20", "--pictures-mib", "0", "--embeddings", "before")
    assert len(held(page, "tiles")["ids"]) <= 20
    assert held(page, "pictures") == {"rows": [], "jpegs": []}
    assert "pictures of 0" in held(page, "archive")["note"]


def test_the_page_has_corners_where_a_picture_is_turned(place: Path, tmp_path: Path):
    page = written(place, tmp_path / "m.html", "--bbox", ON_TURNED, "--embeddings", "before")
    (west, south, east, north) = served.bounds_of(served.TURNED) or ()
    shares = np.frombuffer(base64.b64decode(held(page, "tiles")["corners"]), "<u2").reshape(4, 2) / mapping.SHARE
    ends = np.column_stack([west + shares[:, 0] * (east - west), north - shares[:, 1] * (north - south)])
    np.testing.assert_allclose(ends, served.ends_of_turned(), atol=2e-7)
    page = written(place, tmp_path / "m.html", "--split", "valid", "--embeddings", "before")
    assert held(page, "tiles")["corners"] is None


def test_what_a_page_cannot_hold_is_said_in_one_line_and_writes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mapping, "MOST", 50)
    for flags in ({}, {"domain": "late"}, {"sample": 51}):
        with pytest.raises(ConfigError, match="more than the 50 of a page; take some with --split"):
            mapping.run(MapConfig(archive=str(place), out=str(tmp_path / "m.html"), **flags))
    with pytest.raises(ConfigError, match="no tile with a vector"):
        mapping.run(MapConfig(archive=str(place), out=str(tmp_path / "m.html"), domain="nowhere"))
    with pytest.raises(ConfigError, match="has no embeddings@absent"):
        mapping.run(MapConfig(archive=str(place), out=str(tmp_path / "m.html"), embeddings=["absent"]))
    assert list(tmp_path.iterdir()) == []


def test_the_same_archive_gives_the_same_page_and_nothing_in_the_archive_changes(place: Path, tmp_path: Path):
    before = served.tree(place)
    pages = [written(place, tmp_path / f"{n}.html", "--queries", EXACT, "--embeddings", "before") for n in range(2)]
    assert pages[0] == pages[1]
    assert served.tree(place) == before
    plain = re.sub(r"<script.*?</script>|<style.*?</style>", "", pages[0], flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:)", plain)  # nothing to load


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def file(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "map.html"
    written(place, out, "--queries", EXACT)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_words_that_are_no_phrase_go_by_phrases_that_have_them(page: Page, before: Archive):
    search(page, "harbours, boat and a zebra")
    expect(page.locator("#note")).to_have_text(f"Went by “{HARBOUR}”. No caption here says “zebra”.")
    agree(numbers(page), before, HARBOUR)
    search(page, "fores")  # the beginning of a word
    expect(page.locator("#note")).to_contain_text("forest")
    page.locator("#text").fill("zebra")
    page.locator("#text").press("Enter")
    expect(page.locator("#error")).to_have_text("no caption here says “zebra”; try other words")


@pytest.mark.slow
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


@pytest.mark.slow
def test_two_models_and_a_download_offline(page: Page, place: Path, tmp_path: Path):
    search(page, FOREST)
    page.locator("#beside").select_option("after")
    expect(page.locator("#hits h2")).to_have_text(["before", "after"])
    agree(numbers(page, 1), Archive(str(place), embeddings="after", indexed=False), FOREST)
    with page.expect_download() as download:
        page.locator("[data-format=geojson]").click()
    download.value.save_as(tmp_path / "hits.geojson")
    assert geopandas.read_file(tmp_path / "hits.geojson")["tile_id"].tolist() == [f"t{n}" for n in numbers(page)]


@pytest.mark.slow
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


@pytest.mark.slow
def test_hostile_texts_in_the_file_do_nothing(browser: Browser, tmp_path: Path, models: tuple[str, str]):
    place = served.made(tmp_path / "hostile", models, indexed=False)
    for shard in range(served.SHARDS):
        ids = [f"t{shard * served.COUNT + k}" for k in range(served.COUNT)]
        rows = [{"tile_id": one, "captions": list(HOSTILE)} for one in ids]
        served.publish(place, "captions@given", shard, rows, schemas.CAPTIONS)
        tags = [{"tile_id": one, "center_tags": [f"name={HOSTILE[1]}"], "surrounding_tags": []} for one in ids]
        served.publish(place, "geotags", shard, tags, schemas.GEOTAGS)
    written(place, tmp_path / "map.html", "--queries", HOSTILE[1])
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_turned_tile_lies_on_the_map_as_its_scene_does_offline(page: Page, file: Path):
    page.goto(f"{file.as_uri()}#text={FOREST}&bbox={ON_TURNED}")
    reloaded(page)
    assert numbers(page) == [served.TURNED]
    lies_as_its_scene(page)


@pytest.mark.slow
def test_an_archive_across_180_degrees_lies_together_offline(
    browser: Browser, tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    served.lie_across(monkeypatch)
    place = served.made(tmp_path / "fiji", models, indexed=False)
    written(place, tmp_path / "map.html", "--embeddings", "before")
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


@pytest.mark.slow
def test_a_picture_in_the_address_is_told_to_need_a_model(page: Page, file: Path):
    page.goto(f"{file.as_uri()}#text={FOREST}&pictures=xyz")
    page.reload()
    expect(page.locator("#error")).to_have_text("a picture needs the model: start urbancross serve")
    expect(page.locator(".hit")).to_have_count(0)


@pytest.mark.slow
def test_a_download_offline_has_the_outline_of_a_turned_tile(page: Page, file: Path, tmp_path: Path):
    page.goto(f"{file.as_uri()}#text={FOREST}&bbox={ON_TURNED}")
    reloaded(page)
    with page.expect_download() as download:
        page.locator("#downloads button", has_text="GeoJSON").click()
    download.value.save_as(tmp_path / "hits.geojson")
    (shape,) = geopandas.read_file(tmp_path / "hits.geojson").geometry
    assert shape.exterior.is_ccw
    assert shapely.Polygon(served.ends_of_turned()).symmetric_difference(shape).area < 1e-4 * shape.area

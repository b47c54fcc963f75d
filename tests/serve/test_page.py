"""The page of `serve` in a real browser, beside what `Archive` says of the same archive."""

import json
from collections.abc import Iterator
from pathlib import Path

import geopandas
import pytest
import searchable
import served
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
    settled,
)
from playwright.sync_api import Browser, Page, expect

from urbancross import schemas
from urbancross.archive import Archive
from urbancross.evidence import Hit
from urbancross.serve.library import Library

pytestmark = pytest.mark.slow

FOREST, HARBOUR = "a dense forest", "a harbour with boats"
TOP = 40
NO_POLYGON = "the address: no polygon in it; want a Polygon, a MultiPolygon, or features of these"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    with looking(browser) as found:
        found.goto(url)
        expect(found.locator("#size")).to_have_text("120 tiles")
        yield found


def of(hits: list[Hit]) -> list[int]:
    return [hit.number for hit in hits if hit.number is not None]


def test_a_query_shows_the_tiles_that_python_finds_with_their_pictures(page: Page, plain: Archive):
    search(page, FOREST)
    assert numbers(page) == of(plain.search(FOREST, top=TOP).hits)
    first = page.locator(".hit img").first
    expect(first).to_have_js_property("complete", True)
    assert first.evaluate("image => image.naturalWidth") == 64
    assert page.title() == "finland · urbancross"


def test_segments_are_outlined_on_tiles_and_the_best_one_is_marked(page: Page, plain: Archive):
    search(page, FOREST)
    best = plain.search(FOREST, top=TOP).hits[0].where
    assert best is not None
    expect(page.locator(".hit").first.locator("path")).to_have_count(4)
    expect(page.locator(".hit").first.locator("path.best")).to_have_attribute("data-rank", str(best["rank"]))
    page.locator(".hit .open").first.click()
    expect(page.locator("#tile path.best")).to_have_attribute("data-rank", str(best["rank"]))
    expect(page.locator("#tile .legend")).to_contain_text(f"segment {best['rank'] + 1}, fits best")


def test_a_box_drawn_with_the_mouse_leaves_the_tiles_that_meet_it(page: Page, url: str, plain: Archive):
    page.goto(f"{url}#text={FOREST}&bbox=20,59.5,21,60.5")
    reloaded(page)
    before = numbers(page)
    draw_box(page, (0.5, 0.95))
    box = asked_box(page)
    assert 19 < box[0] < 20.3 < box[2] < 20.8
    assert numbers(page) == of(plain.search(FOREST, bbox=box, top=TOP).hits) != before
    page.locator("#chips .chip", has_text="within the box").click()
    expect(page.locator("#chips")).to_be_hidden()
    settled(page)
    assert numbers(page) == of(plain.search(FOREST, top=TOP).hits)


def test_a_box_can_be_typed_and_one_that_is_none_is_said_to_be(page: Page, plain: Archive):
    search(page, FOREST)
    page.locator("#more").click()
    page.locator("#bbox").fill("20.1,59,north")
    page.locator("#bbox").press("Enter")
    expect(page.locator("#error")).to_contain_text("want west,south,east,north")
    page.locator("#bbox").fill("20.1, 59, 20.2, 61")
    page.locator("#bbox").press("Enter")
    expect(page.locator("#status")).to_contain_text("10 of 10 tiles")
    assert numbers(page) == of(plain.search(FOREST, bbox=[20.1, 59, 20.2, 61], top=TOP).hits)


def test_polygons_of_a_file_leave_the_tiles_that_meet_them(page: Page, plain: Archive, tmp_path: Path):
    area = {"type": "Polygon", "coordinates": [[[20.3, 59.9], [20.6, 59.9], [20.45, 60.2], [20.3, 59.9]]]}
    file = tmp_path / "area.geojson"
    file.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": area}))
    search(page, FOREST)
    page.locator("#polygon").set_input_files(file)
    expect(page.locator("#chips")).to_contain_text("within the polygon")
    settled(page)
    assert numbers(page) == of(plain.search(FOREST, area=area, top=TOP).hits)
    file.write_text("{}")
    page.locator("#polygon").set_input_files(file)
    expect(page.locator("#error")).to_have_text(
        "area.geojson: no polygon in it; want a Polygon, a MultiPolygon, or features of these"
    )


def test_filters_and_further_words_count(page: Page, plain: Archive):
    page.locator("#more").click()
    for field, value in {
        "text": HARBOUR,
        "plus": "by a river",
        "minus": "under clouds",
        "tag": "natural=n1",
        "since": "2024-03",
    }.items():
        page.locator(f"#{field}").fill(value)
    page.locator("#filters button").click()
    expect(page.locator("#chips li")).to_have_count(4)
    settled(page)
    found = plain.search(
        HARBOUR, plus=["by a river"], minus=["under clouds"], tags=["natural=n1"], since="2024-03", top=TOP
    )
    assert numbers(page) == of(found.hits)
    page.locator("#domain").select_option("late")
    expect(page.locator("#chips")).to_contain_text("domain late")
    settled(page)
    assert set(numbers(page)) == {k for k in of(found.hits) if k >= served.COUNT}


@pytest.mark.parametrize(
    ("button", "name", "words"), [(".like", "like", "like tile"), (".unlike", "unlike", "unlike tile")]
)
def test_more_and_less_like_a_tile_change_the_order_and_can_be_taken_back(
    page: Page, plain: Archive, button: str, name: str, words: str
):
    search(page, FOREST)
    before = numbers(page)
    page.locator(".hit").nth(4).locator(button).click()
    expect(page.locator("#chips .chip")).to_contain_text(f"{words} {before[4]}")
    settled(page)
    assert numbers(page) == of(plain.search(FOREST, **{name: [before[4]]}, top=TOP).hits) != before
    page.locator("#chips .chip").click()
    expect(page.locator("#chips")).to_be_hidden()
    settled(page)
    assert numbers(page) == before


def test_two_models_stand_side_by_side_with_what_changed_in_rank(page: Page, place: Path, plain: Archive):
    search(page, FOREST)
    page.locator("#beside").select_option("after")
    expect(page.locator("#hits h2")).to_have_text(["before", "after"])
    settled(page)
    before, after = (
        of(plain.search(FOREST, top=TOP).hits),
        of(Archive(str(place), embeddings="after").search(FOREST, top=TOP).hits),
    )
    assert (numbers(page, 0), numbers(page, 1)) == (before, after)
    for rank, said in enumerate(page.locator(".of-1 .shift").all_text_contents()):
        moved = before.index(after[rank]) - rank if after[rank] in before else None
        sign = "▲" if (moved or 0) > 0 else "▼"
        assert said == ("only here" if moved is None else "=" if not moved else f"{sign} {abs(moved)}")


@pytest.mark.parametrize(("format", "read"), [("geojson", geopandas.read_file), ("parquet", geopandas.read_parquet)])
def test_what_was_found_is_downloaded_as_a_file_that_geopandas_opens(page: Page, tmp_path: Path, format: str, read):
    search(page, FOREST)
    with page.expect_download() as download:
        page.locator(f"[data-format={format}]").click()
    assert download.value.suggested_filename == f"hits.{format}"
    download.value.save_as(tmp_path / f"hits.{format}")
    rows = read(tmp_path / f"hits.{format}")
    assert rows["tile_id"].tolist() == [f"t{number}" for number in numbers(page)]


def test_a_question_is_its_address_and_the_back_button_goes_back(page: Page, browser: Browser):
    search(page, FOREST)
    first = numbers(page)
    search(page, HARBOUR)
    expect(page.locator(".said").first).to_contain_text(HARBOUR)
    second = numbers(page)
    page.locator(".hit .open").nth(1).click()
    expect(page.locator("#tile")).to_be_visible()
    with looking(browser) as other:
        other.goto(page.url)
        expect(other.locator("#tile h2")).to_contain_text(f"t{second[1]}")
        assert numbers(other) == second
    page.go_back()
    expect(page.locator("#tile")).to_be_hidden()
    page.go_back()
    expect(page.locator("#text")).to_have_value(FOREST)
    expect(page.locator(".hit").first).to_have_attribute("data-number", str(first[0]))
    settled(page)
    assert numbers(page) == first


def test_the_keyboard_alone_goes_from_a_query_to_a_tile_and_back(page: Page):
    page.keyboard.press("/")
    page.keyboard.type(FOREST)
    page.keyboard.press("Enter")
    expect(page.locator(".hit")).to_have_count(TOP)
    settled(page)
    page.keyboard.press("ArrowDown")
    expect(page.locator(".hit .open").first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".hit .open").nth(1)).to_be_focused()
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.closest('.hit').dataset.number")
    assert numbers(page).index(int(below)) > 1
    page.keyboard.press("Enter")
    expect(page.locator("#tile h2")).to_contain_text(f"t{below}")
    page.keyboard.press("ArrowRight")
    following = numbers(page)[numbers(page).index(int(below)) + 1]
    expect(page.locator("#tile h2")).to_contain_text(f"t{following}")
    page.keyboard.press("Escape")
    expect(page.locator("#tile")).to_be_hidden()
    expect(page.locator(f".hit[data-number='{following}'] .open")).to_be_focused()
    page.keyboard.press("l")
    expect(page.locator("#chips")).to_contain_text(f"unlike tile {following}")
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()


def test_a_tile_is_shown_on_the_map_and_the_map_shows_its_tile(page: Page, url: str):
    page.goto(f"{url}#text={FOREST}&bbox=20.2,59.99,20.4,60.03")
    reloaded(page)
    page.locator(".hit").nth(2).hover()
    expect(page.locator(".found.active")).not_to_have_count(0)
    at = page.locator(".found.of-0:not([d='M0 0'])").first.bounding_box()
    assert at is not None
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    expect(page.locator(".hit.active")).to_have_count(1)
    number = page.locator(".hit.active").get_attribute("data-number")
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#tile h2")).to_contain_text(f"t{number}")
    assert page.locator("#map img.on-map").count() > 0


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_a_turned_tile_lies_on_the_map_as_its_scene_does(browser: Browser, url: str, motion: str):
    with looking(browser, reduced_motion=motion) as page:
        page.goto(f"{url}#text={FOREST}&bbox={ON_TURNED}")
        reloaded(page)
        assert numbers(page) == [served.TURNED]
        lies_as_its_scene(page)
        lies_as_its_scene(page)


def test_a_picture_can_be_searched_by(page: Page, plain: Archive, tmp_path: Path):
    file = tmp_path / "mine.png"
    file.write_bytes(served.encoded(served.pixels(2), "PNG"))
    page.locator("#picture").set_input_files(file)
    expect(page.locator("#chips")).to_contain_text("like your picture")
    expect(page.locator(".hit")).to_have_count(TOP)
    settled(page)
    assert numbers(page) == of(plain.search(image=file, top=TOP).hits)


def test_a_phone_has_no_sideways_scroll_and_finds_tiles(browser: Browser, url: str):
    with looking(browser, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as page:
        page.goto(url)
        assert not is_too_wide(page)
        search(page, FOREST)
        assert len(numbers(page)) == TOP
        assert not is_too_wide(page)
        page.locator("#more").tap()
        page.locator("#beside").select_option("after")
        expect(page.locator("#hits h2")).to_have_count(2)
        settled(page)
        assert not is_too_wide(page)
        page.locator(".hit .open").first.tap()
        expect(page.locator("#tile")).to_be_visible()
        assert not is_too_wide(page)
        assert page.locator("#tile").evaluate("tile => tile.scrollWidth <= tile.clientWidth")


def test_when_nothing_seems_to_match_the_page_says_so_and_how_often_that_is_wrong(page: Page, plain: Archive):
    texts = ["zebra stripes", "12345", "opera", "a cup of tea on a table", "xyzzy", "quarterly figures", "?!"]
    doubted = next((text for text in texts if (told := plain.search(text).doubt) and told.nothing_matches), None)
    assert doubted is not None, "no text is doubted; think of others"
    told = plain.search(doubted).doubt
    assert told is not None
    search(page, doubted)
    expect(page.locator("#doubt")).to_contain_text(f"{100 * told.false_alarm:.1f} % are wrongly told so")


def test_hostile_texts_of_an_archive_are_only_shown(
    browser: Browser, tmp_path: Path, models: tuple[str, str], place: Path
):
    found = served.made(tmp_path / "hostile", models, indexed=False)
    for shard in range(served.SHARDS):
        ids = [f"t{shard * served.COUNT + k}" for k in range(served.COUNT)]
        rows = [{"tile_id": one, "captions": list(HOSTILE)} for one in ids]
        served.publish(found, "captions@given", shard, rows, schemas.CAPTIONS)
        tags = [{"tile_id": one, "center_tags": [f"name={HOSTILE[0]}"], "surrounding_tags": []} for one in ids]
        served.publish(found, "geotags", shard, tags, schemas.GEOTAGS)
    with served.listening(served.application(served.library_of(found))) as port, looking(browser) as page:
        page.goto(f"http://127.0.0.1:{port}/")
        search(page, HOSTILE[0])
        page.locator(".hit .open").nth(1).click()
        expect(page.locator("#tile .captions")).to_contain_text("<img src=x onerror=")
        page.locator("#tile .tags button").first.click()
        expect(page.locator("#chips")).to_contain_text(HOSTILE[0][:20])
        page.locator(".hit").nth(2).hover()


def test_an_archive_across_180_degrees_lies_together(
    browser: Browser, tmp_path: Path, models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    served.lie_across(monkeypatch)
    place = served.made(tmp_path / "fiji", models, indexed=False)
    with (
        served.listening(served.application(served.library_of(place, ["before"]))) as port,
        looking(browser) as page,
    ):
        page.goto(f"http://127.0.0.1:{port}/")
        search(page, FOREST)
        lies_together(page)


def test_a_box_across_180_degrees_is_full_though_the_archive_spans_the_globe(page: Page, url: str):
    page.goto(f"{url}#text={FOREST}&bbox=179.9,59.9,-179.9,60.1")
    reloaded(page)
    assert numbers(page) == [served.ACROSS]
    place, found = page.locator("#map").bounding_box(), page.locator("#map path.found:not([d='M0 0'])").bounding_box()
    assert place is not None
    assert found is not None
    assert place["x"] < found["x"] + found["width"] / 2 < place["x"] + place["width"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("bbox=20,60,twenty,61", "no box: 20,60,twenty,61; want west,south,east,north in degrees"),
        ("area={}", NO_POLYGON),
        ("area=5", NO_POLYGON),
        ('area={"type":"Pol', "the address: no GeoJSON; want a Polygon, a MultiPolygon, or features of these"),
        ("area=large", "the polygon was too large for the address; load its file again"),
        *(
            (f'area={{"type":{shape}}}', NO_POLYGON)
            for shape in (
                '"Polygon"',
                '"Polygon","coordinates":[]',
                '"Polygon","coordinates":[[["a","b"],["c","d"],["e","f"],["a","b"]]]',
                '"Polygon","coordinates":[[[],[],[],[]]]',
                '"MultiPolygon","coordinates":5',
                '"FeatureCollection","features":5',
                '"Point","coordinates":[1,2]',
            )
        ),
    ],
)  # fmt: skip
def test_a_damaged_place_in_the_address_is_told_and_left_out(page: Page, url: str, told: str, message: str):
    page.goto(f"{url}#text={FOREST}&{told}")
    reloaded(page)
    expect(page.locator("#error")).to_have_text(message)
    assert len(numbers(page)) == TOP
    search(page, HARBOUR)
    expect(page.locator("#error")).to_be_hidden()
    page.evaluate("told => { location.hash += `&${told}`; }", told)  # on a page that is answered
    expect(page.locator("#error")).to_have_text(message)
    assert len(numbers(page)) == TOP


def test_an_address_may_want_any_number_of_tiles(page: Page, url: str):
    page.goto(f"{url}#text={FOREST}&top=33")
    reloaded(page)
    assert len(numbers(page)) == 33
    search(page, HARBOUR)
    assert len(numbers(page)) == 33


def test_an_archive_without_places_has_no_map_and_says_why(browser: Browser, tmp_path: Path):
    place = tmp_path / "nowhere"
    model = searchable.model_in(tmp_path)
    searchable.add_shard(place, model, 0, bounds=None)
    expected = ("status of 404",)  # it has no pictures either
    with (
        served.listening(served.application(served.library_of(place))) as port,
        looking(browser, expected=expected) as page,
    ):
        page.goto(f"http://127.0.0.1:{port}/")
        search(page, FOREST)
        assert len(numbers(page)) == TOP
        expect(page.locator("#map")).to_be_hidden()
        expect(page.locator("#no-place")).to_contain_text("no tile of this archive says where it lies")
        expect(page.locator(".no-picture").first).to_be_visible()


def test_errors_are_one_line_on_the_page(browser: Browser, library: Library):
    app = served.application(library, requests_per_second=0.001, burst=20)
    with looking(browser, expected=("status of 4", "ERR_CONNECTION_REFUSED")) as page:
        with served.listening(app) as port:
            page.goto(f"http://127.0.0.1:{port}/#like=100000")
            expect(page.locator("#error")).to_contain_text("100000")
            page.locator("#chips .chip").click()
            search(page, FOREST)
            expect(page.locator("#error")).to_be_hidden()
            for number in range(20):
                page.locator("#text").fill(f"{number} boats")
                page.locator("#text").press("Enter")
                settled(page)
                if page.locator("#error").is_visible():
                    break
            expect(page.locator("#error")).to_contain_text("too many requests; try again")
            assert "\n" not in page.locator("#error").inner_text()
            assert numbers(page) == []  # what was found before would pass for what is asked now
        page.locator("#text").fill("a road")
        page.locator("#text").press("Enter")
        expect(page.locator("#error")).to_contain_text("the server does not answer; start it again")


def test_what_is_sent_before_the_archive_is_there_is_not_lost(page: Page, url: str, plain: Archive):
    page.goto("about:blank")
    page.add_init_script(
        f"document.addEventListener('DOMContentLoaded', () => {{ document.getElementById('text').value = '{FOREST}';"
        "document.getElementById('query').requestSubmit(); })"
    )
    page.goto(url)
    expect(page.locator(".hit")).to_have_count(TOP)
    assert numbers(page) == of(plain.search(FOREST, top=TOP).hits)

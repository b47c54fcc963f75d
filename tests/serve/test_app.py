"""What each address answers, beside what `Archive` says of the same archive."""

import io
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pytest
import served
import shapely
from PIL import Image
from searchable import caption
from starlette.testclient import TestClient

from urbancross import storage
from urbancross.archive import Archive
from urbancross.serve import app, limits, pictures, summary
from urbancross.serve.asked import Asked
from urbancross.serve.kept import Rows
from urbancross.serve.library import Library
from urbancross.serve.limits import Rates, network_of
from urbancross.serve.newest import Newest
from urbancross.serve.remembering import Remembering


def search(client: TestClient, **asked: Any) -> dict[str, Any]:
    answer = client.post("/api/search", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_archive_tells_its_models_places_times_tags_and_limits(client: TestClient):
    told = client.get("/api/archive").json()
    assert (told["name"], told["tiles"]) == ("finland", 120)
    before, after = told["models"]
    assert before | {"false_alarm": None} == {
        "key": "before", "table": "embeddings@before", "checkpoint": "before", "indexed": "exact", "segments": True,
        "false_alarm": None,
    }  # fmt: skip
    assert 0 <= before["false_alarm"] <= 1
    assert (after["key"], after["indexed"], after["segments"], after["false_alarm"]) == ("after", None, False, None)
    assert told["bounds"] == [20.0, 60.0, -179.99, 60.02]  # the widest gap is the one around America
    assert (told["domains"], told["splits"]) == (["d", "late"], ["train", "valid"])
    assert (told["since"], told["until"]) == ("2024-01-17T00:00:00Z", "2024-09-17T23:59:59Z")
    assert sorted(told["tags"]) == ["natural=n0", "natural=n1", "natural=n2"]
    assert told["limits"] == {"query_chars": 1000, "upload_bytes": served.UPLOAD_BYTES, "top": 200, "terms": 32}


def test_places_count_every_tile_that_has_one_and_can_be_found(client: TestClient):
    cells = client.get("/api/places").json()["cells"]
    assert sum(count for _, _, count in cells) == 117
    assert [lon for lon, _, _ in cells if lon > 100] == [180.0]


ASKED: list[dict[str, Any]] = [
    {"text": "a dense forest"},
    {"text": "a harbour with boats", "plus": ["by a river"], "minus": ["a lake"]},
    {"like": [3]},
    {"like": [70, 4], "unlike": [0], "text": "a lake", "top": 5},
    {"text": "a lake", "segment_weight": 0.5},
    {"text": "a lake", "tags": ["natural=n1"], "split": "valid"},
    {"text": "a lake", "bbox": [179, 59, -179, 61]},
    {"text": "a lake", "area": shapely.geometry.mapping(shapely.box(20.1, 60, 20.4, 61))},
    {"text": "a lake", "domain": "late", "since": "2024-03", "until": "2024-05-17"},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(asked))
def test_a_search_finds_what_python_finds(client: TestClient, plain: Archive, asked: dict[str, Any]):
    told, wanted = search(client, **asked), plain.search(**{"top": 40} | asked)
    assert [hit["tile_id"] for hit in told["hits"]] == [hit.tile_id for hit in wanted.hits]
    np.testing.assert_allclose([hit["score"] for hit in told["hits"]], [hit.score for hit in wanted.hits], atol=1e-5)
    assert [hit["where"] and hit["where"]["box"] for hit in told["hits"]] == [
        hit.where and hit.where["box"] for hit in wanted.hits
    ]
    assert (told["compared"], told["by"]) == (wanted.compared, wanted.by)
    assert (told["doubt"] is None) == (wanted.doubt is None)
    assert told["ms"] > 0


def test_a_hit_brings_its_evidence_and_no_number_that_json_does_not_know(client: TestClient):
    by_number = {hit["number"]: hit for hit in search(client, text="a lake", top=200)["hits"]}
    assert set(by_number) == set(range(120)) - {served.FAILED, served.WITHOUT_VECTOR}
    first = by_number[0]
    assert set(first) == {
        "rank", "number", "tile_id", "score", "bounds", "captions", "phrase", "tags", "where", "domain", "datetime",
        "gsd_m", "split", "corners",
    }  # fmt: skip
    assert (first["captions"], first["tags"], first["gsd_m"]) == (
        [caption(0)],
        ["natural=n0"],
        None,
    )  # NaN in the table
    assert by_number[served.NOWHERE]["bounds"] is None
    assert by_number[served.ACROSS]["bounds"] == [179.99, 60.0, -179.99, 60.02]


def test_a_hit_tells_the_corners_of_a_turned_picture(client: TestClient, place: Path):
    hits = search(client, text="a lake", top=120)["hits"]
    corners = {hit["number"]: hit["corners"] for hit in hits}
    np.testing.assert_allclose(corners.pop(served.TURNED), served.ends_of_turned(), atol=2e-7)
    assert set(corners.values()) == {None}


def test_an_archive_of_an_earlier_version_is_served_upright(place: Path, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(place, old)
    for name in storage.shards(place / "tiles"):
        (old / "tiles" / name).unlink()
        storage.publish_shard(
            old / "tiles" / name, storage.read_shard(place / "tiles" / name).drop_columns(["transform"])
        )
    client = TestClient(served.application(served.library_of(old, ["before"])), base_url="http://127.0.0.1:8000")
    hits = search(client, text="a lake", top=120)["hits"]
    assert {hit["corners"] for hit in hits} == {None}


def test_each_model_answers_for_itself(client: TestClient, place: Path):
    told = search(client, text="a lake", model="after")
    wanted = Archive(str(place), embeddings="after").search("a lake", top=40)
    assert [hit["tile_id"] for hit in told["hits"]] == [hit.tile_id for hit in wanted.hits]
    assert told["hits"] != search(client, text="a lake")["hits"]
    assert told["doubt"] is None
    assert all(hit["where"] is None for hit in told["hits"])


def test_a_picture_that_was_sent_is_searched_by(client: TestClient, plain: Archive):
    picture = served.pixels(3)
    token = client.post("/api/pictures", content=served.encoded(picture, "PNG")).json()["picture"]
    told = search(client, pictures=[token], minus=["a lake"])
    wanted = plain.search(image=picture, minus=["a lake"], top=40)
    assert [hit["tile_id"] for hit in told["hits"]] == [hit.tile_id for hit in wanted.hits]
    assert search(client, pictures=[token], model="after")["hits"]
    assert told["doubt"] is None


def test_a_picture_comes_as_a_jpeg_of_the_wanted_width_and_once(client: TestClient):
    small = client.get("/api/tiles/3/picture?px=64")
    assert small.headers["content-type"] == "image/jpeg"
    assert small.content == served.tile(3)["image"]  # a JPEG of 64 px already
    wide = client.get(f"/api/tiles/{served.WIDE}/picture?px=100")
    with Image.open(io.BytesIO(wide.content)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 100))
    again = client.get(f"/api/tiles/{served.WIDE}/picture?px=100", headers={"If-None-Match": wide.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_outlines_cover_what_the_masks_do(client: TestClient):
    told = client.get(f"/api/tiles/{served.WIDE}/segments").json()
    assert told["size"] == [300, 300]
    assert [segment["box"] for segment in told["segments"]] == [
        [0, 0, 150, 150], [150, 0, 300, 150], [0, 150, 150, 300], [150, 150, 300, 300],
    ]  # fmt: skip
    assert [shapely.Polygon(segment["outline"][0]).area for segment in told["segments"]] == [150 * 150] * 4
    assert client.get("/api/tiles/3/segments?model=after").json()["segments"]  # of the archive's only table
    assert client.get("/api/tiles/3/segments?model=none").status_code == 422


def test_hits_come_as_geojson_that_others_read(client: TestClient):
    answer = client.post("/api/download?format=geojson", json={"text": "a lake", "top": 200})
    assert answer.headers["content-disposition"] == 'attachment; filename="hits.geojson"'
    assert b"NaN" not in answer.content
    found = geopandas.read_file(io.BytesIO(answer.content))
    assert (len(found), found.crs.to_epsg()) == (118, 4326)
    by_id = found.set_index("tile_id")
    assert by_id.geometry["t8"] is None
    assert by_id.geometry["t9"].geom_type == "MultiPolygon"  # cut at the antimeridian
    assert by_id.geometry["t0"].exterior.is_ccw
    boxes = {feature["id"]: feature.get("bbox") for feature in answer.json()["features"]}
    assert (boxes["t8"], boxes["t9"]) == (None, [179.99, 60.0, -179.99, 60.02])


def test_hits_come_as_geoparquet_that_others_read(client: TestClient):
    answer = client.post("/api/download?format=parquet", json={"text": "a lake", "top": 200})
    assert answer.headers["content-disposition"] == 'attachment; filename="hits.parquet"'
    found = geopandas.read_parquet(io.BytesIO(answer.content))
    assert (len(found), found.crs.to_authority()) == (118, ("OGC", "CRS84"))
    assert found["rank"].tolist() == list(range(1, 119))
    assert found.set_index("tile_id").geometry["t0"].equals(shapely.box(20.0, 60.0, 20.009, 60.01))
    assert client.post("/api/download?format=shp", json={"text": "a"}).status_code == 422


def test_a_text_is_encoded_once(client: TestClient, library: Library, monkeypatch: pytest.MonkeyPatch):
    inner, asked = library.first.encoder.inner, []
    encode = inner.encode_texts
    monkeypatch.setattr(inner, "encode_texts", lambda texts: asked.append(list(texts)) or encode(texts))
    first = search(client, text="a text that is new here")
    assert asked[0] == ["a text that is new here"]
    asked.clear()
    again = search(client, text="a text that is new here")
    assert not asked  # nor its hits' phrases
    assert again["hits"] == first["hits"]


def test_texts_that_wait_are_encoded_together(library: Library, monkeypatch: pytest.MonkeyPatch):
    encoder, batches = Remembering(library.first.encoder.inner), []
    begun, may_end = threading.Event(), threading.Event()
    encode = encoder.inner.encode_texts

    def slow(texts: list[str]) -> np.ndarray:
        batches.append(texts)
        begun.set()
        assert may_end.wait(30)
        return encode(texts)

    monkeypatch.setattr(encoder.inner, "encode_texts", slow)
    texts = [f"text {number}" for number in range(5)]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(encoder.encode_texts, texts[:1])
        assert begun.wait(30)
        others = [pool.submit(encoder.encode_texts, [text, "what all want"]) for text in texts[1:]]
        while len(encoder._wanted) < 5:
            assert not others[0].done()
        phrases = [f"phrase {number}" for number in range(20)]
        assert encoder.affordable(phrases) == phrases[:2]  # others wait
        may_end.set()
        found = [first.result()[0], *(other.result()[0] for other in others)]
    assert [sorted(batch) for batch in batches] == [texts[:1], [*texts[1:], "what all want"]]
    np.testing.assert_allclose(np.stack(found), encode(texts), atol=1e-5)
    assert encoder.affordable([*phrases, *texts]) == [*phrases, *texts]
    assert encoder.affordable([f"phrase {number}" for number in range(80)] + texts)[63:] == ["phrase 63", *texts]


def test_a_batch_that_fails_costs_nobody_an_answer(library: Library, monkeypatch: pytest.MonkeyPatch):
    encoder = Remembering(library.first.encoder.inner)
    encode = encoder.inner.encode_texts

    def breaks(texts: list[str]) -> np.ndarray:
        if "odd" in texts:
            raise RuntimeError("an odd text")
        return encode(texts)

    monkeypatch.setattr(encoder.inner, "encode_texts", breaks)
    with pytest.raises(RuntimeError):
        encoder.encode_texts(["odd"])
    np.testing.assert_allclose(encoder.encode_texts(["a lake"]), encode(["a lake"]), atol=1e-5)


def test_rows_that_are_kept_are_those_that_are_read(place: Path):
    shard = place / "captions@given" / "part-00001.parquet"
    rows = Rows()
    for _ in range(2):
        assert rows.row(shard, ["captions"], 5) == {"captions": [caption(65)]}
        assert rows.row(shard, ["tile_id"], 59) == {"tile_id": "t119"}


class Waits:
    """Archives whose search ends when it may."""

    def __init__(self, library: Library) -> None:
        self.library, self.begun, self.may_end = library, threading.Semaphore(0), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.library, name)

    def search(self, asked: Asked) -> Any:
        self.begun.release()
        assert self.may_end.wait(30)
        return self.library.search(asked)


@pytest.fixture
def waits(library: Library) -> Iterator[Waits]:
    found = Waits(library)
    yield found
    found.may_end.set()


def test_others_are_answered_while_one_searches(waits: Waits):
    with served.listening(served.application(waits)) as port, ThreadPoolExecutor() as pool:  # type: ignore[arg-type]
        searching = pool.submit(served.ask, port, "POST", "/api/search", b'{"text": "a lake"}')
        assert waits.begun.acquire(timeout=30)
        assert served.ask(port, "GET", "/api/archive")[0].status == 200
        assert served.ask(port, "GET", "/api/tiles/3/picture")[0].status == 200
        assert not searching.done()
        waits.may_end.set()
        assert searching.result()[0].status == 200


def test_where_too_many_wait_the_next_is_told_to_come_later(waits: Waits, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "Turns", lambda _: limits.Turns(1, waiting=0))
    with served.listening(served.application(waits)) as port, ThreadPoolExecutor() as pool:  # type: ignore[arg-type]
        searching = pool.submit(served.ask, port, "POST", "/api/search", b'{"text": "a lake"}')
        assert waits.begun.acquire(timeout=30)
        response, told = served.ask(port, "POST", "/api/search", b'{"text": "a lake"}')
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert b"try again" in told
        waits.may_end.set()
        assert searching.result()[0].status == 200
        assert served.ask(port, "POST", "/api/search", b'{"text": "a lake"}')[0].status == 200


def test_a_bucket_of_tokens_fills_with_time_and_is_of_one_address():
    now = [0.0]
    rates = Rates(2.0, 3.0, lambda: now[0])
    assert [rates.wait_s("10.0.0.1", 1.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert rates.wait_s("10.0.0.2", 1.0) == 0
    assert rates.wait_s("10.0.0.1", 0.1) == pytest.approx(0.05)
    now[0] = 0.5
    assert [rates.wait_s("10.0.0.1", 1.0) for _ in range(2)] == [0, 0.5]
    now[0] = 1000.0
    assert [rates.wait_s("10.0.0.1", 1.0) for _ in range(4)] == [0, 0, 0, 0.5]  # no more than the bucket holds
    assert [Rates(0, 1).wait_s("10.0.0.1", 1.0) for _ in range(3)] == [0, 0, 0]


def test_addresses_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "ADDRESSES", 5)
    rates = Rates(1.0, 1.0, lambda: 0.0)
    for last in range(20):
        rates.wait_s(f"10.0.0.{last}", 1.0)
    assert len(rates._buckets) == 5


def test_an_ipv6_household_is_one_address():
    assert network_of("2001:db8:1:2:aaaa::1") == network_of("2001:db8:1:2:bbbb::9") != network_of("2001:db8:1:3::1")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("::ffff:10.0.0.1") != network_of("::ffff:10.0.0.2")
    assert network_of("testclient") == "testclient"


def test_what_is_kept_is_what_was_asked_for_last_and_stays_within_its_size():
    kept: Newest[str] = Newest(10)
    for name in "abc":
        kept.put(name, name, 4)
    assert [kept.get(name) for name in "abc"] == [None, "b", "c"]
    kept.get("b")
    kept.put("d", "d", 4)
    assert [kept.get(name) for name in "bcd"] == ["b", None, "d"]
    kept.put("e", "e", 11)
    kept.put("b", "B", 6)
    assert ([kept.get(name) for name in "bde"], kept.held, len(kept)) == (["B", "d", None], 10, 2)


def test_bounds_leave_out_the_widest_gap_around_the_globe():
    def bounds(*boxes: tuple[float, float]) -> list[float]:
        west, east = np.array(boxes).T
        return summary.bounds_of(west, np.zeros(len(west)), east, np.ones(len(west)))

    assert bounds((20, 21), (25, 26)) == [20, 0, 26, 1]
    assert bounds((170, 171), (-175, -170)) == [170, 0, -170, 1]
    assert bounds((170, -170), (160, 165)) == [160, 0, -170, 1]
    assert bounds((-180, 0), (0, 180)) == [-180, 0, 180, 1]


def test_cells_grow_until_they_are_few_enough():
    rng = np.random.default_rng(0)
    west, south = rng.uniform(-180, 179, 5000), rng.uniform(-90, 89, 5000)
    facts = {"west": west, "south": south, "east": west + 0.1, "north": south + 0.1}
    found = summary.cells(pa.table(facts), most=100)
    assert 30 < len(found) <= 100
    assert sum(count for _, _, count in found) == 5000
    (one,) = summary.cells(pa.table({name: values[:1] for name, values in facts.items()}))
    assert one == [pytest.approx(west[0] + 0.05, abs=1e-5), pytest.approx(south[0] + 0.05, abs=1e-5), 1]


def test_a_picture_that_is_no_jpeg_is_never_wider_nor_higher_than_wanted():
    tall = served.encoded(np.zeros((400, 10, 3), np.uint8), "PNG")
    with Image.open(io.BytesIO(pictures.jpeg(tall, 64))) as image:
        assert image.size == (2, 64)

"""An archive asked in Python and from the command line, with an index and without."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import searchable
import shapely
from PIL import Image
from searchable import add_segments, add_shard, add_tags, caption, index, name

from urbancross import cli, storage
from urbancross.archive import Answer, Archive, combined
from urbancross.errors import ConfigError
from urbancross.index import vectors
from urbancross.index.facts import Filters
from urbancross.models import checkpoints

COUNT = 120


@pytest.fixture(scope="module", autouse=True)
def _() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "FEW", 12)
        patch.setattr(checkpoints, "load", lambda model, device: searchable.encoder(model.name))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return searchable.model_in(tmp_path_factory.mktemp("model"))


def made(place: Path, model: str) -> Path:
    """Three shards, of which the index lacks the last; tile 7 failed; each third is tagged natural=n1."""
    for shard in range(2):
        add_shard(place, model, shard, count=COUNT, failed=[7], datetime="2024-05-17")
        add_segments(place, model, shard, count=COUNT)
        add_tags(place, shard, count=COUNT)
    index(place, codes="int8", queries=100)
    add_shard(place, model, 2, count=COUNT, domain="late", datetime="2025")
    add_segments(place, model, 2, count=COUNT)
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    return made(tmp_path_factory.mktemp("archive"), model)


@pytest.fixture(scope="module")
def archive(place: Path) -> Archive:
    return Archive(str(place))


@pytest.fixture(scope="module")
def plain(place: Path) -> Archive:
    return Archive(str(place), indexed=False)


def ids(answer: Answer) -> list[str]:
    return [hit.tile_id for hit in answer.hits]


def same(one: Answer, other: Answer) -> bool:
    """The same tiles, but where float16 scores them alike."""
    np.testing.assert_allclose([h.score for h in one.hits], [h.score for h in other.hits], atol=2e-3)
    return len(set(ids(one)) & set(ids(other))) >= len(one.hits) - 1


ASKED: list[dict[str, Any]] = [
    {"text": "a dense forest"},
    {"text": "a harbour with boats", "plus": ["by a river"], "minus": ["a lake"]},
    {"like": ["t3"]},
    {"like": [COUNT + 3], "unlike": ["t0"], "text": "a lake"},
    {"text": "a lake", "segment_weight": 0.5},
    {"text": "a lake", "tags": ["natural=n1"]},
    {"text": "a lake", "tags": ["natural"], "split": "valid", "bbox": (20.0, 59.0, 21.0, 61.0)},
    {
        "text": "a lake",
        "area": shapely.box(20.1, 60, 20.4, 61) | shapely.box(40, 60, 40.2, 60.5),
        "segment_weight": 1.0,
    },
    {"text": "a lake", "domain": "late"},
    {"text": "a lake", "since": "2024-06"},
    {"text": "a lake", "until": "2024-05-17", "top": 25},
    {"text": "a lake", "top": 1},
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: "-".join(asked))
def test_the_index_answers_as_exact_search_does(archive: Archive, plain: Archive, asked: dict[str, Any]):
    answer, wanted = archive.search(**asked), plain.search(**asked)
    assert (answer.by, wanted.by) == ("int8", "exact")
    assert answer.compared == wanted.compared > 0
    assert len(answer.hits) == min(asked.get("top", 10), answer.compared)
    assert same(answer, wanted)
    assert [hit.rank for hit in answer.hits] == list(range(1, len(answer.hits) + 1))


def test_shards_that_the_index_lacks_are_found_too(archive: Archive):
    everything = archive.search("a lake", top=1000)
    assert everything.compared == 3 * COUNT - 2
    assert {hit.shard for hit in everything.hits} == {name(0), name(1), name(2)}
    assert len(ids(everything)) == len(set(ids(everything))) == 3 * COUNT - 2
    assert {hit.domain for hit in archive.search("a lake", since="2024-06", top=500).hits} == {"late"}


def test_a_text_finds_the_tiles_that_it_tells_of(archive: Archive):
    for number in (0, 9, 17):
        hits = archive.search(caption(number)).hits
        assert sum(hit.captions == [caption(number)] for hit in hits) >= 3  # of 42 captions
        assert hits[0].phrase in caption(number)


def test_a_tile_is_most_like_itself_by_its_id_and_by_its_number(archive: Archive):
    for tile, wanted in (("t1011", "t1011"), (COUNT + 11, "t1011"), (2 * COUNT, "t2000"), (0, "t0")):
        hit = archive.search(like=[tile]).hits[0]
        assert (hit.tile_id, hit.score) == (wanted, pytest.approx(1, abs=1e-3))
        assert archive.address(tile) == archive.address(hit.number or 0) == (hit.shard, hit.row)


def test_more_like_one_and_less_like_another_changes_the_order(archive: Archive):
    query = archive.looks_of("t3")
    alone, less = archive.search(like=["t3"], top=300), archive.search(like=["t3"], unlike=["t1000"], top=300)
    other = archive.looks_of("t1000")
    assert ids(alone) != ids(less)
    wanted = combined([query], [other])
    scores = [float(archive.looks_of(hit.tile_id) @ wanted) for hit in less.hits[:20]]
    np.testing.assert_allclose([hit.score for hit in less.hits[:20]], scores, atol=2e-3)
    nearness = [np.mean([archive.looks_of(tile) @ other for tile in ids(found)[:20]]) for found in (less, alone)]
    assert nearness[0] < nearness[1]


def test_a_query_is_the_sum_of_what_is_wanted_less_half_of_what_is_not():
    east, north, up = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(combined([east], []), east)
    np.testing.assert_allclose(combined([east, north], []), (east + north) / np.sqrt(2), atol=1e-6)
    np.testing.assert_allclose(combined([east], [up]), (east - up / 2) / np.sqrt(1.25), atol=1e-6)
    found = combined([east, north], [north, up])
    np.testing.assert_allclose(found, (east + north / 2 - up / 2) / np.sqrt(1.5), atol=1e-6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(combined([east, -east], []), np.zeros(3))  # not NaN


def test_a_picture_can_be_asked_with_from_memory_and_from_a_file(archive: Archive, tmp_path: Path):
    picture = np.random.default_rng(0).integers(0, 255, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "p.png")
    answers = [archive.search(image=image) for image in (picture, tmp_path / "p.png", str(tmp_path / "p.png"))]
    assert ids(answers[0]) == ids(answers[1]) == ids(answers[2])
    query = archive.encoder.encode_image_queries([picture])[0]
    top = answers[0].hits[0]
    assert top.score == pytest.approx(float(archive.looks_of(top.tile_id) @ query), abs=2e-3)
    (tmp_path / "t.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"--image .*t.png: .*; give a JPEG, PNG or WebP"):
        archive.search(image=tmp_path / "t.png")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, "nothing to look for: give a text, a picture or a tile"),
        ({"minus": ["a lake"]}, "what is not wanted alone finds all"),
        ({"unlike": ["t1"]}, "what is not wanted alone finds all"),
        ({"like": ["t99999"]}, "has no tile t99999; urbancross search"),
        ({"like": [3 * COUNT]}, "has 360 tiles, counted from 0, and so no tile 360"),
        ({"like": [-1]}, "has 360 tiles, counted from 0, and so no tile -1"),
        ({"like": ["t7"]}, r"tile t7 has no embedding \(failed:truncated\); choose another"),
        ({"text": "x", "bbox": (3, 2, 1)}, "want west, south, east, north"),
        ({"text": "x", "area": {"type": "Point", "coordinates": [0, 0]}}, "area: want a polygon, found Point"),
        ({"text": "x", "since": "soon"}, "--since soon: want a time such as"),
        ({"text": "x", "until": "2024-13"}, "--until 2024-13: want a time such as"),
    ],
)
def test_what_cannot_be_asked_is_told_in_a_line(archive: Archive, asked: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told) as error:
        archive.search(**asked)
    assert "\n" not in str(error.value)


def test_doubt_is_told_of_one_text_over_all_tiles(archive: Archive, plain: Archive):
    known = archive.search("a lake, by a river")
    assert known.doubt is not None
    assert not known.doubt.nothing_matches
    assert known.doubt.nearness == pytest.approx(np.mean([hit.score for hit in known.hits]), abs=1e-3)
    assert 0 <= known.doubt.false_alarm <= 0.2
    assert archive.search("a lake, by a river", top=1).doubt == known.doubt  # however many are wanted
    picture = np.zeros((48, 48, 3), np.uint8)
    for asked in (
        {"like": ["t1"]}, {"unlike": ["t1"]}, {"image": picture}, {"segment_weight": 0.5}, {"minus": ["a bridge"]},
        {"plus": ["a bridge"]}, {"split": "train"}, {"bbox": [20.0, 60.0, 21.0, 60.1]}, {"tags": ["natural"]},
    ):  # fmt: skip
        assert archive.search("a lake", **asked).doubt is None  # type: ignore[arg-type]
    assert plain.search("a lake").doubt is None
    assert archive.search("a lake", domain="nowhere").doubt is None


@pytest.mark.parametrize(
    "asked",
    [
        {"plus": "boats"}, {"minus": "boats"}, {"tags": "natural"}, {"like": "t1"}, {"top": 0}, {"top": -1},
        {"image": np.zeros((8, 8), np.uint8)}, {"image": np.zeros((8, 8, 4), np.uint8)}, {"image": np.zeros((8, 8, 3))},
        {"image": np.zeros((0, 8, 3), np.uint8)}, {"text": "  "}, {"text": ""},
    ],
)  # fmt: skip
def test_what_is_no_query_is_one_line(archive: Archive, asked: dict[str, Any]):
    with pytest.raises(ConfigError) as told:
        archive.search(**{"text": "a lake"} | asked)
    assert "\n" not in str(told.value)


def test_a_tile_by_a_number_of_numpy_is_that_tile(archive: Archive):
    assert ids(archive.search(like=[np.int64(3)])) == ids(archive.search(like=[3]))  # type: ignore[list-item]


def test_what_is_far_from_all_tiles_is_doubted(archive: Archive):
    query = archive.encoder.encode_texts(["a lake, by a river"])[0]
    assert archive.ask(-query, Filters(), is_text=True).doubt.nothing_matches  # type: ignore[union-attr]


def test_without_captions_nothing_is_doubted(tmp_path: Path, model: str):
    add_shard(tmp_path, model, 0, captions=False)
    index(tmp_path)
    found = Archive(str(tmp_path)).search("a lake")
    assert (found.by, found.doubt, len(found.hits)) == ("exact", None, 10)
    assert found.hits[0].phrase is None


def test_segments_that_the_index_does_not_hold_are_compared_all_the_same(tmp_path: Path, model: str):
    add_shard(tmp_path, model, 0, count=COUNT)
    index(tmp_path, codes="int8")
    add_segments(tmp_path, model, 0, count=COUNT)
    asked = {"segment_weight": 0.8, "top": 20}
    answer = Archive(str(tmp_path)).search("a lake", **asked)
    wanted = Archive(str(tmp_path), indexed=False).search("a lake", **asked)
    assert [(hit.tile_id, hit.score) for hit in answer.hits] == [(hit.tile_id, hit.score) for hit in wanted.hits]
    assert answer.by == "exact"
    assert Archive(str(tmp_path)).search("a lake").by == "int8"
    index(tmp_path, codes="int8")
    assert Archive(str(tmp_path)).search("a lake", **asked).by == "int8"


def test_a_weight_of_segments_wants_some(tmp_path: Path, model: str):
    add_shard(tmp_path, model, 0)
    with pytest.raises(
        ConfigError, match="--segment-weight: .* has no segment embeddings by .*; make them with: urban"
    ):
        Archive(str(tmp_path)).search("a lake", segment_weight=0.5)


def test_an_index_of_other_vectors_is_not_asked(tmp_path: Path, model: str):
    add_shard(tmp_path, model, 0)
    index(tmp_path)
    manifest = tmp_path / "index@m" / "manifest.json"
    told = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(told | {"checkpoint": "other"}))
    with pytest.raises(ConfigError, match="was made of other vectors than those of embeddings@m; make it again: urban"):
        Archive(str(tmp_path))
    assert len(Archive(str(tmp_path), indexed=False).search("a lake").hits) == 10
    index(tmp_path)
    assert len(Archive(str(tmp_path)).search("a lake").hits) == 10


def test_an_archive_says_how_many_tiles_it_has_and_where_each_is(archive: Archive):
    assert len(archive) == 3 * COUNT
    assert archive.address(COUNT - 1) == (name(0), COUNT - 1)
    assert archive.address(COUNT) == (name(1), 0)
    assert archive.evidence.picture(name(0), 0) is None


def searched(place: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    cli.main("search", ["--archive", str(place), *flags])
    return capsys.readouterr().out


def test_search_prints_one_json_document(place: Path, archive: Archive, capsys: pytest.CaptureFixture[str]):
    told = json.loads(searched(place, capsys, "a lake, by a river", "--top", "3", "--json"))
    answer = archive.search("a lake, by a river", top=3)
    assert [hit["tile_id"] for hit in told["hits"]] == ids(answer)
    assert (told["by"], told["compared"], told["embeddings"]) == ("int8", 358, "embeddings@m")
    assert told["doubt"]["threshold"] == answer.doubt.threshold  # type: ignore[union-attr]
    assert json.loads(searched(place, capsys, "a lake", "--exact", "--json"))["by"] == "exact"
    area = place.parent / "area.geojson"
    storage.write_json(area, json.loads(shapely.to_geojson(shapely.box(20.0, 60.0, 20.055, 60.1))))
    near = json.loads(searched(place, capsys, "a lake", "--area", str(area), "--json", "--top", "99"))
    assert {hit["tile_id"] for hit in near["hits"]} == {f"t{k}" for k in range(6)}


def test_a_blank_text_beside_a_tile_is_no_query(place: Path, archive: Archive, capsys: pytest.CaptureFixture[str]):
    told = json.loads(searched(place, capsys, "  ", "--like", "t3", "--json"))
    assert [hit["tile_id"] for hit in told["hits"]] == ids(archive.search(like=["t3"]))
    with pytest.raises(SystemExit):
        cli.main("search", ["--archive", str(place), "  "])
    assert "say what to look for" in capsys.readouterr().err


def test_a_search_in_which_nothing_seems_to_match_says_so(
    place: Path, archive: Archive, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    text = archive.encoder.encode_texts(["a lake"])
    assert "nothing here seems to match" not in searched(place, capsys, "a lake, by a river")
    encoder = searchable.encoder(archive.model.name)
    monkeypatch.setattr(encoder, "encode_texts", lambda texts: -np.repeat(text, len(texts), axis=0))
    assert "nothing here seems to match" in searched(place, capsys, "a lake, by a river")

"""`report --map`: its parts beside plainer versions of them, and what the file holds."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from browsing import (
    HOSTILE,
    ON_TURNED,
)
from PIL import Image

from urbancross import cli
from urbancross.config import MapConfig, ReportConfig
from urbancross.errors import ConfigError
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


def held(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_filters_choose_the_tiles_and_the_balance_counts_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    page = served.map_of(place, tmp_path / "m.html", "--split", "valid", "--domain", "late", "--embeddings", "before")
    assert held(page, "tiles")["ids"] == [f"t{k}" for k in range(served.COUNT, 2 * served.COUNT) if k % 2]
    assert capsys.readouterr().out.splitlines()[-1] == "read 30 = written 30 + done before 0 + failed 0"
    page = served.map_of(place, tmp_path / "m.html", "--bbox", "20.05,59,20.111,61", "--embeddings", "before")
    assert held(page, "tiles")["ids"] == ["t5", "t6", "t10"]  # 11 has no vector, 7 and 8 no place, 9 lies elsewhere
    assert capsys.readouterr().out.splitlines()[-1] == "read 4 = written 3 + done before 0 + skipped 1 + failed 0"
    page = served.map_of(place, tmp_path / "m.html", "--sample", "20", "--pictures-mib", "0", "--embeddings", "before")
    assert len(held(page, "tiles")["ids"]) <= 20
    assert held(page, "pictures") == {"rows": [], "jpegs": []}
    assert "pictures of 0" in held(page, "archive")["note"]


def test_the_page_has_corners_where_a_picture_is_turned(place: Path, tmp_path: Path):
    page = served.map_of(place, tmp_path / "m.html", "--bbox", ON_TURNED, "--embeddings", "before")
    (west, south, east, north) = served.bounds_of(served.TURNED) or ()
    shares = np.frombuffer(base64.b64decode(held(page, "tiles")["corners"]), "<u2").reshape(4, 2) / mapping.SHARE
    ends = np.column_stack([west + shares[:, 0] * (east - west), north - shares[:, 1] * (north - south)])
    np.testing.assert_allclose(ends, served.ends_of_turned(), atol=2e-7)
    page = served.map_of(place, tmp_path / "m.html", "--split", "valid", "--embeddings", "before")
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
    pages = [
        served.map_of(place, tmp_path / f"{n}.html", "--queries", EXACT, "--embeddings", "before") for n in range(2)
    ]
    assert pages[0] == pages[1]
    assert served.tree(place) == before
    plain = re.sub(r"<script.*?</script>|<style.*?</style>", "", pages[0], flags=re.DOTALL)
    assert not re.search(r"(src|href)=\"(?!data:)", plain)  # nothing to load

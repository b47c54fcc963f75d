"""Exact search over shards, against brute force; and which table a name stands for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from urbancross import schemas, search, storage, tables
from urbancross.archive import Answer
from urbancross.errors import ConfigError, SchemaError
from urbancross.evidence import Evidence, Hit, with_phrases
from urbancross.index import exact
from urbancross.index.facts import Filters

WIDTH = 4


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three shards of five tiles; tile 7 failed; odd tiles are `test`; tile k lies at longitude k."""
    rng = np.random.default_rng(0)
    for shard in range(3):
        name = f"part-{shard:05d}.parquet"
        ids = [5 * shard + i for i in range(5)]
        vectors = rng.normal(size=(5, WIDTH)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        rows = [
            {"tile_id": f"t{k}", "vector": None if k == 7 else v, "failure": "failed:x" if k == 7 else None}
            for k, v in zip(ids, vectors, strict=True)
        ]
        maker = storage.with_made_by(schemas.embeddings(WIDTH), {"settings": {"checkpoint": "abc"}})
        storage.publish_shard(tmp_path / "embeddings@m" / name, pa.Table.from_pylist(rows, schema=maker))
        tiles = [
            {"tile_id": f"t{k}", "domain": "d", "split": "test" if k % 2 else "train", "bounds": [k, 0, k + 0.5, 1]}
            for k in ids
        ]
        storage.publish_shard(tmp_path / "tiles" / name, pa.Table.from_pylist(tiles, schema=schemas.TILES))
        captions = [{"tile_id": f"t{k}", "captions": [f"caption {k}"]} for k in ids]
        storage.publish_shard(
            tmp_path / "captions@given" / name, pa.Table.from_pylist(captions, schema=schemas.CAPTIONS)
        )
    return tmp_path


def best(archive: Path, query: np.ndarray, top: int, table: str = "embeddings@m", **asked) -> list[Hit]:
    """The best tiles, with their evidence."""
    segments, weight = asked.pop("segments", None), asked.pop("segment_weight", 0.0)
    found = exact.best(archive, table, query, top, Filters(**asked), segments, weight).found
    return Evidence(archive, segments).hits(found, query)


def brute_force(archive: Path, query: np.ndarray) -> list[str]:
    rows = [
        r
        for n in storage.shards(archive / "embeddings@m")
        for r in storage.read_shard(archive / "embeddings@m" / n).to_pylist()
    ]
    return [
        row["tile_id"] for row in sorted((r for r in rows if r["vector"]), key=lambda r: -np.dot(r["vector"], query))
    ]


QUERY = np.array([1, 0.5, -0.2, 0.1], np.float32)


def test_the_best_tiles_are_those_of_brute_force_in_order(archive: Path):
    hits = best(archive, QUERY, 6)
    assert [hit.tile_id for hit in hits] == brute_force(archive, QUERY)[:6]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6]
    assert hits[0].captions == [f"caption {hits[0].tile_id[1:]}"]


def test_a_failed_tile_is_never_found_and_asking_for_all_returns_the_rest(archive: Path):
    hits = best(archive, QUERY, top=100)
    assert len(hits) == 14
    assert "t7" not in {hit.tile_id for hit in hits}


def test_filters_by_split_and_by_place(archive: Path):
    assert {hit.tile_id for hit in best(archive, QUERY, 100, split="test")} == {f"t{k}" for k in (1, 3, 5, 9, 11, 13)}
    for south, north in ((0.2, 0.3), (-1, 0.1), (0.9, 2), (-1, 2)):  # within the tiles, below, above, around them
        found = best(archive, QUERY, 100, bbox=(3.2, south, 5.1, north))
        assert {hit.tile_id for hit in found} == {"t3", "t4", "t5"}
    assert best(archive, QUERY, 100, bbox=(3, -2, 4, -1)) == []
    assert best(archive, QUERY, 100, bbox=(3, 2, 4, 3)) == []
    assert best(archive, QUERY, 100, bbox=(50, 0, 51, 1)) == []


def test_equal_scores_come_in_the_order_of_the_table(archive: Path, tmp_path: Path):
    rows = [{"tile_id": f"t{k}", "vector": [1, 0, 0, 0], "failure": None} for k in range(5)]
    table = pa.Table.from_pylist(rows, schema=schemas.embeddings(WIDTH))
    storage.publish_shard(archive / "embeddings@same" / "part-00000.parquet", table)
    assert [hit.tile_id for hit in best(archive, QUERY, 3, "embeddings@same")] == ["t0", "t1", "t2"]


def test_one_variant_is_the_default_and_several_have_to_be_told(archive: Path):
    assert tables.table_of(archive, "embeddings", None, "embeddings") == "embeddings@m"
    assert tables.embeddings_by(archive, "abc") == "embeddings@m"
    assert tables.embeddings_by(archive, "other") is None
    with pytest.raises(ConfigError, match="has no segments table"):
        tables.table_of(archive, "segments", None, "segments")
    with pytest.raises(ConfigError, match="--captions gvien: .* has no captions@gvien; it has captions@given"):
        tables.table_of(archive, "captions", "gvien", "captions")
    storage.publish_shard(archive / "captions@template" / "part-00000.parquet", pa.table({"tile_id": ["t0"]}))
    with pytest.raises(
        ConfigError, match="has several: captions@given, captions@template; say which with --captions given"
    ):
        tables.table_of(archive, "captions", None, "captions")


def test_tables_that_do_not_hold_the_same_tiles_are_not_joined(archive: Path):
    storage.publish_shard(
        archive / "captions@bad" / "part-00000.parquet",
        pa.Table.from_pylist([{"tile_id": f"x{k}"} for k in range(5)], schema=schemas.CAPTIONS),
    )
    with pytest.raises(SchemaError, match="does not hold the tiles of tiles/part-00000.parquet"):
        tables.read_aligned(archive, {"tiles": ["split"], "captions@bad": ["captions"]}, "part-00000.parquet")


def test_equal_scores_of_several_shards_come_in_the_order_of_the_shards(archive: Path):
    for shard in (2, 0, 1):
        rows = [{"tile_id": f"t{5 * shard + i}", "vector": [1, 0, 0, 0], "failure": None} for i in range(5)]
        table = pa.Table.from_pylist(rows, schema=schemas.embeddings(WIDTH))
        storage.publish_shard(archive / "embeddings@same" / f"part-{shard:05d}.parquet", table)
    hits = best(archive, QUERY, 7, "embeddings@same")
    assert [hit.tile_id for hit in hits] == [f"t{k}" for k in range(7)]
    assert [hit.score for hit in hits] == [1.0] * 7
    assert (hits[6].shard, hits[6].row) == ("part-00001.parquet", 1)


def test_a_hit_brings_what_its_own_tile_is_known_for(archive: Path):
    geotags = [
        {"tile_id": f"t{k}", "center_tags": [f"near={k}"], "surrounding_tags": [f"far={k}"] if k != 11 else None}
        for k in range(10, 15)
    ]
    storage.publish_shard(
        archive / "geotags" / "part-00002.parquet", pa.Table.from_pylist(geotags, schema=schemas.GEOTAGS)
    )
    hits = {hit.tile_id: hit for hit in best(archive, QUERY, 100)}
    assert hits["t12"].captions == ["caption 12"]
    assert hits["t12"].bounds == [12, 0, 12.5, 1]
    assert hits["t12"].split == "train"
    assert (hits["t12"].tags, hits["t11"].tags, hits["t0"].tags) == (["near=12", "far=12"], ["near=11"], [])


def test_a_tile_without_a_place_is_in_no_box(archive: Path):
    name = "part-00000.parquet"
    rows = storage.read_shard(archive / "tiles" / name).to_pylist()
    rows[0]["bounds"] = None
    (archive / "tiles" / name).unlink()
    storage.publish_shard(archive / "tiles" / name, pa.Table.from_pylist(rows, schema=schemas.TILES))
    world = (-180, -90, 180, 90)
    assert len(best(archive, QUERY, 100)) == 14
    assert {f"t{k}" for k in range(15)} - {hit.tile_id for hit in best(archive, QUERY, 100, bbox=world)} == {"t0", "t7"}


def test_a_table_that_was_started_but_has_no_shard_is_no_variant(archive: Path):
    (archive / "embeddings@begun").mkdir()
    assert tables.table_of(archive, "embeddings", None, "embeddings") == "embeddings@m"


def test_aligned_shards_come_with_the_columns_that_were_asked_for(archive: Path):
    read = tables.read_aligned(archive, {"tiles": ["split"], "captions@given": None}, "part-00001.parquet")
    assert read["tiles"].column_names == ["tile_id", "failure", "split"]
    assert read["captions@given"].column_names == schemas.CAPTIONS.names
    assert read["tiles"]["tile_id"].to_pylist() == [f"t{k}" for k in range(5, 10)]


def test_a_missing_table_is_named_with_the_verb_that_makes_it(archive: Path):
    for table, verb in (("tiles", "ingest"), ("geotags", "geotag"), ("segments@grid", "segments")):
        with pytest.raises(ConfigError, match=f"no table {table}; make it with: urbancross {verb[:6]}"):
            tables.fingerprint_of(archive / "elsewhere", table)
    assert tables.fingerprint_of(archive, "embeddings@m") == {"settings": {"checkpoint": "abc"}}


def test_brackets_in_captions_and_queries_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]):
    hit = Hit(1, "img[a]/1.jpg", 0.5, None, None, ["a [/b] roof [red]"], [], "part-00000.parquet", 0)
    search.show(Answer([hit], 1, "exact"), "boats [/]")
    told = capsys.readouterr().out
    for text in ("img[a]/1.jpg", "a [/b] roof [red]", "“boats [/]”"):
        assert text in told


def with_segments(archive: Path) -> list[list[np.ndarray]]:
    """Segments for every tile but 3 and 7, up to three each, and their vectors."""
    rng = np.random.default_rng(1)
    found: list[list[np.ndarray]] = []
    maker = {"settings": {"checkpoint": "abc"}, "sources": {"tiles": "x", "segments@s": "y"}}
    for shard in range(3):
        name, rows, cut = f"part-{shard:05d}.parquet", [], []
        for k in range(5 * shard, 5 * shard + 5):
            vectors = rng.normal(size=(0 if k in (3, 7) else 1 + k % 3, WIDTH)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            found.append(list(vectors))
            rows.append({"tile_id": f"t{k}", "vectors": list(vectors) if len(vectors) else None})
            ranked = [{"rank": i, "box": [k, i, k + 1, i + 1]} for i in reversed(range(len(vectors)))]
            cut.append({"tile_id": f"t{k}", "segments": ranked})
        schema = storage.with_made_by(schemas.segment_embeddings(WIDTH), maker)
        storage.publish_shard(archive / "segment_embeddings@m" / name, pa.Table.from_pylist(rows, schema=schema))
        storage.publish_shard(archive / "segments@s" / name, pa.Table.from_pylist(cut, schema=schemas.SEGMENTS))
    return found


def test_a_hit_says_which_segment_fits_best_and_where_it_lies(archive: Path):
    found = with_segments(archive)
    hits = best(archive, QUERY, 20, segments="segment_embeddings@m")
    assert [hit.tile_id for hit in hits] == brute_force(archive, QUERY)  # without a weight they change no order
    for hit in hits:
        number = int(hit.tile_id[1:])
        if number == 3:
            assert hit.where is None
            continue
        scores = [float(vector @ QUERY) for vector in found[number]]
        rank = int(np.argmax(scores))
        assert hit.where == {
            "rank": rank,
            "score": pytest.approx(max(scores), abs=1e-5),
            "box": [number, rank, number + 1, rank + 1],
        }


def test_the_best_segment_takes_its_share_of_the_score_and_a_tile_without_any_keeps_its_own(archive: Path):
    found = with_segments(archive)
    wanted = {}
    for name in storage.shards(archive / "embeddings@m"):
        for row in storage.read_shard(archive / "embeddings@m" / name).to_pylist():
            if row["vector"]:
                own = float(np.dot(row["vector"], QUERY))
                near = max((float(v @ QUERY) for v in found[int(row["tile_id"][1:])]), default=own)
                wanted[row["tile_id"]] = 0.7 * own + 0.3 * near
    hits = best(archive, QUERY, 20, segments="segment_embeddings@m", segment_weight=0.3)
    assert {hit.tile_id: hit.score for hit in hits} == pytest.approx(wanted, abs=1e-5)
    assert [hit.tile_id for hit in hits] == sorted(wanted, key=lambda tile: -wanted[tile])


def test_the_middle_of_bounds_lies_between_them_across_the_antimeridian_too():
    assert search.middle([10, 0, 20, 10]) == (15, 5)
    assert search.middle([179, 0, -177, 2]) == (-179, 1)
    assert search.middle([176, 0, -179, 2]) == (178.5, 1)


def test_a_hit_is_told_by_its_phrase_or_what_else_is_known_of_it():
    hit = Hit(1, "t", 0.5, None, [179, 0, -177, 2], ["a lake. A road."], ["natural=water"], "s", 0, datetime="2024")
    assert search.known(replace(hit, phrase="A road")) == "A road · -179.0000, 1.0000 · 2024"
    assert search.known(hit) == "a lake. A road. · -179.0000, 1.0000 · 2024"
    assert search.known(replace(hit, captions=[], bounds=None, datetime=None)) == "natural=water"
    assert search.known(replace(hit, captions=[], tags=[], bounds=None, datetime=None)) == ""


class Words:
    """A vector for each word, as a text encoder would say it, with further coordinates that a query bank adds."""

    width = 3

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        told = {"lake": [1, 0, 0, 9], "wood": [0, 1, 0, -9], "road": [0, 0, 1, 0]}
        return np.array([told[text] for text in texts], np.float32)


def test_the_phrase_that_fits_best_is_chosen_from_all_captions_of_a_tile():
    hits = [
        Hit(1, "a", 0.5, None, None, ["lake, wood", "road"], [], "s", 0, number=0),
        Hit(2, "b", 0.4, None, None, ["road"], [], "s", 1, number=1),
        Hit(3, "c", 0.3, None, None, [], [], "s", 2, number=2),
    ]
    query = np.array([0.1, 0.9, 0.2, -1], np.float32)  # hubness counts for nothing here
    assert [hit.phrase for hit in with_phrases(hits, query, Words())] == ["wood", "road", None]
    assert [hit.phrase for hit in with_phrases(hits[2:], query, Words())] == [None]


def test_tiles_are_numbered_in_the_order_of_the_archive(archive: Path):
    evidence = Evidence(archive)
    for number in range(15):
        found = evidence.address(number)
        assert found == (f"part-{number // 5:05d}.parquet", number % 5)
        (hit,) = evidence.hits([exact.Found(0.5, *found)], QUERY)
        assert (hit.number, hit.tile_id, hit.domain) == (number, f"t{number}", "d")
    assert (evidence.address(15), evidence.address(-1), evidence.total) == (None, None, 15)

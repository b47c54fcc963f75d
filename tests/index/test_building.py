"""`index`, run after run over an archive that grows and changes, on disk and on S3."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import searchable
from searchable import (
    add_embeddings,
    add_segments,
    add_shard,
    add_tags,
    files,
    found_by,
    ids,
    index,
    is_whole,
    manifest,
    name,
)

from urbancross import storage
from urbancross.archive import Archive
from urbancross.errors import ConfigError, SchemaError
from urbancross.index import vectors
from urbancross.index.folder import MANIFEST, Index, files_of

TABLE, FOLDER = "embeddings@m", searchable.INDEX


pytestmark = pytest.mark.usefixtures("few")


KINDS = ["exact", "pq", "int8", "binary"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_tile_that_has_a_vector_is_in_the_index_and_the_balance_adds_up(archive: Path, kind: str):
    balance = index(archive, codes=kind)
    assert (balance.read, balance.written, balance.done_before, balance.skipped) == (120, 119, 0, 1)
    assert balance.balances
    built = Index.at(archive, TABLE)
    assert built is not None
    assert (built.kind, len(built), built.shards) == (kind, 119, {name(0), name(1)})
    assert (built.tiles.codes is None) == (kind == "exact")
    assert set(built.facts["tile_id"].to_pylist()) == ids(0, 1)
    assert is_whole(archive)
    assert min(built.manifest["recall"]["tiles"].values()) >= 0.95


def test_small_archives_are_compared_in_full_and_large_ones_get_codes(archive: Path):
    index(archive, exact_below=120)
    assert manifest(archive)["kind"] == "exact"
    index(archive, exact_below=119)
    assert manifest(archive)["kind"] == "pq"


def test_a_second_run_has_nothing_to_do(archive: Path):
    index(archive, codes="pq")
    before = files(archive)
    balance = index(archive, codes="pq")
    assert (balance.read, balance.written, balance.done_before, balance.skipped) == (120, 0, 119, 1)
    assert balance.balances
    assert files(archive) == before


@pytest.mark.parametrize("kind", KINDS)
def test_new_shards_are_appended_and_nothing_that_was_is_touched(archive: Path, model: str, kind: str):
    index(archive, codes=kind)
    first, before = manifest(archive), files(archive)
    add_shard(archive, model, 2)
    assert set(found_by(archive)) >= ids(2)  # the index lacks them; they are found all the same
    balance = index(archive, codes=kind)
    assert (balance.read, balance.written, balance.done_before, balance.skipped) == (180, 60, 119, 1)
    second, after = manifest(archive), files(archive)
    assert [list(part["shards"]) for part in second["parts"]] == [[name(0), name(1)], [name(2)]]
    assert second["trained"] == first["trained"]
    assert {name: after[name] for name in before if name != MANIFEST} == {
        name: before[name] for name in before if name != MANIFEST
    }
    assert is_whole(archive)
    built = Index.at(archive, TABLE)
    assert built is not None
    own = searchable.vectors_of(model, 2)
    for row in (0, 33, 59):  # a tile of the new shard finds itself, at its own address
        best = built.best(own[row], 1).found[0]
        assert (best.shard, best.row) == (name(2), row)


def test_a_shard_between_those_of_the_index_is_appended_too(archive: Path, model: str):
    (archive / TABLE / name(0)).rename(archive / "kept")
    index(archive, codes="pq")
    (archive / "kept").rename(archive / TABLE / name(0))
    index(archive, codes="pq")
    assert [list(part["shards"]) for part in manifest(archive)["parts"]] == [[name(1)], [name(0)]]
    assert set(found_by(archive)) == ids(0, 1)
    best = Index.at(archive, TABLE).best(searchable.vectors_of(model, 0)[59], 1).found[0]  # type: ignore[union-attr]
    assert (best.shard, best.row) == (name(0), 59)


def test_large_tables_are_written_in_parts(archive: Path, model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("urbancross.index.building.PART_ROWS", 100)
    add_shard(archive, model, 2)
    index(archive, codes="pq")
    assert [list(part["shards"]) for part in manifest(archive)["parts"]] == [[name(0)], [name(1)], [name(2)]]
    best = Index.at(archive, TABLE).best(searchable.vectors_of(model, 1)[3], 1).found[0]  # type: ignore[union-attr]
    assert (best.shard, best.row) == (name(1), 3)
    assert set(found_by(archive)) == ids(0, 1, 2)


def anew(archive: Path, capsys: pytest.CaptureFixture[str], why: str, **settings: Any) -> None:
    """Run `index`, which has to say why nothing of the old index is kept."""
    old = manifest(archive)
    capsys.readouterr()
    index(archive, **settings)
    told = capsys.readouterr()
    assert f"made anew, since {why}" in told.out + told.err
    assert not {part["name"] for part in old["parts"]} & {part["name"] for part in manifest(archive)["parts"]}
    assert is_whole(archive)


def test_another_kind_of_codes_makes_it_anew(archive: Path, capsys: pytest.CaptureFixture[str]):
    index(archive, codes="pq")
    anew(archive, capsys, "it has kind pq, now kind int8", codes="int8")


def test_a_failed_tile_that_was_tried_again_makes_it_anew(
    archive: Path, model: str, capsys: pytest.CaptureFixture[str]
):
    index(archive, codes="pq")
    add_embeddings(archive, model, 0)
    anew(archive, capsys, "part-00000.parquet changed", codes="pq")
    assert "t7" in found_by(archive)


def test_a_shard_that_is_gone_makes_it_anew(archive: Path, capsys: pytest.CaptureFixture[str]):
    index(archive, codes="pq")
    (archive / TABLE / name(1)).unlink()
    anew(archive, capsys, "part-00001.parquet changed", codes="pq")
    assert set(found_by(archive)) == ids(0)


def test_geotags_that_came_later_make_it_anew(archive: Path, capsys: pytest.CaptureFixture[str]):
    index(archive, codes="pq")
    assert found_by(archive, tags=("natural=n1",)) == []
    add_tags(archive, 0)
    anew(archive, capsys, "geotags has joined", codes="pq")
    assert set(found_by(archive, tags=("natural=n1",))) == {f"t{i}" for i in range(60) if i % 3 == 1} - {"t7"}
    assert (index(archive, codes="pq").written, add_tags(archive, 1)) == (0, None)
    anew(archive, capsys, "geotags has joined", codes="pq")


def test_segments_that_came_later_make_it_anew(archive: Path, model: str, capsys: pytest.CaptureFixture[str]):
    index(archive, codes="pq")
    add_segments(archive, model, 0)
    anew(archive, capsys, "it has segments None, now segments segment_embeddings@m", codes="pq")
    first = manifest(archive)
    add_segments(archive, model, 1)
    anew(archive, capsys, "segment_embeddings@m has joined", codes="pq")
    grown = manifest(archive)
    assert sum(part["segments"] for part in grown["parts"]) > sum(part["segments"] for part in first["parts"])
    anew(archive, capsys, "it has segments segment_embeddings@m, now segments None", codes="pq", segments=False)


def test_fourfold_growth_trains_the_codes_anew(archive: Path, model: str, capsys: pytest.CaptureFixture[str]):
    (archive / TABLE / name(1)).rename(archive / "kept")
    index(archive, codes="pq")
    (archive / "kept").rename(archive / TABLE / name(1))
    for shard in (2, 3):
        add_shard(archive, model, shard, failed=[0, 1, 2] if shard == 3 else ())
    capsys.readouterr()
    assert index(archive, codes="pq").written == 177  # 236 tiles, trained with 59: not quite
    assert "made anew" not in capsys.readouterr().out
    add_shard(archive, model, 4)
    anew(archive, capsys, "it has grown from 59 tiles to 296", codes="pq")
    assert manifest(archive)["trained_with"] == 296


def test_it_can_be_asked_for_anew(archive: Path):
    index(archive, codes="pq")
    old = manifest(archive)
    assert index(archive, codes="pq", rebuild=True).written == 119
    assert manifest(archive)["trained"] != old["trained"]
    assert is_whole(archive)


def test_a_file_that_was_lost_makes_it_anew(archive: Path, capsys: pytest.CaptureFixture[str]):
    index(archive, codes="pq")
    part = manifest(archive)["parts"][0]["name"]
    (archive / FOLDER / f"{part}.tiles.npy").unlink()
    with pytest.raises(ConfigError, match="lacks files; make it again: urbancross index --rebuild"):
        Archive(str(archive))
    anew(archive, capsys, f"{part}.tiles.npy is gone", codes="pq")


def test_an_index_of_another_version_is_not_read(archive: Path):
    index(archive)
    storage.write_json(archive / FOLDER / MANIFEST, manifest(archive) | {"format": 99})
    for ask in (lambda: Archive(str(archive)), lambda: index(archive)):
        with pytest.raises(ConfigError, match="another version of urbancross; make it again: urbancross index"):
            ask()
    assert index(archive, rebuild=True).written == 119
    assert is_whole(archive)


def test_vectors_of_two_models_are_not_mixed(archive: Path, model: str):
    rows = storage.read_shard(archive / TABLE / name(1))
    (archive / TABLE / name(1)).unlink()
    other = storage.with_made_by(rows.schema, {"settings": {"checkpoint": "other"}, "notes": {"checkpoint": "o"}})
    storage.publish_shard(archive / TABLE / name(1), rows.cast(other))
    with pytest.raises(ConfigError, match=r"embeddings@m/part-00001.parquet was made by other weights than .*small"):
        index(archive)
    assert not storage.exists(archive / FOLDER / MANIFEST)


def test_vectors_of_other_tiles_are_not_taken(archive: Path, model: str):
    (archive / TABLE / name(1)).unlink()
    (archive / TABLE / name(0)).rename(archive / TABLE / name(1))
    with pytest.raises(SchemaError, match="does not hold the tiles of tiles/part-00001.parquet"):
        index(archive)


def test_an_archive_without_a_vector_is_no_index(tmp_path: Path, model: str):
    add_shard(tmp_path / "a", model, 0, count=3, failed=range(3))
    with pytest.raises(ConfigError, match="has no vector; make it first: urbancross embed"):
        index(tmp_path / "a")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_in_which_all_tiles_failed_is_passed_over(archive: Path, model: str, kind: str):
    add_shard(archive, model, 2, failed=range(60))
    balance = index(archive, codes=kind)
    assert (balance.read, balance.written, balance.skipped) == (180, 119, 61)
    add_shard(archive, model, 3, failed=range(60))
    balance = index(archive, codes=kind)  # a part of its own, of nothing
    assert (balance.read, balance.written, balance.done_before, balance.skipped) == (240, 0, 119, 121)
    assert set(found_by(archive)) == ids(0, 1)
    assert index(archive, codes=kind).written == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 15])
def test_a_handful_of_tiles_is_an_archive_too(
    tmp_path: Path, model: str, kind: str, count: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vectors, "FEW", 20_000)  # as it is
    add_shard(tmp_path / "a", model, 0, count=count)
    add_segments(tmp_path / "a", model, 0, count=count)
    assert index(tmp_path / "a", codes=kind).written == count
    assert len(found_by(tmp_path / "a", weight=0.5)) == count


def test_codes_come_when_there_are_enough_tiles_for_them(archive: Path, model: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vectors, "FEW", 150)
    index(archive, codes="pq")
    assert manifest(archive)["trained"] == {}
    add_shard(archive, model, 2)
    assert index(archive, codes="pq").written == 60
    built = Index.at(archive, TABLE)
    assert built is not None
    assert built.tiles.codes is not None
    assert built.tiles.codes.lists.ntotal == 179
    assert is_whole(archive)
    assert len(manifest(archive)["parts"]) == 2


def test_the_same_seed_makes_the_same_index(archive: Path):
    def contents() -> list[tuple[str, bytes]]:
        whole = sorted(files_of(manifest(archive)), key=lambda file: file.partition(".")[2].replace("pq", ""))
        return [
            ((archive / FOLDER / file).name.split(".")[1], (archive / FOLDER / file).read_bytes()) for file in whole
        ]

    index(archive, codes="pq")
    first, told = contents(), manifest(archive)
    index(archive, codes="pq", rebuild=True)
    assert [data for _, data in contents()] == [data for _, data in first]
    assert manifest(archive)["recall"] == told["recall"]


def test_an_index_on_s3_is_fetched_once_searched_from_here_and_swapped(
    model: str, bucket: Any, s3_proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "builder"))
    place = bucket / "archive"
    for shard in (0, 1):
        add_shard(place, model, shard)
        add_segments(place, model, shard)
    assert index(place, codes="pq").written == 120
    assert is_whole(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    s3_proxy.seen.clear()
    exact = [hit.tile_id for hit in Archive(str(place), indexed=False).search("a lake").hits]
    assert [hit.tile_id for hit in Archive(str(place)).search("a lake").hits] == exact
    assert index_reads(s3_proxy) == sorted([MANIFEST, *files_of(manifest(place))])
    s3_proxy.seen.clear()
    assert [hit.tile_id for hit in Archive(str(place)).search("a lake").hits] == exact
    assert index_reads(s3_proxy) == [MANIFEST]

    first = manifest(place)
    add_shard(place, model, 2)
    assert index(place, codes="pq", segments=True).written == 60
    assert is_whole(place)
    assert manifest(place)["parts"][0] == first["parts"][0]
    built = Index.at(place, TABLE)
    assert built is not None
    best = built.best(searchable.vectors_of(model, 2)[5], 1).found[0]
    assert (best.shard, best.row) == (name(2), 5)
    assert index(place, codes="int8").written == 180
    assert is_whole(place)


def index_reads(proxy: Any) -> list[str]:
    """Files of the index that were read from S3."""
    paths = [unquote(request.split(" ")[1].partition("?")[0]) for request in proxy.seen if request.startswith("GET ")]
    return sorted(path.rpartition("/")[2] for path in paths if f"/{FOLDER}/" in path)


def test_the_manifest_says_how_it_was_made_and_what_it_finds(archive: Path, model: str):
    add_segments(archive, model, 0)
    index(archive, codes="int8", seed=4)
    told = json.loads((archive / FOLDER / MANIFEST).read_text())
    assert (told["kind"], told["embeddings"], told["segments"], told["seed"]) == (
        "int8",
        TABLE,
        "segment_embeddings@m",
        4,
    )
    assert told["width"] == searchable.WIDTH
    assert {"faiss", "numpy", "python"} == set(told["made_with"])
    assert set(told["recall"]) == {"tiles", "segments"}
    assert {"texts", "tiles"} <= set(told["recall"]["tiles"])

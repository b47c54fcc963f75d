from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pytest

from urbancross import storage
from urbancross.errors import ConfigError, SchemaError, StorageError


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_the_second_to_publish_a_name_loses_and_the_first_bytes_stay(tmp_path):
    assert storage.create(tmp_path / "tiles" / "part", b"first") is not None
    assert storage.create(tmp_path / "tiles" / "part", b"second") is None
    assert (tmp_path / "tiles" / "part").read_bytes() == b"first"
    assert everything_in(tmp_path) == ["part", "tiles"]  # no temporary file stays, of the loser neither


def test_twenty_threads_that_publish_one_name_have_one_winner_whose_bytes_are_whole(tmp_path):
    barrier = Barrier(20)

    def race(number: int) -> bool:
        barrier.wait()
        return storage.create(tmp_path / "part", b"%02d" % number * 50_000) is not None

    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(race, range(20)))
    assert sum(won) == 1
    assert (tmp_path / "part").read_bytes() == b"%02d" % won.index(True) * 50_000
    assert everything_in(tmp_path) == ["part"]


def test_a_write_that_fails_leaves_neither_the_name_nor_a_temporary_file(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.local_store.os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*part: No space left on device; free some space"):
        storage.create(tmp_path / "part", b"data")
    assert everything_in(tmp_path) == []


def test_a_place_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    place = tmp_path / "file" / "part"
    with pytest.raises(StorageError, match=r"cannot write .*file/part"):
        storage.create(place, b"")
    with pytest.raises(StorageError, match=r"cannot write .*file/part"):
        storage.write_json(place, {})
    with pytest.raises(StorageError, match=r"cannot write .*file/part"), storage.publish_folder(place):
        pytest.fail("the block must not start")


def test_shards_lists_finished_shards_alone_and_in_order(tmp_path):
    for name in ["part-00001.parquet", "part-00000.parquet", ".part-00002.parquet", ".part-3.parquet-ab.tmp", "note"]:
        (tmp_path / name).write_bytes(b"")
    assert storage.shards(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]
    assert storage.shards(tmp_path / "absent") == []


def test_replace_writes_over_what_is_there_and_cleans_up(tmp_path):
    storage.replace(tmp_path / "report", b"old")
    storage.replace(tmp_path / "report", b"new")
    assert (tmp_path / "report").read_bytes() == b"new"
    assert everything_in(tmp_path) == ["report"]


def test_a_folder_appears_under_its_name_only_when_the_block_ends_well(tmp_path):
    with storage.publish_folder(tmp_path / "checkpoint") as folder:
        (folder / "a").write_text("weights")
        assert not (tmp_path / "checkpoint").exists()
    assert (tmp_path / "checkpoint" / "a").read_text() == "weights"
    assert everything_in(tmp_path) == ["a", "checkpoint"]


def test_a_block_that_raises_leaves_no_folder(tmp_path):
    def fill_half(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), storage.publish_folder(tmp_path / "checkpoint") as folder:
        fill_half(folder)
    assert everything_in(tmp_path) == []


def test_a_folder_that_exists_is_not_written_over(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "old").write_text("")
    with (
        pytest.raises(ConfigError, match="checkpoint exists already"),
        storage.publish_folder(tmp_path / "checkpoint") as folder,
    ):
        (folder / "new").write_text("")
    assert everything_in(tmp_path) == ["checkpoint", "old"]


def test_a_shard_comes_back_as_it_was_published(tmp_path):
    table = pa.table({"tile_id": ["a", "b"], "failure": pa.array([None, "failed:x"])})
    assert storage.publish_shard(tmp_path / "part.parquet", table)
    assert storage.read_shard(tmp_path / "part.parquet").equals(table)
    assert storage.read_shard(tmp_path / "part.parquet", ["failure"]).column_names == ["failure"]
    assert storage.row_counts(tmp_path, ["part.parquet", "part.parquet"]) == [2, 2]


@pytest.mark.parametrize("data", [b"", b"garbage", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_garbage_under_a_shards_name_is_called_no_shard_however_it_is_read(tmp_path, data):
    shard = tmp_path / "part.parquet"
    shard.write_bytes(data)
    for read in (storage.read_shard, storage.read_schema, lambda path: storage.row_counts(path.parent, [path.name])):
        with pytest.raises(SchemaError, match=r"part\.parquet is not a shard") as caught:
            read(shard)
        assert "\n" not in str(caught.value)


def test_a_shard_that_was_cut_short_is_called_no_shard(tmp_path):
    storage.publish_shard(tmp_path / "whole.parquet", pa.table({"x": list(range(1000))}))
    (tmp_path / "part.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-5])
    with pytest.raises(SchemaError, match="is not a shard"):
        storage.read_shard(tmp_path / "part.parquet")


def test_a_column_that_a_shard_lacks_is_named_in_one_line(tmp_path):
    storage.publish_shard(tmp_path / "part.parquet", pa.table({"x": [1]}))
    with pytest.raises(SchemaError, match="vector") as caught:
        storage.read_shard(tmp_path / "part.parquet", ["vector"])
    assert "\n" not in str(caught.value)


def test_an_absent_shard_is_worth_another_try(tmp_path):
    for read in (storage.read_shard, storage.read_schema):
        with pytest.raises(StorageError, match=r"absent\.parquet"):
            read(tmp_path / "absent.parquet")


def test_what_made_a_shard_survives_the_disk_beside_other_metadata(tmp_path):
    maker = {"table": "embeddings@x", "settings": {"checkpoint": "ab12", "width": 4}, "sources": {}}
    schema = storage.with_made_by(pa.schema([pa.field("x", pa.int64())], metadata={b"geo": b"{}"}), maker)
    storage.publish_shard(tmp_path / "part.parquet", schema.empty_table())
    read = storage.read_schema(tmp_path / "part.parquet")
    assert storage.made_by(read) == maker
    assert read.metadata[b"geo"] == b"{}"
    assert storage.made_by(pa.schema([])) == {}


def test_equal_settings_in_another_order_make_equal_bytes():
    plain = pa.schema([])
    first, second = (storage.with_made_by(plain, maker) for maker in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert first.metadata == second.metadata


def test_json_comes_back_as_it_was_written(tmp_path):
    storage.write_json(tmp_path / "runs" / "x.json", {"b": [1, None], "a": "é"})
    assert storage.read_json(tmp_path / "runs" / "x.json", "run") == {"b": [1, None], "a": "é"}


def test_json_that_cannot_be_read_is_named_with_what_it_is_for(tmp_path):
    (tmp_path / "cut.json").write_text('{"a": ')
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for name, message in [
        ("absent.json", r"--metrics .*absent\.json: no such file"),
        ("cut.json", r"--metrics .*cut\.json is not JSON \(Expecting value"),
        ("latin.json", r"--metrics .*latin\.json is not JSON"),
        ("", "--metrics .* cannot be read: it is a folder"),
    ]:
        with pytest.raises(ConfigError, match=message):
            storage.read_json(tmp_path / name, "--metrics")


def test_a_place_is_a_local_path_that_exists(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert storage.folder(str(tmp_path), "--archive") == tmp_path
    assert storage.file(str(tmp_path / "file"), "--osm") == tmp_path / "file"
    with pytest.raises(ConfigError, match=r"--archive .*file: no such folder"):
        storage.folder(str(tmp_path / "file"), "--archive")
    with pytest.raises(ConfigError, match=r"--osm .*: no such file"):
        storage.file(str(tmp_path), "--osm")
    with pytest.raises(ConfigError, match="s3:// cannot be read here; give a local path"):
        storage.local("s3://bucket/a")


def test_a_digest_depends_on_every_byte_of_every_file(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    both = storage.digest(tmp_path / "a", tmp_path / "b")
    assert both == storage.digest_text("onetwo")
    assert len(both) == 16
    (tmp_path / "b").write_bytes(b"twO")
    assert storage.digest(tmp_path / "a", tmp_path / "b") != both


def test_a_swap_is_done_only_over_the_version_that_was_read(tmp_path):
    first = storage.create(tmp_path / "lease", b"first")
    second = storage.swap(tmp_path / "lease", b"other", first)
    assert second not in (None, first)
    assert storage.swap(tmp_path / "lease", b"third", first) is None
    assert storage.read(tmp_path / "lease") == (b"other", second)
    assert storage.swap(tmp_path / "absent", b"third", first) is None
    assert not (tmp_path / "absent").exists()


def test_of_twenty_threads_that_swap_one_version_one_wins(tmp_path):
    version = storage.create(tmp_path / "lease", b"0")
    barrier = Barrier(20)

    def race(number: int) -> bool:
        barrier.wait()
        return storage.swap(tmp_path / "lease", b"%02d" % number, version) is not None

    with ThreadPoolExecutor(20) as pool:
        won = list(pool.map(race, range(20)))
    assert sum(won) == 1
    assert storage.read(tmp_path / "lease")[0] == b"%02d" % won.index(True)


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    for name in (".part-00000.parquet-ab.tmp", ".lease.json", "part-00000.parquet", "notes.tmp"):
        (tmp_path / name).write_bytes(b"")
    assert storage.sweep(tmp_path) == 1
    assert everything_in(tmp_path) == [".lease.json", "notes.tmp", "part-00000.parquet"]


def test_a_row_is_read_from_whichever_group_holds_it(tmp_path):
    table = pa.table({"n": list(range(600)), "text": [f"x{i}" for i in range(600)]})  # groups of 256
    storage.publish_shard(tmp_path / "part.parquet", table)
    for row in (0, 255, 256, 511, 512, 599):
        assert storage.read_row(tmp_path / "part.parquet", ["text"], row) == {"text": f"x{row}"}
    with pytest.raises(SchemaError, match="part.parquet has 600 rows, row 600 wanted; remove it and run the job again"):
        storage.read_row(tmp_path / "part.parquet", ["n"], 600)
    with pytest.raises(SchemaError, match="part.parquet has no column other; remove it and run the job again"):
        storage.read_row(tmp_path / "part.parquet", ["n", "other"], 3)
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(SchemaError, match="bad.parquet is not a shard as wanted"):
        storage.read_row(tmp_path / "bad.parquet", ["n"], 0)


def test_a_local_file_is_read_where_it_lies(tmp_path):
    assert storage.fetched(tmp_path / "file") == tmp_path / "file"
    assert everything_in(tmp_path) == []


def test_a_file_of_s3_is_fetched_once_and_whole(tmp_path, monkeypatch, bucket, s3_proxy):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    storage.create(bucket / "a" / "file.npy", b"of a")
    storage.create(bucket / "b" / "file.npy", b"of b")
    paths = [storage.fetched(bucket / folder / "file.npy") for folder in ("a", "b", "a", "b")]
    assert [path.read_bytes() for path in paths] == [b"of a", b"of b", b"of a", b"of b"]
    assert [path.name for path in paths] == ["file.npy"] * 4
    assert sum(request.startswith("GET ") and "file.npy" in request for request in s3_proxy.seen) == 2
    assert [name for name in everything_in(tmp_path) if name.endswith(".tmp")] == []
    with pytest.raises(FileNotFoundError, match="absent.npy"):
        storage.fetched(bucket / "absent.npy")

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from urbancross import drafts, failpoints, storage
from urbancross.errors import StorageError
from urbancross.stores import local

ROWS = pa.table(
    {
        "tile_id": [f"t{number}" for number in range(700)],
        "vector": pa.FixedSizeListArray.from_arrays(np.arange(2800, dtype=np.float32), 4),
        "tags": [["building=yes"] * (number % 3) for number in range(700)],
        "failure": pa.array([None if number % 5 else "failed:x" for number in range(700)]),
    }
)

BIG = pa.table({"image": pa.array([np.random.default_rng(0).bytes(9999)] * 300, pa.binary())})

HOLDS = """
import sys, pyarrow as pa
from pathlib import Path
from urbancross import drafts
rows = pa.table({"image": pa.array([bytes(200_000)] * 16, pa.binary())})
with drafts.draft(Path(sys.argv[1]), rows.schema) as shard:
    for _ in range(128):
        shard.add(rows)
    assert shard.publish()
print(pa.default_memory_pool().max_memory())
"""


def in_parts(path, sizes):
    with drafts.draft(path, ROWS.schema) as shard:
        start = 0
        for size in sizes:
            shard.add(ROWS.slice(start, size))
            start += size
        assert start == ROWS.num_rows
        assert shard.publish()
    return path.read_bytes()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_equal_rows_give_equal_bytes_however_they_come(tmp_path):
    whole = bytes(storage.encode_shard(ROWS))
    for number, sizes in enumerate([[700], [1] * 700, [64] * 10 + [60], [0, 300, 0, 400], [255, 1, 1, 256, 187]]):
        assert in_parts(tmp_path / f"{number}.parquet", sizes) == whole
    assert bytes(storage.encode_shard(pa.concat_tables([ROWS.slice(0, 3), ROWS.slice(3)]))) == whole
    with pq.ParquetFile(tmp_path / "0.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(3)] == [256, 256, 188]
        assert file.read().equals(ROWS)


def test_a_shard_without_rows_has_its_columns(tmp_path):
    with drafts.draft(tmp_path / "part.parquet", ROWS.schema) as shard:
        assert shard.publish()
    assert storage.read_shard(tmp_path / "part.parquet").equals(ROWS.schema.empty_table())
    assert storage.row_counts(tmp_path, ["part.parquet"]) == [0]


def test_a_draft_is_nobodys_until_it_is_published(tmp_path):
    with drafts.draft(tmp_path / "part.parquet", ROWS.schema) as shard:
        shard.add(ROWS)
        assert storage.shards(tmp_path) == []
        assert storage.read(tmp_path / "part.parquet") is None
        assert shard.publish()
        assert storage.shards(tmp_path) == ["part.parquet"]
    assert names_in(tmp_path) == ["part.parquet"]


def test_a_draft_that_was_given_up_leaves_nothing(tmp_path, capfd):
    def give_up():
        with drafts.draft(tmp_path / "part.parquet", ROWS.schema) as shard:
            shard.add(ROWS)
            raise KeyError("of the stage's own")

    with pytest.raises(KeyError):
        give_up()
    assert names_in(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_of_two_drafts_of_a_shard_the_first_that_is_published_stays(tmp_path):
    path = tmp_path / "part.parquet"
    with drafts.draft(path, ROWS.schema) as one, drafts.draft(path, ROWS.schema) as other:
        one.add(ROWS.slice(0, 10))
        other.add(ROWS)
        assert other.publish()
        assert not one.publish()
    assert storage.read_shard(path).equals(ROWS)
    assert names_in(tmp_path) == ["part.parquet"]


@pytest.mark.parametrize("moment", ["before", "halfway", "written"])
def test_a_full_disk_is_one_line_and_nothing_stays(tmp_path, monkeypatch, moment):
    monkeypatch.setattr(failpoints, "_ARMED", {f"shard.{moment}": (1, "full")})
    with pytest.raises(StorageError, match=r"cannot write .*/part\.parquet: No space left on device; free some space"):
        storage.publish_shard(tmp_path / "part.parquet", ROWS)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("rows", [ROWS.slice(0, 0), ROWS, BIG])
def test_a_disk_that_fills_up_meanwhile_is_one_line(tmp_path, monkeypatch, capfd, rows):
    def open_full(path, *how, **more):
        return open("/dev/full", *how, **more)

    monkeypatch.setattr(local, "open", open_full, raising=False)
    with pytest.raises(StorageError, match=r"cannot write .*/part\.parquet: No space left on device; free some"):
        storage.publish_shard(tmp_path / "part.parquet", rows)
    assert names_in(tmp_path) == []
    assert capfd.readouterr().err == ""


def test_who_makes_a_shard_holds_a_group_of_it(tmp_path):
    """400 MB of images; groups are of 51 MB, held twice while one is put together."""
    made = subprocess.run(
        [sys.executable, "-c", HOLDS, str(tmp_path / "part.parquet")], capture_output=True, text=True, check=True
    )
    assert int(made.stdout) < 120e6

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from urbancross import storage
from urbancross.errors import ConfigError
from urbancross.maps import order, table
from urbancross.maps.features import boxes, decode, encode


class Batch:
    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows

    def table(self) -> pa.Table:
        return self.rows


def scattered(number: int, seed: int = 0) -> list[Batch]:
    """Small squares all over, a few of them large, in batches of 100."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(20, 30, number), rng.uniform(55, 65, number)
    side = np.where(rng.random(number) < 0.02, 1.0, 0.001)
    shapes = shapely.box(x, y, x + side, y + side)
    ids = [f"way/{i}" for i in range(number)]
    tags = [("building=yes",) if i % 3 else ("building=yes", "amenity=school") for i in range(number)]
    return [Batch(encode(ids[i : i + 100], tags[i : i + 100], shapes[i : i + 100])) for i in range(0, number, 100)]


def test_the_order_does_not_depend_on_the_size_of_runs_and_parts():
    tables = [batch.table() for batch in scattered(2000)]
    (whole,) = order.in_order(tables)
    for run_bytes, part_bytes in [(1, 1 << 30), (50_000, 20_000), (1 << 30, 10_000)]:
        parts = list(order.in_order(tables, run_bytes, part_bytes))
        assert pa.concat_tables(parts).equals(whole), (run_bytes, part_bytes)
        assert len(parts) > 3 or part_bytes == 1 << 30
    assert sorted(whole["id"].to_pylist()) == sorted(f"way/{i}" for i in range(2000))


def test_neighbours_on_the_curve_are_neighbours_on_the_ground():
    x, y = (side.ravel() for side in np.meshgrid(np.arange(16), np.arange(16)))
    far = order.hilbert(x, y)
    assert sorted(far) == list(range(256))
    along = np.column_stack([x, y])[np.argsort(far)]
    assert all(np.abs(there - here).sum() == 1 for here, there in pairwise(along))


def test_a_question_reads_the_row_groups_near_it_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROW_GROUP", 50)
    batches = scattered(2000)
    table.write(tmp_path, batches, {"notes": {"licence": "ODbL"}})
    found = table.MapTable(tmp_path)
    window = np.array([shapely.box(25, 60, 25.5, 60.5)], dtype=object)
    near = found.meeting(window)
    every = pa.concat_tables([batch.table() for batch in batches])
    meets = shapely.intersects(shapely.box(*boxes(every).T), window[0])
    assert len(near) == meets.sum() > 0
    assert sorted(near.shapes[i].bounds for i in range(len(near))) == sorted(map(tuple, boxes(every)[meets]))
    assert len(found.held) < len(found.groups) / 3
    held = dict(found.held)
    found.meeting(np.array([shapely.box(25.1, 60, 25.6, 60.5)], dtype=object))
    assert all(found.held[group] is held[group] for group in found.held.keys() & held.keys())  # not read twice


def test_the_table_is_geoparquet_with_its_maker_and_a_box_for_every_row(tmp_path):
    table.write(tmp_path, scattered(100), {"notes": {"licence": "ODbL 1.0"}})
    schema = pq.read_schema(tmp_path / "part-00000.parquet")
    assert storage.made_by(schema)["notes"] == {"licence": "ODbL 1.0"}
    assert b'"covering"' in schema.metadata[b"geo"]
    rows = pq.read_table(tmp_path / "part-00000.parquet")
    np.testing.assert_allclose(boxes(rows), shapely.bounds(decode(rows).shapes))


def test_a_table_without_its_last_object_is_not_whole(tmp_path):
    table.write(tmp_path, scattered(100), {})
    assert table.parts(tmp_path) == {"part-00000.parquet": 100}
    assert table.problems(tmp_path) == []
    (tmp_path / table.WHOLE).unlink()
    assert table.parts(tmp_path) is None
    assert "is not whole" in table.problems(tmp_path)[0]


def test_a_part_that_is_lost_or_cut_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "PART_BYTES", 10_000)
    table.write(tmp_path, scattered(1000), {})
    first, second, *_ = storage.shards(tmp_path)
    (tmp_path / first).unlink()
    Path(tmp_path / second).write_bytes(b"PAR1")
    told = table.problems(tmp_path)
    assert len(told) == 2
    assert f"lacks {first}" in told[0]
    assert second in told[1]


def test_a_map_of_one_thing_is_a_table_and_a_map_of_nothing_is_none(tmp_path):
    assert table.write(tmp_path / "one", scattered(1), {}) == 1
    assert len(table.MapTable(tmp_path / "one").meeting(np.array([shapely.box(0, 0, 90, 90)], dtype=object))) == 1
    nothing = Batch(encode([], [], np.empty(0, dtype=object)))
    assert table.write(tmp_path / "none", [nothing, nothing], {}) == 0
    assert storage.shards(tmp_path / "none") == []
    with pytest.raises(ConfigError, match="is not whole; run geotag again"):
        table.MapTable(tmp_path / "none")

"""From tars to what others open: `ingest`, `duplicates` and the tables' boxes, on real workers."""

import json
from pathlib import Path
from typing import Any

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_webdataset import picture, write_tar

from urbancross import cli, storage
from urbancross.errors import ConfigError
from urbancross.tiles import encode

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**{"workers": 2} | settings)))


def rows_of(archive: Path, table: str) -> list[dict[str, Any]]:
    shards = (storage.read_shard(archive / table / name) for name in storage.shards(archive / table))
    return [row for shard in shards for row in shard.to_pylist()]


def scene(seed: int) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC))


def test_tiles_of_tars_are_their_members_and_a_tar_that_changed_is_told(tmp_path: Path):
    good = {f"{i:04d}.png": picture(i) for i in range(6)} | {"0001.txt": "a lake", "0006.png": b"no image"}
    write_tar(tmp_path / "set" / "set-0.tar", good)
    write_tar(tmp_path / "set" / "set-1.tar", {"a.jpg": picture(9, "JPEG"), "b.txt": "alone"})
    told = {"source": str(tmp_path / "set"), "archive": str(tmp_path / "a"), "domain": "d", "shard_tiles": 4}
    assert run("ingest", **told) == "read 9 = written 7 + done before 0 + failed 2"
    found = {row["tile_id"]: row for row in rows_of(tmp_path / "a", "tiles")}
    assert [found[f"set-0/{i:04d}"]["image"] for i in range(6)] == [good[f"{i:04d}.png"] for i in range(6)]
    assert found["set-1/a"]["image"] == picture(9, "JPEG")
    assert found["set-0/0006"]["failure"] == "failed:not an image"
    assert found["set-1/b"]["failure"].startswith("failed:one image wanted, found none")
    assert run("ingest", **told) == "read 9 = written 0 + done before 9 + failed 0"

    # Bytes at the old place would be another picture's by now: neither a run nor a retry takes them.
    (tmp_path / "a" / "tiles" / "part-00000.parquet").unlink()
    write_tar(tmp_path / "set" / "set-0.tar", dict(reversed(good.items())) | {"z.txt": "longer" * 9000})
    assert run("retry", archive=str(tmp_path / "a"), table="tiles").startswith("read 5 = written 0 ")
    assert run("ingest", **told) == "read 10 = written 0 + done before 5 + failed 5"  # z has no image
    failures = [row["failure"] for row in rows_of(tmp_path / "a", "tiles")]
    assert failures.count("failed:its tar changed since it was planned; ingest it into a new archive") == 5


def test_copies_are_marked_whatever_the_number_of_workers_and_where_a_scene_overlaps_they_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    pictures = [scene(seed) for seed in range(5)]
    brighter = np.clip(pictures[1].astype(int) + 9, 0, 255).astype(np.uint8)
    plain = np.full((48, 48, 3), 7, np.uint8)
    pictures += [pictures[0], np.rot90(pictures[2]).copy(), brighter, plain, plain, np.roll(pictures[3], 24, 0)]
    box = {"bounds": [10, 50, 10.01, 50.01]}  # all see the same ground
    members: dict[str, Any] = {f"{i:02d}.json": box for i in range(len(pictures))}
    members |= {f"{i:02d}.png": encode(image) for i, image in enumerate(pictures)} | {"99.png": b"none"}
    source = write_tar(tmp_path / "s.tar", members)
    made: dict[str, list[dict[str, Any]]] = {}
    for workers, turned in ((1, True), (3, True), (2, False)):
        home = tmp_path / f"{workers}"
        told = {"archive": str(home), "workers": workers}
        run("ingest", source=str(source), domain="d", shard_tiles=5, **told)
        line = run("duplicates", turned=turned, **told)
        assert line == "read 12 = written 11 + done before 0 + skipped 1 + failed 0"
        made[f"{workers}"] = rows_of(home, "duplicates")
    assert "2 exact copies, 2 near copies" in capsys.readouterr().err
    of = {row["tile_id"]: (row["copy_of"], row["kind"]) for row in made["1"] if row["copy_of"]}
    assert of == {
        "s/05": ("s/00", "exact"), "s/06": ("s/02", "near"), "s/07": ("s/01", "near"), "s/09": ("s/08", "exact"),
    }  # fmt: skip
    assert made["3"] == made["1"]
    assert [row["copy_of"] for row in made["2"] if row["copy_of"]] == ["s/00", "s/01", "s/08"]  # as they lie
    one, three = (tmp_path / workers / "duplicates" for workers in "13")
    for name in storage.shards(one):
        assert (one / name).read_bytes() == (three / name).read_bytes()
    assert run("verify", archive=str(tmp_path / "1")).endswith("+ failed 0")
    assert run("duplicates", archive=str(tmp_path / "1")).startswith("read 12 = written 0 + done before 12 ")
    with pytest.raises(ConfigError, match="was made with reach=4, now reach=2"):
        run("duplicates", archive=str(tmp_path / "1"), reach=2)

    # Hashes of an earlier version say nothing of pixels; they stay good for what they were made for.
    for name in storage.shards(tmp_path / "2" / "hashes"):
        place = tmp_path / "2" / "hashes" / name
        shard = storage.read_shard(place).drop_columns(["digest"])
        place.unlink()
        storage.publish_shard(place, shard)
    assert run("verify", archive=str(tmp_path / "2"), table="hashes").endswith("+ failed 0")
    run("audit-splits", archive=str(tmp_path / "2"))
    with pytest.raises(ConfigError, match="hashes is of an earlier version and knows no digests of pixels; remove it"):
        run("duplicates", archive=str(tmp_path / "2"), turned=False)


@pytest.fixture(scope="module")
def placed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 tiles along the equator, in the order of their places, one across the antimeridian, one nowhere."""
    home = tmp_path_factory.mktemp("placed")
    data = picture(3)
    members: dict[str, Any] = {}
    for i in range(600):
        members |= {f"{i:04d}.png": data, f"{i:04d}.json": {"bounds": [i * 0.1, 0, i * 0.1 + 0.1, 0.1]}}
    members |= {"over.png": data, "over.json": {"bounds": [179.9, 0, -179.9, 0.1]}, "nowhere.png": data}
    write_tar(home / "s.tar", members)
    run("ingest", source=str(home / "s.tar"), archive=str(home / "a"), domain="d")
    return home / "a" / "tiles" / "part-00000.parquet"


def test_row_groups_of_tiles_are_left_out_by_their_boxes(placed: Path):
    metadata = pq.read_metadata(placed)
    assert metadata.num_row_groups == 3
    wanted = "bbox.xmin <= 5.05 and bbox.xmax >= 4.95"
    assert duckdb.sql(f"select tile_id from '{placed}' where {wanted} order by 1").fetchall() == [
        ("s/0049",),
        ("s/0050",),
    ]
    groups = duckdb.sql(
        f"select row_group_id from parquet_metadata('{placed}') where path_in_schema = 'bbox, xmin' "
        "and stats_min_value::double <= 5.05"
    ).fetchall()
    assert groups == [(0,)]


def test_geopandas_opens_tiles_and_a_box_finds_those_within(placed: Path):
    frame = geopandas.read_parquet(placed, bbox=(4.95, 0, 5.05, 1), columns=["tile_id", "geometry"])
    assert frame["tile_id"].tolist() == ["s/0049", "s/0050"]
    geo = json.loads(pq.read_metadata(placed).metadata[b"geo"])["columns"]["geometry"]
    assert geo["covering"]["bbox"]["ymin"] == ["bbox", "ymin"]
    rows = pq.read_table(placed, columns=["geometry", "bbox", "tile_id"])
    for row in rows.to_pylist():
        assert (row["geometry"] is None) == (row["bbox"] is None) == (row["tile_id"] == "s/nowhere")


def test_a_tile_across_the_antimeridian_has_the_box_of_rfc_7946(placed: Path):
    over = duckdb.sql(f"select tile_id, bbox.xmin, bbox.xmax from '{placed}' where bbox.xmin > bbox.xmax").fetchall()
    assert over == [("s/over", 179.9, -179.9)]
    frame = geopandas.read_parquet(placed)
    shape = frame.set_index("tile_id").geometry["s/over"]
    assert (shape.geom_type, round(shape.area, 9)) == ("MultiPolygon", 0.02)

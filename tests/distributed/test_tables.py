"""Shards in, shards out: one row per tile, published once, resumed by listing, never mixed."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from urbancross import cli, storage
from urbancross.config import IngestConfig, SegmentConfig
from urbancross.errors import ConfigError, SchemaError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**settings)))


def digests(table: Path) -> dict[str, str]:
    return {name: hashlib.sha256((table / name).read_bytes()).hexdigest() for name in storage.shards(table)}


@pytest.fixture(scope="module")
def archive(captioned_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("tables") / "archive"
    line = run("ingest", source=str(captioned_set), archive=str(home), domain="here", shard_tiles=7)
    assert line == "read 30 = written 28 + done before 0 + failed 2"
    return home


def test_every_tile_has_one_row_in_every_table_in_the_order_of_the_plan(archive: Path):
    assert len(storage.shards(archive / "plan")) == 5
    for name in storage.shards(archive / "plan"):
        planned = storage.read_shard(archive / "plan" / name)["tile_id"].to_pylist()
        for table in ("tiles", "captions@given"):
            assert storage.read_shard(archive / table / name)["tile_id"].to_pylist() == planned


def test_a_bad_image_is_a_row_with_its_reason(archive: Path):
    rows = [
        row for name in storage.shards(archive / "tiles") for row in pq.read_table(archive / "tiles" / name).to_pylist()
    ]
    reasons = {row["tile_id"]: row["failure"] for row in rows if row["failure"]}
    assert set(reasons) == {"img/cut.jpg", "img/absent.jpg"}
    assert reasons["img/absent.jpg"] == "failed:no such file"
    assert reasons["img/cut.jpg"].startswith("failed:corrupt image")
    assert all(row["image"] is None for row in rows if row["failure"])


def test_a_finished_job_run_again_does_nothing(archive: Path, captioned_set: Path):
    before = digests(archive / "tiles")
    (archive / "plan" / ".part-00004.parquet-0.tmp").write_bytes(b"half")  # what a killed planner leaves
    line = run("ingest", source=str(captioned_set), archive=str(archive), domain="here", shard_tiles=7)
    assert line == "read 30 = written 0 + done before 30 + failed 0"
    assert digests(archive / "tiles") == before
    assert not list((archive / "plan").glob(".*.tmp"))


def test_a_stopped_job_goes_on_where_it_was_and_ends_with_the_same_bytes(archive: Path):
    whole = run("segment", archive=str(archive), engine="grid", workers=2, max_area=1.0)
    assert whole == "read 30 = written 28 + done before 0 + skipped 2 + failed 0"
    table = archive / "segments@grid"
    unbroken = digests(table)
    (table / "part-00001.parquet").unlink()
    (table / "part-00003.parquet").unlink()
    (table / ".part-00003.parquet-0.tmp").write_bytes(b"half")  # what a killed writer leaves
    again = run("segment", archive=str(archive), engine="grid", workers=1, max_area=1.0)
    assert again == "read 30 = written 14 + done before 16 + failed 0"
    assert digests(table) == unbroken


def test_a_table_is_never_continued_with_other_settings(archive: Path):
    with pytest.raises(ConfigError, match=r"segments@grid was made with max_segments=32, now max_segments=3"):
        run("segment", archive=str(archive), engine="grid", max_segments=3, max_area=1.0)


def test_an_archive_is_never_fed_from_a_second_source(archive: Path, other_set: Path):
    with pytest.raises(ConfigError, match="was made with domain=here, now domain=there"):
        run("ingest", source=str(other_set), archive=str(archive), domain="there")


def test_a_set_that_grew_is_picked_up_by_running_again(other_set: Path, tmp_path: Path):
    grown, home = tmp_path / "grown", tmp_path / "archive"
    grown.mkdir()
    (grown / "img").symlink_to(other_set / "img")
    lines = (other_set / "captions.jsonl").read_text().splitlines(keepends=True)
    (grown / "captions.jsonl").write_text("".join(lines[4:10]))
    run("ingest", source=str(grown), archive=str(home), domain="x", shard_tiles=4)
    first = digests(home / "tiles")
    (grown / "captions.jsonl").write_text("".join(lines[4:13]))
    line = run("ingest", source=str(grown), archive=str(home), domain="x", shard_tiles=4)
    assert line == "read 9 = written 3 + done before 6 + failed 0"
    assert first.items() <= digests(home / "tiles").items()


def test_a_set_that_was_edited_is_refused_and_keeps_what_it_had(other_set: Path, tmp_path: Path):
    edited, home = tmp_path / "edited", tmp_path / "archive"
    edited.mkdir()
    (edited / "img").symlink_to(other_set / "img")
    lines = (other_set / "captions.jsonl").read_text().splitlines(keepends=True)[4:8]
    (edited / "captions.jsonl").write_text("".join(lines))
    run("ingest", source=str(edited), archive=str(home), domain="x")
    before = digests(home / "captions@given")
    (edited / "captions.jsonl").write_text("".join(lines).replace("a lake seen from above", "a pond"))
    with pytest.raises(ConfigError, match="with another captions: the source was edited; ingest it into a new archive"):
        run("ingest", source=str(edited), archive=str(home), domain="x")
    assert digests(home / "captions@given") == before


def test_workers_that_would_take_every_cpu_are_fewer_and_that_is_said(archive: Path, capfd: pytest.CaptureFixture[str]):
    line = run("segment", archive=str(archive), engine="felzenszwalb", workers=99, max_area=1.0)
    assert line == "read 30 = written 28 + done before 0 + skipped 2 + failed 0"
    cpus = (os.cpu_count() or 1) + 2
    assert (
        f"note: {min(5, cpus - 1)} workers instead of 5: each wants 1 CPU, this machine offers {cpus} CPUs, "
        "one CPU stays free" in capfd.readouterr().err
    ) == (cpus <= 5)


def test_workers_that_ask_for_memory_find_it_and_for_what_is_not_there_do_not_wait(archive: Path, tmp_path: Path):
    home = str(shutil.copytree(archive, tmp_path / "a", ignore=shutil.ignore_patterns("segments@*")))
    for kind in ({"memory_gib_per_worker": 99_999}, {"accelerator": "H100"}):
        with pytest.raises(ConfigError, match="a worker wants 1 CPU and .*, this machine offers .*; lower"):
            run("segment", archive=home, engine="grid", max_area=1.0, workers=1, **kind)
    line = run("segment", archive=home, engine="grid", max_area=1.0, workers=1, memory_gib_per_worker=0.05)
    assert line == "read 30 = written 28 + done before 0 + skipped 2 + failed 0"


def test_what_this_machine_can_never_give_is_refused_rather_than_waited_for(archive: Path):
    with pytest.raises(ConfigError, match="a worker wants 1 CPU and 1 GPU, this machine offers"):
        run("embed", archive=str(archive), checkpoint="starter", workers=1, gpus_per_worker=1)
    assert not storage.shards(archive / "embeddings@starter")
    assert not (archive / "embeddings@starter" / ".made-by.json").exists()


def test_a_table_of_another_program_is_refused_by_name(tmp_path: Path):
    import pyarrow as pa

    storage.publish_shard(tmp_path / "tiles" / "part-00000.parquet", pa.table({"tile_id": ["a"], "picture": [b""]}))
    with pytest.raises(SchemaError, match="image: want binary, found no such column"):
        run("segment", archive=str(tmp_path), engine="grid")
    assert not (tmp_path / "segments@grid").exists()


def test_what_is_missing_is_said_with_the_verb_that_makes_it(tmp_path: Path):
    with pytest.raises(ConfigError, match="has no table tiles; make it with: urbancross ingest"):
        run("segment", archive=str(tmp_path), engine="grid")
    with pytest.raises(ConfigError, match="no such folder"):
        run("segment", archive=str(tmp_path / "nowhere"), engine="grid")


def test_the_settings_models_of_the_stages_say_their_defaults():
    assert IngestConfig(source="s", archive="a", domain="d").shard_tiles == 2048
    assert SegmentConfig(archive="a").engine == "felzenszwalb"


def test_an_error_inside_a_worker_reaches_the_user_in_its_own_words(archive: Path, tmp_path: Path):
    broken = tmp_path / "broken.osm"
    broken.write_text("<osm><node id='1' lat='0'")
    with pytest.raises(ConfigError, match=r"broken\.osm"):
        run("geotag", archive=str(archive), osm=str(broken))
    assert not storage.shards(archive / "geotags")

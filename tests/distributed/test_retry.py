"""`retry`, `verify` and `explain` on real tables."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from urbancross import cli, explain, storage
from urbancross.errors import ConfigError, SchemaError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**settings)))


def files(table: Path) -> dict[str, bytes]:
    return {name: (table / name).read_bytes() for name in storage.shards(table)}


@pytest.fixture(scope="module")
def made(captioned_set: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> tuple[Path, Path]:
    """An archive with two failed tiles and a stage on top of it, and its set, in which one of them came late."""
    home, archive = tmp_path_factory.mktemp("late") / "set", tmp_path_factory.mktemp("made") / "archive"
    shutil.copytree(captioned_set, home)
    line = run("ingest", source=str(home), archive=str(archive), domain="here", shard_tiles=7)
    assert line == "read 30 = written 28 + done before 0 + failed 2"
    run("segment", archive=str(archive), engine="grid", max_area=1.0)
    shutil.copy(home / "img" / "lake-1.jpg", home / "img" / "absent.jpg")
    return archive, home


@pytest.fixture
def mended(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of that archive, and the set."""
    shutil.copytree(made[0], tmp_path / "archive")
    return tmp_path / "archive", made[1]


@pytest.mark.slow
def test_retry_makes_failed_tiles_anew_and_only_them(mended: tuple[Path, Path]):
    archive, home = mended
    before = files(archive / "tiles")
    line = run("retry", archive=str(archive), table="tiles", reason="no such file")
    assert line == "read 30 = written 1 + done before 29 + failed 0"
    after = files(archive / "tiles")
    assert [name for name in before if before[name] != after[name]] == ["part-00004.parquet"]
    rows = storage.read_shard(archive / "tiles" / "part-00004.parquet").to_pylist()
    late = next(row for row in rows if row["tile_id"] == "img/absent.jpg")
    assert late["failure"] is None
    assert late["image"]
    line = run("retry", archive=str(archive), table="tiles")
    assert line == "read 30 = written 0 + done before 29 + failed 1"  # img/cut.jpg is as broken as before
    with_cut = home / "img" / "cut.jpg"
    broken = with_cut.read_bytes()
    shutil.copy(home / "img" / "lake-0.jpg", with_cut)
    assert run("retry", archive=str(archive), table="tiles") == "read 30 = written 1 + done before 29 + failed 0"
    with_cut.write_bytes(broken)


@pytest.mark.slow
def test_a_table_on_top_takes_the_mended_tile_in_as_if_it_had_never_failed(mended: tuple[Path, Path], tmp_path: Path):
    archive, home = mended
    assert run("retry", archive=str(archive), table="segments@grid").endswith("written 0 + done before 30 + failed 0")
    run("retry", archive=str(archive), table="tiles")
    line = run("retry", archive=str(archive), table="segments@grid")
    assert line == "read 30 = written 1 + done before 29 + failed 0"
    whole = tmp_path / "whole"
    run("ingest", source=str(home), archive=str(whole), domain="here", shard_tiles=7)
    run("segment", archive=str(whole), engine="grid", max_area=1.0)
    assert files(archive / "segments@grid") == files(whole / "segments@grid")


def test_retry_refuses_what_it_cannot_make_again(mended: tuple[Path, Path]):
    archive, _ = mended
    with pytest.raises(ConfigError, match="has no table captions@x; make it with: urbancross caption"):
        run("retry", archive=str(archive), table="captions@x")
    (archive / "segments@grid" / ".made-by.json").unlink()
    with pytest.raises(ConfigError, match="segments@grid does not say which run made it"):
        run("retry", archive=str(archive), table="segments@grid")


def test_a_shard_that_is_broken_is_named_by_retry_in_one_line(mended: tuple[Path, Path]):
    shard = mended[0] / "tiles" / "part-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(SchemaError, match=r"part-00001\.parquet is not a shard as wanted .*; remove it and run"):
        run("retry", archive=str(mended[0]), table="tiles")


@pytest.mark.parametrize("text", ["[]", '{"run": 5}', '{"run": {"kind": "SegmentConfig"}}', "{", "{}"])
def test_metadata_that_was_edited_by_hand_is_refused_in_one_line(mended: tuple[Path, Path], text: str):
    (mended[0] / "segments@grid" / ".made-by.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        run("retry", archive=str(mended[0]), table="segments@grid")
    assert "\n" not in str(caught.value)
    assert ".made-by.json" in str(caught.value) or "segments@grid" in str(caught.value)


@pytest.mark.parametrize("text", ["5", "[]", '{"part-00002.parquet": "x"}', '{"part-00002.parquet": 99}'])
def test_counts_that_were_edited_by_hand_never_end_in_a_wrong_balance(mended: tuple[Path, Path], text: str):
    archive = mended[0]
    (archive / "plan" / ".rows.json").write_text(text)
    (archive / "segments@grid" / "part-00002.parquet").unlink()
    try:
        line = run("segment", archive=str(archive), engine="grid", max_area=1.0, workers=1)
    except (ConfigError, SchemaError) as error:
        assert ".rows.json" in str(error)  # noqa: PT017
        assert "remove it" in str(error)  # noqa: PT017
    else:
        assert line == "read 30 = written 7 + done before 23 + failed 0"


def test_verify_finds_what_is_wrong_and_where(mended: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    archive, _ = mended
    line = run("verify", archive=str(archive), table="segments@grid")
    assert line == "read 30 = written 0 + done before 30 + failed 0"
    table = archive / "segments@grid"
    good = files(table)

    def spoil(name: str, change: Any) -> None:
        shard = change(storage.read_shard(table / name))
        (table / name).unlink()
        storage.publish_shard(table / name, shard)

    spoil("part-00000.parquet", lambda rows: rows.slice(1))
    spoil("part-00001.parquet", lambda rows: rows.take([1, 0, 2, 3, 4, 5, 6]))
    spoil("part-00002.parquet", lambda rows: rows.drop_columns(["segments"]))
    spoil("part-00003.parquet", lambda rows: with_other_area(rows))
    (table / "part-00004.parquet").write_bytes(good["part-00004.parquet"][:-9])
    with pytest.raises(SchemaError, match="5 things are not as they should be"):
        run("verify", archive=str(archive), table="segments@grid", sample=5)
    out = capsys.readouterr().out
    for problem in (
        "segments@grid/part-00000.parquet: 6 rows, its source has 7",
        "segments@grid/part-00001.parquet: other tiles than its source, or in another order",
        "segments@grid/part-00002.parquet: it does not fit its schema (segments: want list",
        "segments@grid/part-00003.parquet: row 0 (img/",
        "part-00004.parquet is not a shard",
    ):
        assert problem in out


def with_other_area(rows: pa.Table) -> pa.Table:
    told = rows.to_pylist()
    for row in told:
        for segment in row["segments"] or []:
            segment["area"] += 1
    return pa.Table.from_pylist(told, schema=rows.schema)


def test_explain_tells_where_a_tile_is_and_what_became_of_it(
    mended: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    archive, _ = mended
    told = explain.history(archive, "img/cut.jpg")
    assert {entry["table"]: entry["state"].split(" (")[0].split(":")[0] for entry in told} == {
        "plan": "planned", "tiles": "failed", "captions@given": "done", "segments@grid": "skipped",
    }  # fmt: skip
    assert {(entry["shard"], entry["row"]) for entry in told} == {("part-00000.parquet", 3)}
    assert told[0]["row_holds"]["split"] == "train"
    capsys.readouterr()
    cli.call("explain", cli.VERBS["explain"].kind(archive=str(archive), tile_id="img/lake-0.jpg", json=True))
    assert json.loads(capsys.readouterr().out)["tile_id"] == "img/lake-0.jpg"
    cli.call("explain", cli.VERBS["explain"].kind(archive=str(archive), tile_id="img/lake-0.jpg"))
    assert "row 0 of part-00000.parquet" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="has no tile nowhere"):
        explain.history(archive, "nowhere")

"""Tables of an earlier version: columns that came later count as null, and every verb goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from urbancross import cli, explain, schemas, storage
from urbancross.errors import SchemaError
from urbancross.tables import read_aligned

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def run(verb: str, **settings: Any) -> str:
    return str(cli.call(verb, cli.VERBS[verb].kind(**settings)))


def without(table: Path, columns: set[str]) -> None:
    """Every shard of a table as it was before it had these columns."""
    for name in storage.shards(table):
        shard = storage.read_shard(table / name)
        (table / name).unlink()
        storage.publish_shard(table / name, shard.drop_columns(sorted(columns)))


@pytest.fixture
def old(captioned_set: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An archive of an earlier version, two of its shards still to be made, and its set."""
    home, archive = tmp_path / "set", tmp_path / "archive"
    shutil.copytree(captioned_set, home)
    run("ingest", source=str(home), archive=str(archive), domain="here", shard_tiles=7)
    for table, columns in schemas.ADDED.items():
        without(archive / table, columns)
    for name in storage.shards(archive / "tiles")[3:]:
        (archive / "tiles" / name).unlink()
    return archive, home


@pytest.mark.slow
def test_an_archive_of_an_earlier_version_goes_through_every_verb_that_reads_its_tiles(old: tuple[Path, Path]):
    archive, home = old
    with open(home / "captions.jsonl", "a") as lines:  # the set has grown meanwhile
        lines.write(json.dumps({"image": "img/late.jpg", "captions": ["late"], "split": "train"}) + "\n")
    shutil.copy(home / "img" / "lake-1.jpg", home / "img" / "late.jpg")
    line = run("ingest", source=str(home), archive=str(archive), domain="here", shard_tiles=7)
    assert line == "read 31 = written 9 + done before 21 + failed 1"
    has = {
        table: ["transform" in storage.read_schema(archive / table / name).names for name in storage.shards(place)]
        for table in schemas.ADDED
        if storage.shards(place := archive / table)
    }
    assert has == {"plan": [False] * 5 + [True], "tiles": [False] * 3 + [True] * 3}  # old and new side by side

    run("segment", archive=str(archive), engine="grid", max_area=1.0)
    run("embed", archive=str(archive), checkpoint="starter")
    assert run("verify", archive=str(archive)).endswith("+ failed 0")
    shutil.copy(home / "img" / "lake-0.jpg", home / "img" / "cut.jpg")  # of a shard that is old
    assert run("retry", archive=str(archive), table="tiles").startswith("read 31 = written 1 + done before 29 + ")
    assert explain.history(archive, "img/late.jpg")[0]["table"] == "plan"
    cli.call("search", cli.VERBS["search"].kind(archive=str(archive), text="a lake", top=1))


def test_columns_that_came_later_are_null_and_others_are_missed(old: tuple[Path, Path]):
    archive, _ = old
    name = storage.shards(archive / "tiles")[1]
    some = read_aligned(archive, {"plan": ["transform", "split"], "tiles": None}, name)
    assert some["plan"].column_names == ["tile_id", "failure", "transform", "split"]
    assert some["plan"]["transform"].null_count == some["tiles"]["transform"].null_count == 7
    assert some["tiles"].schema.field("transform") == schemas.TILES.field("transform")
    assert some["plan"]["split"].null_count == 0
    without(archive / "tiles", {"split"})
    with pytest.raises(SchemaError, match=r"No match for FieldRef.Name\(split\)"):
        read_aligned(archive, {"tiles": ["split"]}, name)

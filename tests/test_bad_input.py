"""Bad input, as a user meets it: exit code 2, one line on stderr, nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from urbancross import cli, tables
from urbancross.errors import ConfigError


def urbancross(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "urbancross.cli", *arguments], capture_output=True, text=True, timeout=120
    )


def write_captions(folder: Path, *lines: dict | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "captions.jsonl").write_text("\n".join(text))
    return folder


@pytest.mark.parametrize(
    ("make", "arguments", "wanted"),
    [
        (None, ["ingest", "--source", "{tmp}/nowhere"], "no such file or folder; give a folder with captions.jsonl"),
        ([], ["ingest", "--source", "{tmp}/set"], "has no entries; give a captioned set"),
        (
            [{"image": "a.jpg", "captions": ["x"]}, {"image": "b.jpg", "captions": ["y"]}],
            ["ingest", "--source", "{tmp}/set"],
            "none of its 2 images is there",
        ),
        (["{not json"], ["ingest", "--source", "{tmp}/set"], "captions.jsonl line 1: not JSON"),
        (None, ["embed", "--checkpoint", "startre"], "neither a checkpoint folder nor a model; try starter"),
        (None, ["pretrain", "--model", "ViT-B-32/opneai", "--out", "{tmp}/c"], "try ViT-B-32/openai"),
    ],
    ids=["missing folder", "empty set", "absent images", "broken line", "unknown model", "unknown tag"],
)
def test_bad_input_gets_one_line_and_leaves_nothing(
    tmp_path: Path, make: list | None, arguments: list[str], wanted: str
):
    if make is not None:
        write_captions(tmp_path / "set", *make)
    archive = tmp_path / "archive"
    told = [argument.format(tmp=tmp_path) for argument in arguments]
    told += ["--archive", str(archive)] + (["--domain", "d"] if told[0] == "ingest" else [])
    if told[0] != "ingest":
        archive.mkdir()
    before = sorted(tmp_path.rglob("*"))
    ran = urbancross(*told)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert len(ran.stderr.strip().splitlines()) == 1
    assert ran.stderr.startswith(f"urbancross {told[0]}: ")
    assert wanted in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_of_another_schema_is_refused_with_the_columns_that_differ(tmp_path: Path):
    table = tmp_path / "archive" / "tiles"
    table.mkdir(parents=True)
    pq.write_table(pa.table({"tile_id": ["a"], "picture": [b""]}), table / "part-00000.parquet")
    ran = urbancross("embed", "--archive", str(table.parent), "--checkpoint", "starter")
    assert ran.returncode == 2, ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "tiles does not fit its schema (failure: want string, found no such column; image: want binary" in ran.stderr
    assert [path.name for path in table.parent.iterdir()] == ["tiles"]


@pytest.mark.parametrize("kind", ["captions", "segments", "ranks", "embeddings", "features"])
def test_a_table_that_is_not_there_comes_with_the_verb_that_makes_it(tmp_path, kind):
    with pytest.raises(ConfigError, match=f"has no {kind} table; make one first with urbancross ") as told:
        tables.table_of(tmp_path, kind, None, kind)
    assert str(told.value).rpartition(" ")[2] in cli.VERBS

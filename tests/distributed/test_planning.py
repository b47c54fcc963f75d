"""`plan` tries what a run would do, leaves no table behind, and is held to what it said."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from urbancross import cli, storage
from urbancross.config import CaptionConfig, SegmentConfig
from urbancross.distributed import planning, probing
from urbancross.distributed.probing import Gate, chosen, shard_and_rows

ROWS = {"part-00000.parquet": 10, "part-00001.parquet": 7}


def test_batches_are_cut_as_the_run_cuts_them_and_chosen_by_the_seed():
    names = chosen(ROWS, 4, 99, workers=1, seed=0)
    found = {shard_and_rows(name) for name in names}
    assert found == {
        ("part-00000.parquet", 0, 4),
        ("part-00000.parquet", 4, 8),
        ("part-00000.parquet", 8, 10),
        ("part-00001.parquet", 0, 4),
        ("part-00001.parquet", 4, 7),
    }
    assert len(set(names)) == len(names) == 26  # 25 of 4 tiles, and a first one; few tiles come again and again
    assert chosen(ROWS, 4, 8, 1, seed=0) == chosen(ROWS, 4, 8, 1, seed=0) != chosen(ROWS, 4, 8, 1, seed=1)
    assert len(chosen(ROWS, 512, 8, workers=3, seed=0)) == 12  # a first batch and three more for every worker


def test_of_very_many_shards_few_are_looked_at(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probing, "MOST_LISTED", 10)
    names = chosen({f"part-{number}": 6 for number in range(100)}, 4, 20, 1, seed=0)
    assert {shard_and_rows(name)[1:] for name in names} == {(0, 4), (4, 6)}


def test_the_gate_opens_when_all_are_there_or_one_does_not_come(monkeypatch: pytest.MonkeyPatch):
    gate = Gate(2)
    gate.come("a")
    gate.come("a")
    assert not gate.is_open()
    gate.come("b")
    assert gate.is_open()
    monkeypatch.setattr(probing, "PATIENCE_S", 0.0)
    alone = Gate(2)
    time.sleep(0.001)
    assert alone.is_open()


def test_each_engine_has_its_dearest_settings_tried_at_another_value():
    sam: dict[str, Any] = {"archive": "a", "engine": "sam", "checkpoint": "w"}
    assert planning.knobs_of(SegmentConfig(**sam)) == [("points_per_side", 32, 16), ("mode", "exact", "fast")]
    assert planning.knobs_of(SegmentConfig(**sam, mode="fast")) == [("points_per_side", 16, 8)]
    assert planning.knobs_of(SegmentConfig(archive="a")) == []
    assert planning.knobs_of(CaptionConfig(archive="a")) == [("captions_per_tile", 5, 2)]
    assert planning.knobs_of(CaptionConfig(archive="a", captions_per_tile=1)) == []


@pytest.fixture(scope="module")
def archive(captioned_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("plan") / "archive"
    call("ingest", source=str(captioned_set), archive=str(home), domain="here", shard_tiles=7)
    return home


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_nothing_is_published_and_the_run_is_held_to_what_was_said(archive: Path, capsys: pytest.CaptureFixture[str]):
    before = contents(archive)
    balance = call("plan", archive=str(archive), stage=["segment --engine grid --max-area 1 --workers 2"])
    assert balance.balances
    assert contents(archive) == before
    assert not [name for name in storage.names(archive / "runs") if name.startswith(".")]
    (told,) = newest(archive, "plan", "forecast")["forecasts"]
    assert (told["table"], told["tiles"], told["shards"], told["workers"]) == ("segments@grid", 30, 5, 2)
    assert 0 < told["seconds"]["p50"] <= told["seconds"]["p90"]
    assert told["size_bytes"]["p50"] > 0
    assert "segments@grid costs most: 100 % of the time" in capsys.readouterr().out
    call("segment", archive=str(archive), engine="grid", max_area=1.0, workers=2)
    score = newest(archive, "segment", "forecast_score")
    assert score["forecast_s"] == pytest.approx(told["seconds"]["p50"])
    assert score["error"] == pytest.approx(score["took_s"] / score["forecast_s"] - 1)
    assert f"segments@grid: forecast {told['seconds']['p50']:.3g} s, took " in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_run_with_other_settings_is_not_held_to_it(archive: Path):
    call("plan", archive=str(archive), stage=["segment --engine grid --max-area 1 --name other"], knobs=False)
    call("segment", archive=str(archive), engine="grid", max_area=0.9, name="other")
    assert "forecast_score.json" not in storage.names(archive / "runs" / last(archive, "segment"))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_an_unfinished_table_is_forecast_with_what_it_was_begun_with_and_a_missing_one_by_default(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked = {"embeddings": ("tiles", "segment --engine grid --name unasked"), "captions": ("tiles", "caption")}
    monkeypatch.setattr(planning, "UNASKED", asked)  # captions came with the set
    call("segment", archive=str(archive), engine="grid", max_area=1.0, workers=1, max_segments=3, name="begun")
    (archive / "segments@begun" / "part-00002.parquet").unlink()
    capsys.readouterr()
    call("plan", archive=str(archive), knobs=False, json=True, tiles=10**8, workers=256)
    told = json.loads(capsys.readouterr().out)
    begun = next(found for found in told["forecasts"] if found["table"] == "segments@begun")
    assert begun["assumed"]
    assert (begun["tiles"], begun["workers"]) == (10**8, 256)
    assert begun["shards"] == -(-(10**8) // 7)
    assert [found["table"] for found in told["forecasts"]] == ["segments@begun", "segments@unasked"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--stage", "search boats"], "search makes no table of one archive; one of ingest, geotag"),
        (["--stage", "segment --engine nonsense"], 'plan: --stage "segment": --engine: Input should be'),
        (["--stage", "caption --engine template"], "has no table geotags; make it with: urbancross geotag"),
        (["--stage", "embed 'x"], "No closing quotation"),
        (["--tiles", "0"], "--tiles: Input should be greater than 0"),
    ],
)
def test_what_cannot_be_forecast_ends_in_one_line(
    archive: Path, flags: list[str], line: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        cli.main("plan", ["--archive", str(archive), *flags])
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert line in told[0]


def call(verb: str, **told: Any) -> Any:
    return cli.call(verb, cli.VERBS[verb].kind(**told))


def contents(archive: Path) -> dict[str, str]:
    """Every file but those of runs."""
    files = (path for path in archive.rglob("*") if path.is_file() and "runs" not in path.parts)
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def last(archive: Path, verb: str) -> str:
    return [name for name in storage.names(archive / "runs") if name.endswith(f"-{verb}")][-1]


def newest(archive: Path, verb: str, file: str) -> Any:
    return storage.read_json(archive / "runs" / last(archive, verb) / f"{file}.json", "run")

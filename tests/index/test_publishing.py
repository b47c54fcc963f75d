"""What `index` publishes, and what it does not: runs that are killed, two at once, an index that finds too little."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import searchable
from searchable import add_shard, files, found_by, ids, index, is_whole, manifest, name

from urbancross import cli, lease
from urbancross.archive import Archive
from urbancross.errors import LeaseError, NotReadyError
from urbancross.index import codes, vectors
from urbancross.index.folder import Index

TABLE, FOLDER = "embeddings@m", searchable.INDEX
pytestmark = pytest.mark.usefixtures("few")


def test_a_run_that_is_killed_before_the_manifest_leaves_the_old_index_and_the_next_one_finishes(
    archive: Path, model: str, capsys: pytest.CaptureFixture[str]
):
    index(archive, codes="pq")
    old, before = manifest(archive), files(archive)
    add_shard(archive, model, 2)
    code = "from urbancross.index import vectors; vectors.FEW = 12; from urbancross.cli import main; main('index')"
    command = [sys.executable, "-c", code, "--archive", str(archive), "--codes", "pq", "--queries", "40"]
    killed = subprocess.run(
        command, env=os.environ | {"URBANCROSS_FAILPOINTS": "index.before-manifest=kill"}, check=False
    )
    assert killed.returncode == -9
    assert manifest(archive) == old
    assert set(files(archive)) > set(before)  # what it had written counts for nothing
    assert set(found_by(archive)) == ids(0, 1, 2)
    capsys.readouterr()
    cli.main("index", ["--archive", str(archive), "--codes", "pq", "--queries", "40"])
    assert capsys.readouterr().out.splitlines()[-1] == "read 180 = written 60 + done before 119 + skipped 1 + failed 0"
    assert [list(part["shards"]) for part in manifest(archive)["parts"]] == [[name(0), name(1)], [name(2)]]
    assert is_whole(archive)


def test_left_overs_of_killed_runs_go_with_the_next_run_also_where_it_has_nothing_to_do(archive: Path):
    index(archive, codes="pq")
    part = manifest(archive)["parts"][0]["name"]
    for left in ("0000-00000.tiles.npy", f"{part}.tiles.0000.codes", f".{part}.tiles.npy-{'a' * 32}.tmp"):
        (archive / FOLDER / left).write_bytes(b"x")
    (archive / FOLDER / f".{'b' * 32}.tmp").write_bytes(b"")  # somebody asks for the lease just now
    assert index(archive, codes="pq").written == 0
    assert is_whole(archive)
    assert [left for left in os.listdir(archive / FOLDER) if left.endswith(".tmp")] == [f".{'b' * 32}.tmp"]


def test_codes_that_a_killed_run_made_by_another_training_are_not_taken_for_those_in_force(
    archive: Path, model: str, monkeypatch: pytest.MonkeyPatch
):
    """Codes of parts that were there before: their names must not be those of a run that was killed."""
    monkeypatch.setattr(vectors, "FEW", 150)
    index(archive, codes="pq")
    add_shard(archive, model, 2)
    monkeypatch.setattr("urbancross.index.building.hit", lambda name: sys.exit("killed"))
    with pytest.raises(SystemExit):
        index(archive, codes="pq", seed=5)
    monkeypatch.undo()
    monkeypatch.setattr(vectors, "FEW", 150)
    index(archive, codes="pq", seed=0)
    built = Index.at(archive, TABLE)
    assert built is not None
    fresh = codes.Codes.train(built.tiles.rows(np.arange(179)), "pq", codes.lists_for(179), 0)
    assert built.tiles.codes is not None
    np.testing.assert_allclose(built.tiles.codes.projection, fresh.projection, atol=1e-4)
    assert built.tiles.codes.to_bytes() == fresh.of(built.tiles.rows(np.arange(179))).to_bytes()


def test_two_runs_at_once_are_told_apart_by_the_lease(archive: Path):
    with (
        lease.held(archive / FOLDER),
        pytest.raises(LeaseError, match="index@m is being written by process"),
    ):
        index(archive)
    assert index(archive).written == 119


def shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are those of other vectors."""
    right = codes.Codes.of

    def wrong(self: codes.Codes, vectors: np.ndarray) -> codes.Codes:
        return right(self, np.random.default_rng(3).permutation(vectors))

    monkeypatch.setattr(codes.Codes, "of", wrong)
    monkeypatch.setattr("urbancross.index.gate.RERANKS", (12,))  # or so small an index would be compared as a whole


def test_an_index_that_finds_too_little_is_not_published_and_the_one_before_answers(
    archive: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    index(archive, codes="pq")
    old, before, answers = manifest(archive), files(archive), found_by(archive, top=10)
    shuffled(monkeypatch)
    with pytest.raises(NotReadyError, match=r"finds 0\.\d+ of what exact search finds, 0.95 wanted: it is not publish"):
        index(archive, codes="pq", rebuild=True)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main("index", ["--archive", str(archive), "--codes", "pq", "--rebuild", "--queries", "40"])
    assert ended.value.code == 1
    assert "try --codes int8, or --codes exact" in capsys.readouterr().err
    assert (manifest(archive), files(archive), found_by(archive, top=10)) == (old, before, answers)


def test_a_first_index_that_finds_too_little_leaves_nothing(archive: Path, monkeypatch: pytest.MonkeyPatch):
    shuffled(monkeypatch)
    with pytest.raises(NotReadyError):
        index(archive, codes="pq")
    assert files(archive) == {}
    assert Archive(str(archive)).index is None

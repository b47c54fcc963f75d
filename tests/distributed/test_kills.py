"""Kill the run, run the same command again, compare with the run that nobody killed. Failpoints, not sleeps."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from urbancross import lease, storage
from urbancross.errors import BudgetError, LeaseError, SchemaError
from urbancross.runs import Balance

spec = importlib.util.spec_from_file_location("kills", Path(__file__).with_name("kills.py"))
kills = importlib.util.module_from_spec(spec)
sys.modules["kills"] = kills
spec.loader.exec_module(kills)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(300)]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    kills.stand_in.make_archive(tmp_path / "archive", kills.SHARDS, kills.TILES)
    return tmp_path / "archive"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> dict[str, str]:
    """The table of the run that nobody killed."""
    home = tmp_path_factory.mktemp("whole") / "archive"
    kills.stand_in.make_archive(home, kills.SHARDS, kills.TILES)
    assert str(kills.resume(home)) == "read 60 = written 48 + done before 0 + skipped 6 + failed 6"
    return kills.digests(home)


# Where the whole run is killed, and how many shards there may be then: all but what was at work, or just the one.
RUN_KILLED = {
    "while the model is loaded": "worker.load=kill-run",
    "before a write": "shard.before:2=kill-run",
    "in the middle of a shard's write": "shard.halfway:2=kill-run",
    "after the file is safe, before it has its name": "shard.written:2=kill-run",
    "after it has its name": "shard.named:2=kill-run",
    "after a shard is published, before that is said": "worker.published:2=kill-run",
    "before the lease is let go": "lease.before-release=kill-run",
}
WORKER_KILLED = {
    "in the load of its model": "worker.load=kill",
    "in the middle of a batch": "worker.batch:2=kill",
    "by a segmentation fault": "worker.batch:2=segfault",
    "in the middle of a write": "shard.halfway=kill",
    "after the write, before its name": "shard.written=kill",
    "after the shard is published, before its result is returned": "worker.published=kill",
}
CORE = {
    "in the middle of a shard's write",
    "in the middle of a batch",
    "after the shard is published, before its result is returned",
}


def cases(table: dict[str, str]) -> list:
    return [
        pytest.param(spec, id=name, marks=[] if name in CORE else [pytest.mark.slow]) for name, spec in table.items()
    ]


@pytest.mark.parametrize("failpoint", cases(RUN_KILLED))
def test_a_run_that_is_killed_is_finished_by_the_same_command(archive: Path, whole: dict, failpoint: str):
    began = time.time()
    code, _, err = kills.ended(kills.start(archive, failpoints=failpoint))
    assert code == -signal.SIGKILL, err
    # Ray ends the other worker when it misses its driver; until then that one may still publish a shard.
    kills.until(lambda: not kills.workers_since(began), "the killed run's last worker to end")
    assert kills.readable_rows(archive) == len(kills.digests(archive)) * kills.TILES
    assert kills.digests(archive).items() <= whole.items()
    before = len(kills.digests(archive))
    balance = kills.resume(archive)
    kills.check(archive, whole, balance)
    assert balance.done_before == before * kills.TILES


@pytest.mark.parametrize("failpoint", cases(WORKER_KILLED))
def test_a_worker_that_is_killed_costs_nothing(archive: Path, whole: dict, failpoint: str):
    code, out, err = kills.ended(kills.start(archive, failpoints=failpoint))
    assert code == 0, err
    assert out.splitlines()[-1] == "read 60 = written 48 + done before 0 + skipped 6 + failed 6"
    assert "died" in err
    assert "infinite retries" not in err
    assert kills.digests(archive) == whole


def test_of_two_drivers_on_one_table_one_works_and_the_other_says_who(archive: Path, whole: dict):
    first = kills.start(archive, "--pause", "0.1")
    kills.until(lambda: (archive / kills.TABLE / lease.LEASE).exists(), "the first one's lease")
    with pytest.raises(LeaseError, match=rf"is being written by process {first.pid} on .*; wait for it"):
        kills.resume(archive)
    code, out, err = kills.ended(first)
    assert code == 0, err
    assert "written 48" in out
    kills.check(archive, whole, kills.resume(archive))


def _is_stopped(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_STOPPED


def when_silent(archive: Path, patience: float) -> Balance:
    """Run the same command again and again until the silent holder of the lease is taken for dead."""
    deadline = time.monotonic() + kills.DEADLINE_S
    while True:
        try:
            return kills.resume(archive, patience=patience)
        except LeaseError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.mark.slow
def test_a_zombie_that_wakes_up_after_it_was_replaced_changes_nothing(archive: Path, whole: dict):
    """One writer is stopped with its file safe but nameless, then its whole run; a second run does all; both wake."""
    began = time.time()
    zombie = kills.start(archive, "--patience", "3", failpoints="shard.written:2=stop")
    kills.until(lambda: (archive.parent / "once" / "shard.written.fired").exists(), "the writer to stop")
    stopped = [psutil.Process(zombie.pid)]
    stopped[0].suspend()
    kills.until(lambda: any(_is_stopped(worker) for worker in kills.workers_since(began)), "the stopped writer")
    stopped += filter(_is_stopped, kills.workers_since(began))
    balance = when_silent(archive, patience=3)
    kills.check(archive, whole, balance)
    times = {name: (archive / kills.TABLE / name).stat().st_mtime_ns for name in whole}
    for process in reversed(stopped):
        process.resume()
    code, _, err = kills.ended(zombie)
    assert code == 1, err
    assert "was taken over by another run while this one was silent" in err
    assert {name: (archive / kills.TABLE / name).stat().st_mtime_ns for name in whole} == times
    kills.check(archive, whole, balance)


def test_a_run_that_is_asked_to_stop_lets_go_and_says_how_to_go_on(archive: Path, whole: dict):
    run = kills.start(archive, "--pause", "0.2")
    kills.until(lambda: storage.shards(archive / kills.TABLE), "the first shard")
    run.send_signal(signal.SIGTERM)
    code, _, err = kills.ended(run)
    assert code == 1, err
    assert err.splitlines()[-1].endswith("stopped; run the same command again to go on")
    assert "Traceback" not in err
    assert "raylet" not in err
    assert json.loads((archive / kills.TABLE / lease.LEASE).read_text()) == {"released": True}
    assert 0 < len(kills.digests(archive)) < kills.SHARDS
    kills.check(archive, whole, kills.resume(archive))


@pytest.mark.slow
def test_a_tile_that_kills_or_hangs_its_worker_is_left_out_and_the_rest_goes_through(archive: Path, whole: dict):
    evil = {
        "t-00001-003": "segfault",
        "t-00003-000": "kill",
        "t-00004-009": "hang with the lock",
        "t-00005-001": "raise",
    }
    code, out, err = kills.ended(kills.start(archive, "--evil", json.dumps(evil), "--stall-minutes", "0.05"))
    assert code == 0, err
    assert out.splitlines()[-1] == "read 60 = written 44 + done before 0 + skipped 6 + failed 10"
    failures = {}
    for name in storage.shards(archive / kills.TABLE):
        for row in storage.read_shard(archive / kills.TABLE / name).to_pylist():
            if row["failure"] and "bad image" not in row["failure"] and "no input" not in row["failure"]:
                failures[row["tile_id"]] = row["failure"]
    assert failures == {
        "t-00001-003": "failed:its worker died each time it was tried",
        "t-00003-000": "failed:its worker died each time it was tried",
        "t-00004-009": "failed:no progress within --stall-minutes each time it was tried",
        "t-00005-001": "failed:ZeroDivisionError: odd tile",
    }
    untouched = {name for name in whole if name not in {f"part-{tile[2:7]}.parquet" for tile in evil}}
    assert {name: kills.digests(archive)[name] for name in untouched} == {name: whole[name] for name in untouched}
    assert "part-00004.parquet: process" in err
    assert "made no step within --stall-minutes and was ended at rows 9 to 10" in err
    (stacks, *_) = sorted(archive.glob("runs/*-stall/stacks.txt"))
    assert "in payload" in stacks.read_text()  # the very line of the model that hangs


@pytest.mark.slow
def test_workers_that_all_die_end_the_stage_instead_of_dying_for_ever(archive: Path):
    evil = {f"t-{shard:05d}-{tile:03d}": "kill" for shard in range(kills.SHARDS) for tile in range(kills.TILES)}
    code, _, err = kills.ended(kills.start(archive, "--evil", json.dumps(evil)))
    assert code == 1, err
    assert "workers died 10 times without getting through one batch" in err.splitlines()[-1]
    assert not storage.shards(archive / kills.TABLE)


@pytest.mark.slow
def test_a_table_grows_with_its_source_and_old_shards_stay(archive: Path, whole: dict):
    kills.resume(archive)
    kills.stand_in.make_archive(archive, 1, kills.TILES, first=kills.SHARDS)
    assert str(kills.resume(archive)) == "read 70 = written 8 + done before 60 + skipped 1 + failed 1"
    assert whole.items() <= kills.digests(archive).items()


def test_a_stage_stops_when_failures_pass_the_budget_and_goes_on_when_told(archive: Path, whole: dict):
    with pytest.raises(BudgetError, match=r"more than --max-failed 5% allows \(\d × bad image\); mend"):
        kills.resume(archive, max_failed="5%", pause=0.1, workers=1)
    assert len(kills.digests(archive)) < kills.SHARDS
    kills.check(archive, whole, kills.resume(archive, max_failed="50%"))


def test_a_failed_start_takes_its_claim_back_and_a_finished_one_keeps_it(archive: Path):
    maker = archive / kills.TABLE / ".made-by.json"
    with pytest.raises(SchemaError):
        kills.resume(archive, evil=json.dumps({f"t-{shard:05d}-000": "lose" for shard in range(kills.SHARDS)}))
    assert not maker.exists()
    kills.resume(archive)
    assert json.loads(maker.read_text())["settings"] == {"hash": "sha256"}


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_line_and_loses_nothing(archive: Path, whole: dict):
    code, _, err = kills.ended(kills.start(archive, failpoints="shard.halfway:2=full"))
    assert code == 1, err
    assert "No space left on device; free some space" in err.splitlines()[-1]
    kills.check(archive, whole, kills.resume(archive))


def test_the_program_of_the_stand_in_says_its_flags():
    told = subprocess.run([sys.executable, kills.PROGRAM, "--help"], capture_output=True, text=True, env=os.environ)
    assert "--stall-minutes" in told.stdout

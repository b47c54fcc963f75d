"""A stage on S3: killed and run again, run twice at once, with credentials that expire and a service that is busy."""

import hashlib
import itertools
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from urbancross import cli, storage

pytestmark = pytest.mark.ray

STAND_IN = Path(__file__).with_name("stand_in.py")
TABLE = "payloads@stand-in"
SECRETS = ("AKIAOFTHETEST", "never-to-be-told", "token-of-the-test")


@pytest.fixture
def archive(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Four shards of ten tiles; in each one tile has failed before and one fails here."""
    monkeypatch.setattr(cli, "VERBS", dict(cli.VERBS))  # the program adds a verb of its own
    runpy.run_path(str(STAND_IN))["make_archive"](bucket / "archive")
    return bucket / "archive"


def start(archive: Any, *flags: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, STAND_IN, "--archive", str(archive), "--workers", "1", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **environment}, **pipes)


def finish(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = program.communicate(timeout=300)
    assert not any(secret in out + err for secret in SECRETS)
    return program.returncode, out, err


def run(archive: Any, *flags: str, **environment: str) -> tuple[int, str, str]:
    return finish(start(archive, *flags, **environment))


def check_whole(archive: Any) -> None:
    """Every shard holds, byte for byte, what an unbroken run writes: here made from the tiles in one loop."""
    assert storage.shards(archive / TABLE) == [f"part-{number:05d}.parquet" for number in range(4)]
    for name in storage.shards(archive / TABLE):
        schema = storage.read_schema(archive / TABLE / name)
        rows = []
        for tile in storage.read_shard(archive / "tiles" / name).to_pylist():
            failure = f"skipped:no input ({tile['failure']})" if tile["failure"] else None
            if failure is None and tile["image"].startswith(b"bad"):
                failure = "failed:bad image"
            payload = None if failure else hashlib.sha256(tile["image"]).hexdigest()
            rows.append({"tile_id": tile["tile_id"], "payload": payload, "failure": failure})
        wanted = storage.encode_shard(pa.Table.from_pylist(rows, schema=schema))
        assert storage.read(archive / TABLE / name)[0] == wanted


@pytest.mark.slow
def test_a_stage_whose_driver_and_worker_are_killed_goes_on_and_ends_with_the_same_bytes(archive, tmp_path):
    told = {"URBANCROSS_FAILPOINTS": "shard.named=kill-run", "URBANCROSS_FAILPOINTS_ONCE": str(tmp_path)}
    assert run(archive, "--workers", "1", **told)[0] == -9  # two workers might both be through with one by then
    assert len(storage.shards(archive / TABLE)) == 1
    code, out, err = run(archive, **told)
    assert (code, out) == (0, "read 40 = written 24 + done before 10 + skipped 3 + failed 3\n"), err
    check_whole(archive)


@pytest.mark.slow
def test_of_two_runs_on_one_table_one_works_and_the_other_is_told_who_does(archive):
    both = [start(archive, "--pause", "0.4") for _ in range(2)]
    (worked, refused) = sorted(map(finish, both))
    assert worked[:2] == (0, "read 40 = written 32 + done before 0 + skipped 4 + failed 4\n"), worked[2]
    assert refused[:2] == (1, ""), refused[2]
    (line,) = refused[2].splitlines()
    assert f"{archive / TABLE} is being written by process" in line
    check_whole(archive)


@pytest.mark.slow
def test_credentials_that_expire_midway_stop_the_run_in_one_line_and_new_ones_finish_it(archive, s3_proxy):
    def expire_after_the_first_shard(_: str) -> str | None:
        published = [request for request in s3_proxy.seen[:-1] if request.startswith("PUT") and "payloads" in request]
        return "expired" if any("/part-" in request for request in published) else None

    s3_proxy.rules.append(expire_after_the_first_shard)
    code, out, err = run(archive)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert "the credentials in the environment were refused" in err.splitlines()[-1]
    s3_proxy.rules.clear()
    assert len(storage.shards(archive / TABLE)) == 1
    code, out, err = run(archive)
    assert (code, out) == (0, "read 40 = written 24 + done before 10 + skipped 3 + failed 3\n"), err
    check_whole(archive)


@pytest.mark.slow
def test_a_service_that_is_busy_hangs_up_and_loses_answers_is_worked_with_all_the_same(archive, s3_proxy):
    faults = itertools.cycle([None, None, "slow down", None, None, "reset", None, None, None, "lost answer"])
    s3_proxy.rules.append(lambda _: next(faults))
    code, out, err = run(archive)
    assert (code, out) == (0, "read 40 = written 32 + done before 0 + skipped 4 + failed 4\n"), err
    s3_proxy.rules.clear()
    assert len(s3_proxy.seen) > 40
    check_whole(archive)

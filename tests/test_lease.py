"""One writer at a time, on a local disk; `test_s3.py` asks the same of S3."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from urbancross import lease
from urbancross.errors import LeaseError

HOLD = "from urbancross import lease; from pathlib import Path; import sys, time\n"
HOLD += "with lease.held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lease of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path: Path, holder: subprocess.Popen):
    with pytest.raises(LeaseError, match=rf"being written by process {holder.pid} on .*; wait for it or stop it"):
        lease.Lease(tmp_path)


def test_the_lease_of_a_process_that_was_killed_is_taken_over_at_once(tmp_path: Path, holder: subprocess.Popen):
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with lease.held(tmp_path):
        assert json.loads((tmp_path / lease.LEASE).read_text())["process"] == os.getpid()
    assert time.monotonic() - began < lease.SILENT_S / 4


def test_a_stopped_process_is_not_a_dead_one_until_it_was_silent_for_long(tmp_path: Path, holder: subprocess.Popen):
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LeaseError):
        lease.Lease(tmp_path)
    os.utime(tmp_path / lease.LEASE, (0, time.time() - lease.SILENT_S - 5))
    with lease.held(tmp_path):
        pass


def test_a_holder_on_another_machine_with_a_number_that_is_free_here_is_no_dead_process(tmp_path: Path):
    told = {**lease._this_process(), "host": "elsewhere", "process": 1 << 22}
    (tmp_path / lease.LEASE).write_text(json.dumps(told))
    with pytest.raises(LeaseError, match="on elsewhere"):
        lease.Lease(tmp_path)


def test_a_number_that_another_process_has_by_now_does_not_keep_the_lease_alive(tmp_path: Path):
    told = {**lease._this_process(), "started": "1"}
    (tmp_path / lease.LEASE).write_text(json.dumps(told))
    with lease.held(tmp_path):
        pass


def test_what_was_let_go_is_free_and_garbage_is_waited_for_and_then_replaced(tmp_path: Path):
    with lease.held(tmp_path):
        pass
    assert json.loads((tmp_path / lease.LEASE).read_text()) == {"released": True}
    with lease.held(tmp_path):
        pass
    (tmp_path / lease.LEASE).write_text("no JSON")
    with pytest.raises(LeaseError):
        lease.Lease(tmp_path)


def test_the_holder_renews_and_hears_of_it_when_another_has_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    interrupted = []
    monkeypatch.setattr(lease.signal, "pthread_kill", lambda *told: interrupted.append(told))
    held = lease.Lease(tmp_path)
    deadline = time.monotonic() + 20
    while json.loads((tmp_path / lease.LEASE).read_text())["renewed"] < 2:
        assert time.monotonic() < deadline
    held.check()
    lease.storage.replace(tmp_path / lease.LEASE, b'{"process": 1}')
    assert held.lost.wait(20)
    with pytest.raises(LeaseError, match="was taken over by another run"):
        held.check()
    held.let_go()
    assert (tmp_path / lease.LEASE).read_bytes() == b'{"process": 1}'
    assert interrupted

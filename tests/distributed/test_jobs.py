"""Verbs over `ray job submit`: same flags, the balance in the log, the failure as an exit code."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head node of its own on the loopback, behind a token; the environment that reaches it."""
    dashboard = free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    flags = f"--head --block --node-ip-address=127.0.0.1 --port={free_port()} --num-cpus=4 --disable-usage-stats"
    flags += f" --dashboard-host=127.0.0.1 --dashboard-port={dashboard} --object-store-memory=200000000"
    # The port of the agent that starts jobs is fixed; beside another Ray a head node without an agent takes no job.
    flags += f" --dashboard-agent-listen-port={free_port()}"
    log = tmp_path_factory.mktemp("head") / "log"
    with open(log, "w") as out:
        command = [BIN / "ray", "start", *flags.split()]
        head = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while submit(environment, "-c", "pass").returncode:
            assert time.monotonic() < deadline, "the head node took no job"
            assert head.poll() is None, log.read_text()
            time.sleep(2)
        yield environment
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=60)


def submit(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", *command],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_submitted_verb_ends_with_its_balance(cluster: dict[str, str], captioned_set: Path, tmp_path: Path):
    archive = str(tmp_path / "archive")
    ingest = submit(cluster, "jobs/ingest.py", "--source", str(captioned_set), "--archive", archive, "--domain", "here")
    assert ingest.returncode == 0, ingest.stdout + ingest.stderr
    assert "read 30 = written 28 + done before 0 + failed 2" in ingest.stdout
    segment = submit(cluster, "jobs/segment.py", "--archive", archive, "--engine", "grid", "--max-area", "1")
    assert segment.returncode == 0, segment.stdout + segment.stderr
    assert "read 30 = written 28 + done before 0 + skipped 2 + failed 0" in segment.stdout


def test_a_submitted_verb_that_cannot_work_fails_with_one_line(cluster: dict[str, str], tmp_path: Path):
    job = submit(cluster, "jobs/segment.py", "--archive", str(tmp_path / "nowhere"))
    assert job.returncode != 0
    assert "jobs/segment.py: --archive" in job.stdout
    assert "no such folder; check the path, or make it first" in job.stdout
    assert "Traceback" not in job.stdout

"""A Ray cluster of processes of its own on the loopback: a head node that takes jobs, and nodes that can be killed."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STORE = 200_000_000  # bytes of a node's object store


class LocalCluster:
    """A head node behind a token, and what reaches it.

    Attributes:
        environment: of a process that talks to the head node.
    """

    def __init__(self, logs: Path, cpus: int) -> None:
        self.logs, self.gcs = logs, free_port()
        dashboard = free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
            "PATH": f"{BIN}:{os.environ['PATH']}",
        }
        flags = f"--head --port={self.gcs} --dashboard-host=127.0.0.1 --dashboard-port={dashboard} --num-cpus={cpus}"
        # The port of the agent that starts jobs is fixed; beside another Ray a head node without an agent takes no job.
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.nodes.append(self._start(flags, f"--dashboard-agent-listen-port={free_port()}"))

    def wait(self) -> None:
        """Until the head node takes jobs."""
        until(lambda: self.submit("-c", "pass").returncode == 0, "the head node took no job", 120, self.nodes[0])

    def join(self, cpus: int) -> subprocess.Popen[bytes]:
        """Another node, once it is up: two that start at once on one host may both want the same socket."""
        ports = f"--dashboard-agent-listen-port={free_port()}"
        self.nodes.append(node := self._start(f"--address=127.0.0.1:{self.gcs} --num-cpus={cpus}", ports))
        log = self.logs / f"node-{len(self.nodes) - 1}.log"
        until(lambda: "Ray runtime started" in log.read_text(), f"a node did not start, see {log}", 120, node)
        return node

    def _start(self, flags: str, ports: str) -> subprocess.Popen[bytes]:
        command = [BIN / "ray", "start", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
        with open(self.logs / f"node-{len(self.nodes)}.log", "w") as out:
            return subprocess.Popen(
                [*command, f"--object-store-memory={STORE}", *flags.split(), *ports.split()],
                env=self.environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def submit(self, *command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """`ray job submit ... -- python COMMAND`, waited for."""
        submission = [BIN / "ray", "job", "submit", "--working-dir", ".", "--", "python", *command]
        return subprocess.run(
            submission, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )

    def begin(self, page: str, *flags: str) -> subprocess.Popen[str]:
        """One of `jobs/`, which goes on while the test does.

        It is run where it lies: nodes of one host share the folder that a working directory is unpacked to, and the
        first one that is done with it takes it from the others.
        """
        submission = [BIN / "ray", "job", "submit", "--", "python", ROOT / "jobs" / page, *flags]
        return subprocess.Popen(
            submission, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def stop(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGTERM)
                try:
                    node.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    kill_node(node)


def workers_of(node: subprocess.Popen[bytes], title: str) -> list[psutil.Process]:
    """Ray's processes on a node whose title holds a text."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(node.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(child.cmdline()[:1]):
                    found.append(child)
    return found


def kill_node(node: subprocess.Popen[bytes]) -> None:
    """As if the machine lost its power: every process of the node at once, none of which hears of it first."""
    victims = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    node.wait(timeout=60)


def until(found: Callable[[], object], failure: str, timeout_s: float, process: subprocess.Popen) -> None:
    """Wait for something, as long as a process lives."""
    deadline = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < deadline, failure
        assert process.poll() is None, f"{failure}: its process ended with {process.returncode}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def local_cluster(logs: Path, cpus: int) -> Iterator[LocalCluster]:
    cluster = LocalCluster(logs, cpus)
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.stop()

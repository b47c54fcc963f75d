"""What tests share: a small captioned set, one Ray session, and an S3 server with a proxy that spoils its answers."""

import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from urbancross import storage
from urbancross.stores import s3

LONGEST = ("test_tuning", "test_demo", "test_pipeline", "test_kills_cluster", "test_interchange")

KINDS = {
    "lake": ((30, 80, 140), "a blue lake", "water with a shore", "a lake seen from above"),
    "forest": ((30, 90, 40), "a dense green forest", "many trees", "a wood of dark trees"),
    "desert": ((210, 180, 120), "a bare desert", "yellow sand", "dunes of sand"),
    "town": ((150, 140, 140), "a town with grey roofs", "many houses", "streets and houses"),
}


def draw(kind: str, number: int, side: int = 64) -> np.ndarray:
    """`[side, side, 3]` uint8: the kind's colour with noise, and rectangles in towns."""
    rng = np.random.default_rng(1000 * sorted(KINDS).index(kind) + number)
    tile = np.clip(np.array(KINDS[kind][0]) + rng.normal(0, 12, (side, side, 3)), 0, 255).astype(np.uint8)
    if kind == "town":
        for y, x in rng.integers(0, side - 12, (8, 2)):
            tile[y : y + 10, x : x + 10] = (180, 60, 50)
    return tile


def write_set(folder: Path, per_kind: int = 7, gain: float = 1.0) -> Path:
    """A folder with captions.jsonl: every seventh tile of a kind is `valid`; one image is cut short, one is absent."""
    (folder / "img").mkdir(parents=True)
    lines = []
    for kind, (_, *captions) in KINDS.items():
        for number in range(per_kind):
            name = f"img/{kind}-{number}.jpg"
            tile = np.clip(draw(kind, number) * gain, 0, 255).astype(np.uint8)
            Image.fromarray(tile).save(folder / name, quality=92)
            split = "valid" if number % 7 >= 5 else "train"
            lines.append({"image": name, "captions": captions, "split": split})
    cut = folder / "img" / "cut.jpg"
    cut.write_bytes((folder / "img" / "lake-0.jpg").read_bytes()[:300])
    lines.insert(3, {"image": "img/cut.jpg", "captions": ["a lake"], "split": "train"})
    lines.append({"image": "img/absent.jpg", "captions": ["nothing"], "split": "train"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that processes that share the rest end together."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def captioned_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 entries, of which 28 are good: 20 train, 8 valid."""
    return write_set(tmp_path_factory.mktemp("sets") / "source")


@pytest.fixture(scope="session")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same kinds of ground under another light."""
    return write_set(tmp_path_factory.mktemp("sets") / "target", gain=0.6)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one; joining it is what every verb does."""
    import ray

    from urbancross.distributed.session import connect

    connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server in a process of its own, so that other programs and Ray workers reach it too."""
    command = [sys.executable, Path(__file__).parent / "s3_server.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def s3_proxy(s3_server: str) -> Iterator["FaultProxy"]:
    """What clients talk to in place of the server; it is honest until told otherwise."""
    proxy = FaultProxy(int(s3_server.rpartition(":")[2]))
    threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
    yield proxy
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def bucket(s3_server: str, s3_proxy: "FaultProxy", monkeypatch: pytest.MonkeyPatch) -> Iterator[storage.Place]:
    """A new bucket behind the proxy, with the environment that leads this process and its children there."""
    name = f"bucket-{uuid.uuid4().hex}"
    straight = boto3.client(
        "s3",
        endpoint_url=s3_server,
        region_name="us-east-1",
        aws_access_key_id="AKIAOFTHETEST",
        aws_secret_access_key="never-to-be-told",
    )
    straight.create_bucket(Bucket=name)
    for variable, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_proxy.server_port}",
        "AWS_ACCESS_KEY_ID": "AKIAOFTHETEST",
        "AWS_SECRET_ACCESS_KEY": "never-to-be-told",
        "AWS_SESSION_TOKEN": "token-of-the-test",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(variable, value)
    s3._client.cache_clear()
    s3._arrow.cache_clear()
    yield storage.place(f"s3://{name}")
    s3._client.cache_clear()
    s3._arrow.cache_clear()


def answer(code: str) -> bytes:
    """An error as S3 tells it; services repeat what they were sent."""
    told = "<Message>AKIAOFTHETEST never-to-be-told token-of-the-test</Message>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>{told}</Error>'.encode()


ANSWERS = {
    "slow down": (503, answer("SlowDown")),
    "expired": (400, answer("ExpiredToken")),  # 400, not 403: that is how AWS has it
    "denied": (403, answer("AccessDenied")),
    "conflict": (409, answer("ConditionalRequestConflict")),
    "upload gone": (404, answer("NoSuchUpload")),
}


class FaultProxy(ThreadingHTTPServer):
    """Hands requests on to S3, spoils those that a rule names, and remembers what came in."""

    daemon_threads = True

    def __init__(self, upstream_port: int) -> None:
        super().__init__(("127.0.0.1", 0), FaultHandler)
        self.upstream_port, self.lock = upstream_port, threading.Lock()
        self.seen: list[str] = []  # "PUT /bucket/key?query"
        self.rules: list[Callable[[str], str | None]] = []

    def fault(self, kind: str, method: str = "", path: str = "", times: int = 1, after: int = 0) -> None:
        """Spoil requests of a method whose path holds a text: so many of them, after letting the first ones pass.

        Args:
            kind: a key of `ANSWERS`; `reset` (hang up before S3 hears of it), `lost answer` (hang up when S3 has
                done it) or `cut` (hang up half-way through the answer's body).
        """
        met = 0

        def rule(request: str) -> str | None:
            nonlocal met
            if not request.startswith(method) or path not in request:
                return None
            met += 1
            return kind if after < met <= after + times else None

        self.rules.append(rule)

    def fault_of(self, request: str) -> str | None:
        with self.lock:
            self.seen.append(request)
            return next(filter(None, [rule(request) for rule in self.rules]), None)


class FaultHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultProxy

    def do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.fault_of(f"{self.command} {self.path}")
        if fault == "reset":
            self.hang_up()
        elif fault in ANSWERS:
            status, told = ANSWERS[fault]
            self.pass_back(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(told)))], told)
        else:
            self.hand_on(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do  # noqa: N815

    def hand_on(self, body: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream_port)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        upstream.request(self.command, self.path, body, headers)
        with upstream.getresponse() as told:
            payload = told.read()
            if fault == "lost answer":
                self.hang_up()
                return
            if fault == "cut":
                self.pass_back(told.status, told.getheaders(), payload[: len(payload) // 2])
                self.hang_up()
                return
            self.pass_back(told.status, told.getheaders(), payload)
        upstream.close()

    def pass_back(self, status: int, headers: list[tuple[str, str]], payload: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def hang_up(self) -> None:
        """End the connection with a reset, at once."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        pass

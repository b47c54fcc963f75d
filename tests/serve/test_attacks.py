"""Requests that no page would send, over real sockets: the right status, one line, and the next one is answered."""

import contextlib
import json
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import served
from served import QUERY, ask, is_one_line, raw, status_of
from starlette.testclient import TestClient

from urbancross.serve import limits, running
from urbancross.serve.library import Library


@pytest.fixture(autouse=True)
def _(port: int) -> Iterator[None]:
    """Whatever a test does, the next search is answered."""
    yield
    response, told = ask(port, "POST", "/api/search", QUERY)
    assert (response.status, len(json.loads(told)["hits"])) == (200, 3)


PATHS = [
    "/static/../app.py",
    "/static/..%2f..%2f..%2fetc/passwd",
    "/static/%2e%2e/%2e%2e/app.py",
    "/static//etc/passwd",
    "/static/leaflet/../../app.py",
    "/static/index.html%00.js",
    "/static/\\..\\..\\app.py",
    "/static/file:///etc/passwd",
    "/static/%c0%ae%c0%ae/app.py",
    "/static/",
    "/static/leaflet",
    "//etc/passwd",
    "/../../etc/passwd",
    "/api/tiles/..%2f..%2fetc%2fpasswd/picture",
    "/api/tiles/-1/picture",
    "/api/tiles/120/picture",
    f"/api/tiles/{10**30}/picture",
    f"/api/tiles/{'9' * 6000}/picture",
    "/api/tiles/1e3/picture",
    "/api/tiles/%D9%A3/picture",
    "/api/tiles/3%00/segments",
    "/api/tiles/120/segments",
    f"/api/tiles/{served.FAILED}/picture",
    "/docs",
    "/redoc",
    "/openapi.json",
    "/api",
    "/api/search/",
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:40])
def test_no_path_leads_anywhere_but_to_tiles_and_files_of_the_page(port: int, place: Path, path: str):
    answer = raw(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode("latin-1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == 404, answer[:300]
    assert is_one_line(body, place)
    assert b"server:" not in head.lower()


@pytest.mark.parametrize(
    "path", ["/api/tiles/3/picture?px=0", "/api/tiles/3/picture?px=1000000", "/api/tiles/3/picture?px=x"]
)
def test_a_picture_has_no_width_but_those_allowed(port: int, place: Path, path: str):
    response, told = ask(port, "GET", path)
    assert response.status == 422
    assert is_one_line(told, place)


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "GET"])
def test_other_methods_are_refused_and_the_right_one_named(port: int, place: Path, method: str):
    response, told = ask(port, method, "/api/search")
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    assert is_one_line(told, place)
    assert "Access-Control-Allow-Origin" not in response.headers


def test_head_answers_as_get_without_a_body(port: int):
    response, told = ask(port, "HEAD", "/api/tiles/3/picture")
    assert (response.status, told) == (200, b"")
    assert int(response.headers["Content-Length"]) == len(served.tile(3)["image"])


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "[::1",
        "a@b",
        "localhost:x",
    ],
)
def test_another_name_is_refused_for_it_may_be_a_site_that_points_here(port: int, place: Path, host: str):
    for method, path, body in (("GET", "/api/archive", None), ("POST", "/api/search", QUERY)):
        response, told = ask(port, method, path, body, Host=host)
        assert response.status == 403
        assert is_one_line(told, place)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1", "[::1]:8000", "192.168.1.7:80"]
)
def test_addresses_and_localhost_are_known(port: int, host: str):
    assert ask(port, "GET", "/api/archive", Host=host)[0].status == 200


def test_names_that_were_given_are_known_and_no_request_may_have_two(library: Library, port: int):
    client = TestClient(served.application(library, hostnames=("maps.example",)), base_url="http://maps.example")
    assert client.get("/api/archive").status_code == 200
    two = b"GET /api/archive HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"
    assert status_of(raw(port, two)) == 400
    assert status_of(raw(port, b"GET /api/archive HTTP/1.1\r\n\r\n")) == 400
    assert status_of(raw(port, b"GET /api/archive HTTP/1.0\r\n\r\n")) == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1", "file://"]
)
def test_a_page_of_another_site_may_not_ask(port: int, place: Path, origin: str):
    response, told = ask(port, "POST", "/api/search", QUERY, Origin=origin)
    assert response.status == 403
    assert is_one_line(told, place)


def test_the_own_page_may_ask_and_is_told_to_load_nothing_from_elsewhere(port: int):
    response, _ = ask(port, "POST", "/api/search", QUERY, Origin=f"http://127.0.0.1:{port}")
    assert response.status == 200
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"


def head(path: str = "/api/search", **headers: Any) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{n.replace('_', '-')}: {v}" for n, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(port: int):
    for declared in (2**21, 10**14, 10**19):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(head(Content_Length=declared, Expect="100-continue"))
            assert status_of(connection.recv(65536)) == 413
    assert status_of(raw(port, head(Content_Length=-5))) == 400
    assert status_of(raw(port, head(Content_Length="many"))) == 400
    assert status_of(raw(port, head(Content_Length=10**40))) == 400


def test_a_body_without_an_end_is_refused_when_it_is_too_large(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "LINGER_S", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(head("/api/pictures", Transfer_Encoding="chunked"))
        chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:  # ends only because the server closes
                connection.sendall(chunk)
        assert status_of(connection.recv(65536)) == 413


def test_a_body_that_does_not_come_is_waited_for_a_while(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "BODY_S", 0.3)
    monkeypatch.setattr(limits, "LINGER_S", 0.3)
    assert status_of(raw(port, head(Content_Length=100) + b'{"text"')) == 408
    assert status_of(raw(port, head(Transfer_Encoding="chunked") + b'7\r\n{"text"')) == 408


def test_bytes_that_wait_are_bounded_all_together(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "HELD_BYTES", 100)
    assert ask(port, "POST", "/api/search", b" " * 80 + QUERY)[0].status == 503
    for _ in range(5):  # none of what was refused is held
        assert ask(port, "POST", "/api/search", b" " * 60 + QUERY)[0].status == 200


def test_a_packed_body_is_not_unpacked(port: int):
    packed = zlib.compress(b'{"text": "' + b"a" * 10**8 + b'"}', 9)
    for kind in ("gzip", "deflate", "br", "identity, gzip"):
        assert ask(port, "POST", "/api/search", packed, Content_Encoding=kind)[0].status == 415
    assert ask(port, "POST", "/api/search", QUERY, Content_Encoding="identity")[0].status == 200


def test_requests_that_have_no_body_do_not_bring_one(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "LINGER_S", 0.3)
    assert ask(port, "GET", "/api/archive", b"{}")[0].status == 400
    assert ask(port, "POST", "/api/nowhere", b"{}")[0].status == 400
    endless = b"GET /api/archive HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"
    assert status_of(raw(port, endless)) == 400  # and closed: `raw` reads to the end


GARBAGE = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"G" * 200_000,
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000,
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA b: c\r\n\r\n",
    head(Content_Length=5, Transfer_Encoding="chunked") + b"zz\r\n",
]


@pytest.mark.parametrize("request_bytes", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_http_ends_the_connection(port: int, request_bytes: bytes):
    answer = raw(port, request_bytes)
    assert status_of(answer) in (0, 400, 403), answer[:200]
    assert b"Traceback" not in answer


def test_a_connection_on_which_nothing_comes_is_ended(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "HEAD_S", 0.2)
    assert raw(port, b"") == b""
    assert raw(port, b"GET /api/arch") == b""
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/api/search", QUERY)
        assert connection.getresponse().read()
        assert connection.sock.recv(1) == b""


def test_an_answer_that_is_not_taken_is_given_up(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(running, "HEAD_S", 0.2)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        asked = b"GET /static/leaflet/leaflet.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 100
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:  # ends only because the server hangs up
                connection.sendall(asked)


def test_who_asks_too_often_is_told_when_to_come_again(library: Library):
    with served.listening(served.application(library, requests_per_second=2.0, burst=5)) as port:
        found = [ask(port, "POST", "/api/search", QUERY) for _ in range(12)]
        statuses = Counter(response.status for response, _ in found)
        assert statuses[200] >= 5
        assert statuses[429] >= 1
        assert set(statuses) == {200, 429}
        late = next(response for response, _ in found if response.status == 429)
        assert late.headers["Retry-After"] == "1"
        deadline = time.monotonic() + 30
        while ask(port, "POST", "/api/search", QUERY)[0].status != 200:
            assert time.monotonic() < deadline


def test_fifty_clients_at_once_are_all_answered(port: int):
    def client(number: int) -> Counter[int]:
        found: Counter[int] = Counter()
        with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
            for turn in range(4):
                asked = {"text": f"a lake, seen by {number % 5}", "top": 10, "like": [12 + turn]}
                connection.request("POST", "/api/search", json.dumps(asked))
                response = connection.getresponse()
                hits = json.loads(response.read())["hits"]
                found[response.status if len(hits) == 10 else 0] += 1
        return found

    with ThreadPoolExecutor(50) as pool:
        assert sum(pool.map(client, range(50)), Counter()) == {200: 200}


def test_what_nobody_foresaw_is_logged_and_told_in_one_line(
    library: Library, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    client = TestClient(served.application(library), base_url="http://127.0.0.1", raise_server_exceptions=False)

    def breaks(asked: Any) -> Any:
        raise RuntimeError(f"{place} is broken")

    monkeypatch.setattr(library, "search", breaks)
    answer = client.post("/api/search", json={"text": "a lake"})
    assert answer.status_code == 500
    assert is_one_line(answer.content, place)
    assert f"{place} is broken" in caplog.text

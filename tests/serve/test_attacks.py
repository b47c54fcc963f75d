"""Requests that no page would send, over real sockets: the right status, one line, and the next one is answered."""

import contextlib
import io
import json
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from PIL import Image
from served import ask, raw, status_of
from starlette.testclient import TestClient

from urbancross.serve import limits, pictures, running
from urbancross.serve.library import Library

QUERY = b'{"text": "a lake", "top": 3}'


@pytest.fixture(autouse=True)
def _(port: int) -> Iterator[None]:
    """Whatever a test does, the next search is answered."""
    yield
    response, told = ask(port, "POST", "/api/search", QUERY)
    assert (response.status, len(json.loads(told)["hits"])) == (200, 3)


def is_one_line(told: bytes, place: Path) -> bool:
    """Whether this is an error as the page expects it, and tells nothing of this machine."""
    found = json.loads(told)
    line = found["error"]
    secrets = (str(place), "/tmp", "site-packages", "Traceback", ".py", "urbancross/")
    return list(found) == ["error"] and "\n" not in line and not any(secret in line for secret in secrets)


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


BAD: list[tuple[int, bytes]] = [
    (400, b""),
    (400, b"not json"),
    (400, b'{"text": "a"'),
    (400, b"\xff\xfe\x00"),
    (400, b'{"text": "\xff"}'),
    (400, b'{"text": "\\ud800"}'),
    (400, b"[" * 100_000),
    (400, b'{"area": ' + b'{"type": "Feature", "geometry": ' * 30_000),
    (400, b'{"area": ' + b"[" * 400_000 + b"]" * 400_000 + b"}"),
    (422, b"[]"),
    (422, b"null"),
    (422, b'"text"'),
    (422, b"{}"),
    (422, b'{"text": ""}'),
    (422, b'{"text": " \\t\\u00a0"}'),
    (422, b'{"minus": ["a lake"]}'),
    (422, b'{"text": "' + b"a" * 1001 + b'"}'),
    (413, b'{"text": "' + b"a" * 1_100_000 + b'"}'),
    (422, b'{"text": 5}'),
    (422, b'{"text": "a", "file": "/etc/passwd"}'),
    (422, b'{"text": "a", "image": "/etc/passwd"}'),
    (422, b'{"text": "a", "archive": "/"}'),
    (422, b'{"text": "a", "top": 0}'),
    (422, b'{"text": "a", "top": -1}'),
    (422, b'{"text": "a", "top": 1000000000}'),
    (422, b'{"text": "a", "top": 2.5}'),
    (422, b'{"text": "a", "top": true}'),
    (422, b'{"text": "a", "top": 1' + b"0" * 100 + b"}"),
    (400, b'{"text": "a", "top": 1' + b"0" * 5000 + b"}"),
    (422, b'{"text": "a", "segment_weight": NaN}'),
    (422, b'{"text": "a", "segment_weight": Infinity}'),
    (422, b'{"text": "a", "segment_weight": 1.5}'),
    (422, b'{"text": "a", "segment_weight": 0.5, "model": "after"}'),
    (422, b'{"text": "a", "model": "../../etc"}'),
    (422, b'{"text": "a", "pictures": ["no such token"]}'),
    (422, b'{"like": [-1]}'),
    (422, b'{"like": [120]}'),
    (422, b'{"like": [1' + b"0" * 30 + b"]}"),
    (422, b'{"like": ["t3"]}'),
    (422, b'{"like": [7]}'),
    (422, b'{"like": [11]}'),
    (422, b'{"like": [' + b"3," * 32 + b"3]}"),
    (422, b'{"text": "a", "plus": [' + b'"a",' * 31 + b'"a"]}'),
    (422, b'{"text": "a", "tags": [' + b'"a",' * 16 + b'"a"]}'),
    (422, b'{"text": "a", "since": "yesterday"}'),
    (422, b'{"text": "a", "since": "99999999999"}'),
    (422, b'{"text": "a", "until": "2024-13"}'),
    (422, b'{"text": "a", "bbox": [1, 2, 3]}'),
    (422, b'{"text": "a", "bbox": [0, 0, 0, 0]}'),
    (422, b'{"text": "a", "bbox": [0, -91, 1, 0]}'),
    (422, b'{"text": "a", "bbox": [0, 0, 1, 91]}'),
    (422, b'{"text": "a", "bbox": [0, 1, 1, 0]}'),
    (422, b'{"text": "a", "bbox": [0, 0, 1e999, 1]}'),
    (422, b'{"text": "a", "bbox": [NaN, 0, 1, 1]}'),
    (422, b'{"text": "a", "bbox": [-1e308, -1e308, 1e308, 1e308]}'),
    (422, b'{"text": "a", "area": "/etc/passwd"}'),
]


@pytest.mark.parametrize(("status", "body"), BAD, ids=lambda told: str(told)[:60])
def test_a_query_that_is_none_is_told_so_in_one_line(port: int, place: Path, status: int, body: bytes):
    response, told = ask(port, "POST", "/api/search", body)
    assert response.status == status, told
    assert is_one_line(told, place)


def polygon(*rings: list[list[float]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def circle(corners: int, radius: float = 1.0) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, corners)
    ring = np.column_stack([20 + radius * np.cos(angles), 60 + radius * np.sin(angles)]).tolist()
    return [*ring[:-1], ring[0]]


SQUARE = [[19, 59], [21, 59], [21, 61], [19, 61], [19, 59]]
NESTED: dict[str, Any] = polygon(SQUARE)
for _ in range(60):
    NESTED = {
        "type": "FeatureCollection",
        "features": [{"type": "Feature", "geometry": NESTED, "properties": {"n": 1e9}}],
    }

AREAS: list[tuple[int, Any]] = [
    (200, polygon(SQUARE)),
    (200, polygon(SQUARE, circle(50, 0.5))),
    (200, polygon(circle(9_000))),
    (200, polygon([[-185, 59], [185, 59], [185, 61], [-185, 61], [-185, 59]])),
    (200, NESTED),
    (422, polygon(circle(15_000))),
    (422, polygon([[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]])),
    (422, polygon(circle(50, 0.5), SQUARE)),
    (422, polygon([[0, 0], [1, 1], [0, 0]])),
    (422, polygon([[0, 0], [1, 1]])),
    (422, polygon([[0, 0], [1, 0], [1, 1]])),
    (422, polygon([])),
    (422, polygon()),
    (422, {"type": "Polygon"}),
    (422, {"type": "Polygon", "coordinates": None}),
    (422, {"type": "Polygon", "coordinates": "POLYGON((0 0, 1 1, 1 0, 0 0))"}),
    (422, {"type": "Polygon", "coordinates": [[["a", "b"], [1, 2], [3, 4], [0, 0]]]}),
    (422, {"type": "Polygon", "coordinates": {"0": [[0, 0]]}}),
    (422, {"type": "Polygon", "coordinates": [[0, 0], [1, 1]]}),
    (422, {"type": "Point", "coordinates": [0, 0]}),
    (422, {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}),
    (422, {"type": "GeometryCollection", "geometries": [polygon(SQUARE)]}),
    (422, {"type": "Feature", "geometry": None}),
    (422, {"type": "FeatureCollection", "features": []}),
    (422, {"type": "FeatureCollection", "features": "Polygon"}),
    (422, {"type": "FeatureCollection", "features": [None]}),
    (422, {"type": "Nonsense"}),
    (422, {"type": ["Polygon"]}),
    (422, {}),
    (422, polygon([[0, 0], [1e9, 0], [1e9, 1e9], [0, 0]])),
    (422, polygon([[0, 0], [10**400, 0], [1, 1], [0, 0]])),
    (422, polygon([[0, 0], [float("nan"), 0], [1, 1], [0, 0]])),
    (422, polygon([[0, 0], [float("inf"), 0], [1, 1], [0, 0]])),
    (422, polygon([[0, 0], [1, 0], [1, 95], [0, 0]])),
    (422, polygon([[1000, 0], [1001, 0], [1001, 1], [1000, 0]])),
    (413, polygon(circle(100_000))),
]


@pytest.mark.parametrize(("status", "area"), AREAS, ids=lambda told: str(told)[:60])
def test_an_area_is_a_polygon_or_is_told_to_be_none(port: int, place: Path, status: int, area: Any):
    response, told = ask(port, "POST", "/api/search", json.dumps({"text": "a lake", "area": area}).encode())
    assert response.status == status, told[:300]
    assert status == 200 or is_one_line(told, place)


@pytest.mark.parametrize(
    "text", ["\0", "a\0b", "\x1b[31m", "{{7*7}}", "<script>alert(1)</script>", "' OR 1=1", "🛰" * 100, "\u202e", "%s%n"]
)
def test_odd_texts_are_texts(port: int, text: str):
    response, told = ask(
        port, "POST", "/api/search", json.dumps({"text": text, "domain": text, "tags": [text]}).encode()
    )
    assert (response.status, json.loads(told)["hits"]) == (200, [])
    assert ask(port, "POST", "/api/search", json.dumps({"text": text}).encode())[0].status == 200


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says so many pixels, whatever it holds."""

    def chunk(kind: bytes, told: bytes) -> bytes:
        return struct.pack(">I", len(told)) + kind + told + struct.pack(">I", zlib.crc32(kind + told))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def image_of(kind: str, mode: str = "RGB", side: int = 40) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (side, side)).save(out, kind)
    return out.getvalue()


BOMB = png(30_000, 30_000, zlib.compress(b"\0" * 5_000_000, 9))
UPLOADS = {
    "jpeg": (200, image_of("JPEG")),
    "png of 16 bits": (200, image_of("PNG", "I;16")),
    "png with transparency": (200, image_of("PNG", "RGBA")),
    "webp": (200, image_of("WEBP")),
    "one pixel": (200, image_of("PNG", side=1)),
    "bomb": (413, BOMB),
    "bomb beyond Pillow's own bound": (413, png(2**31 - 1, 2**31 - 1)),
    "strip": (413, png(100_000_000, 1)),
    "no pixels": (415, png(0, 0)),
    "pixels that are not there": (415, png(100, 100)),
    "cut short": (415, served.encoded(served.pixels(3))[:700]),
    "gif": (415, image_of("GIF")),
    "tiff": (415, image_of("TIFF")),
    "bmp": (415, image_of("BMP")),
    "svg": (415, b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
    "text": (415, b"../../etc/passwd"),
    "nothing": (400, b""),
    "too many bytes": (413, bytes(served.UPLOAD_BYTES + 1)),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_an_upload_is_a_picture_of_bounded_size(port: int, place: Path, name: str):
    status, data = UPLOADS[name]
    response, told = ask(port, "POST", "/api/pictures", data)
    assert response.status == status, told
    assert status == 200 or is_one_line(told, place)


def test_no_pixel_of_a_bomb_is_decoded(port: int, monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    monkeypatch.setattr(pictures, "decode", lambda data: decoded.append(len(data)))
    assert len(BOMB) < 10_000  # of 2.7 GB
    assert ask(port, "POST", "/api/pictures", BOMB)[0].status == 413
    assert not decoded


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

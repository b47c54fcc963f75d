"""Queries, areas and uploads that no page would send: the right status, one line, and the next one is answered."""

import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from PIL import Image
from served import QUERY, ask, is_one_line

from urbancross.serve import pictures


@pytest.fixture(autouse=True)
def _(port: int) -> Iterator[None]:
    """Whatever a test does, the next search is answered."""
    yield
    response, told = ask(port, "POST", "/api/search", QUERY)
    assert (response.status, len(json.loads(told)["hits"])) == (200, 3)


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

"""A web server on the loopback: a folder in ranges, signed URLs if told so, a STAC API, and faults on demand."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SEARCH = "https://api.stacspec.org/v1.0.0/item-search"
CONFORMS = ["https://api.stacspec.org/v1.0.0/core", SEARCH, f"{SEARCH}#query", f"{SEARCH}#filter"]
CONFORMS += ["https://api.stacspec.org/v1.0.0/collections"]
SECRET = "never-to-be-told"


class Web(ThreadingHTTPServer):
    """Honest until told otherwise.

    Attributes:
        signed: what a URL below /files/ has to end with as its `sig`; None: none is needed.
        items: what the STAC API below /stac/ finds, by pages of `page`.
        asked: the bodies of its searches.
        seen: "GET /path?query" of all requests.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.lock = folder, threading.Lock()
        self.signed: str | None = None
        self.valid_s = 3600.0
        self.etags = True
        self.items: list[dict[str, Any]] = []
        self.page = 2
        self.conforms = CONFORMS
        self.asked: list[dict[str, Any]] = []
        self.seen: list[str] = []
        self.bytes_sent = 0
        self.rules: list[Callable[[str], str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, kind: str, path: str = "/files/", times: int = 1, after: int = 0, every: int = 1) -> None:
        """Spoil requests: `times` of them, after the first `after` ones, and of those every so manyth.

        Args:
            kind: a status such as `503`, `reset` (hang up), `cut` (hang up half-way through the body) or `short` (send
                half of a range as if it were all).
        """
        met = spoilt = 0

        def rule(request: str) -> str | None:
            nonlocal met, spoilt
            if path not in request:
                return None
            met += 1
            if met <= after or spoilt >= times or (met - after - 1) % every:
                return None
            spoilt += 1
            return kind

        self.rules.append(rule)

    def fault_of(self, request: str) -> str | None:
        with self.lock:
            self.seen.append(request)
            return next(filter(None, [rule(request) for rule in self.rules]), None)

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up

    def count(self, text: str) -> int:
        return sum(text in request for request in self.seen)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Web

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        fault = self.server.fault_of(f"{self.command} {self.path}")
        parts, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query)
        if fault == "reset":
            self.hang_up()
        elif fault not in (None, "cut", "short"):
            self.send(int(fault or 0), b"no " + SECRET.encode())
        elif parts.path == "/sign":
            until = datetime.now(UTC) + timedelta(seconds=self.server.valid_s)
            self.tell({"href": f"{query['href'][0]}?sig={self.server.signed}", "msft:expiry": until.isoformat()})
        elif parts.path.startswith("/stac"):
            self.stac(parts.path.removeprefix("/stac").strip("/"), body)
        else:
            self.file(parts.path.removeprefix("/files/"), query.get("sig", [None])[0], fault)

    do_POST = do_HEAD = do_GET  # noqa: N815

    def file(self, name: str, signature: str | None, fault: str | None) -> None:
        path = self.server.folder / name
        if self.server.signed is not None and signature != self.server.signed:
            self.send(403, b"expired")
            return
        if not path.is_file():
            self.send(404, b"")
            return
        data, told = path.read_bytes(), path.stat()
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data)) + 1, len(data))
        headers = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        if self.server.etags:
            headers["ETag"] = f'"{told.st_mtime_ns:x}-{len(data):x}"'
        with self.server.lock:
            self.server.bytes_sent += stop - start
        sent = data[start : (start + stop) // 2] if fault == "short" else data[start:stop]
        self.send(206, sent, headers, cut=fault == "cut")

    def stac(self, path: str, body: dict[str, Any]) -> None:
        root = f"{self.server.url}/stac"
        links = [
            {"rel": "root", "href": root, "type": "application/json"},
            {"rel": "self", "href": root, "type": "application/json"},
            {"rel": "search", "href": f"{root}/search", "type": "application/geo+json", "method": "POST"},
        ]
        if path == "":
            told = {"type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "of a test"}
            self.tell(told | {"conformsTo": self.server.conforms, "links": links})
        elif path == "search":
            self.server.asked.append(body)
            wanted = set(body.get("collections") or []) or {item["collection"] for item in self.server.items}
            found = [item for item in self.server.items if item["collection"] in wanted]
            first = int(body.get("token", 0))
            more = []
            if first + self.server.page < len(found):
                token = str(first + self.server.page)
                more = [{"rel": "next", "href": f"{root}/search", "method": "POST", "body": {**body, "token": token}}]
            page = found[first : first + self.server.page]
            self.tell({"type": "FeatureCollection", "features": page, "links": more})
        elif path.partition("/")[0] == "collections":
            made = {"type": "Collection", "stac_version": "1.0.0", "description": "", "license": "other", "links": []}
            made |= {"extent": {"spatial": {"bbox": [[0, 0, 1, 1]]}, "temporal": {"interval": [[None, None]]}}}
            known = [made | {"id": name} for name in sorted({item["collection"] for item in self.server.items})]
            wanted = path.partition("/")[2]
            if not wanted:
                self.tell({"collections": known, "links": []})
            elif found := [each for each in known if each["id"] == wanted]:
                self.tell(found[0])
            else:
                self.send(404, b'{"detail": "not found"}')
        else:
            self.send(404, b'{"detail": "not found"}')

    def tell(self, told: Any) -> None:
        self.send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: dict[str, str] | None = None, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.wfile.flush()
            time.sleep(0.02)  # so that what was sent arrives before the reset
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[Web]:
    server = Web(folder)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

"""How much one may ask: bytes of a body, requests of an address, work at the same time."""

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from urbancross.serve.refused import Refused

T = TypeVar("T")

QUERY_BYTES = 1 << 20  # of a query with its polygons
HELD_BYTES = 128 << 20  # of all bodies that are here at the same time
BODY_S = 20.0  # a body comes within
LINGER_S, LINGER_BYTES = 2.0, 64 << 20  # what is read and thrown away of a body that was refused
ADDRESSES = 10_000  # that are remembered
GET_COST = 0.1  # of a request for a tile's picture or a file, beside one for a search
WAITING = 200  # requests that wait for their turn


class Rates:
    """A bucket of tokens for every address: a request takes some, and they come back with time.

    Args:
        per_second: tokens that come back; 0: no limit.
        burst: tokens of a full bucket.
    """

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second, self.burst, self.clock = per_second, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def wait_s(self, address: str, cost: float) -> float:
        """Seconds until a request may come again; 0: it may pass, and has been paid for."""
        if not self.per_second:
            return 0.0
        now, key = self.clock(), network_of(address)
        tokens, then = self._buckets.pop(key, (self.burst, now))
        tokens = min(self.burst, tokens + (now - then) * self.per_second)
        passes = tokens >= cost
        self._buckets[key] = (tokens - cost if passes else tokens, now)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if passes else (cost - tokens) / self.per_second


def network_of(address: str) -> str:
    """An address, or of IPv6 the network that one household has."""
    try:
        told = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(told, ipaddress.IPv6Address) and told.ipv4_mapped is None:
        return str(ipaddress.ip_network((told, 64), strict=False))
    return address


class Turns:
    """So many pieces of work at a time, on threads; some more wait."""

    def __init__(self, at_once: int, waiting: int = WAITING) -> None:
        self._places, self._most, self._here = asyncio.Semaphore(at_once), at_once + waiting, 0

    async def do(self, request: Request, work: Callable[..., T], *arguments: Any) -> T:
        """
        Raises:
            Refused: too many wait already, or nobody waits for this any more.
        """
        if self._here >= self._most:
            raise Refused(503, "too many are asking; try again in a second", {"Retry-After": "1"})
        self._here += 1
        try:
            async with self._places:
                if await request.is_disconnected():
                    raise Refused(503, "nobody waits for this any more")
                return await run_in_threadpool(work, *arguments)
        finally:
            self._here -= 1


class Limited:
    """Lets a request through to `app` with its whole body, or refuses it.

    Args:
        bodies: for each path that takes a body, its most bytes.
    """

    def __init__(self, app: ASGIApp, bodies: Mapping[str, int], rates: Rates) -> None:
        self.app, self.bodies, self.rates = app, bodies, rates
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, parts = Headers(scope=scope), _Parts(receive)
        try:
            try:
                body = await self.passed(scope, headers, parts)
            except Refused as refused:
                await refuse(refused, scope, headers, parts, send)
                return
            except Gone:
                return
            await self.app(scope, replayed(body, receive), send)
        finally:
            self.held -= parts.held

    async def passed(self, scope: Scope, headers: Headers, parts: "_Parts") -> bytes:
        """The body of a request that may be answered.

        Raises:
            Refused: it may not.
            Gone: the client has hung up.
        """
        takes_body = scope["method"] == "POST" and scope["path"] in self.bodies
        address = (scope.get("client") or ("", 0))[0]
        wait_s = self.rates.wait_s(address, 1.0 if takes_body else GET_COST)
        if wait_s:
            line = f"too many requests; try again in {max(wait_s, 0.1):.1f} s"
            raise Refused(429, line, {"Retry-After": str(max(1, round(wait_s)))})
        if not takes_body:
            if has_body(headers):
                raise Refused(400, "a request of this kind has no body; leave it out")
            return b""
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "bodies are not unpacked here; send it without Content-Encoding")
        most = self.bodies[scope["path"]]
        too_large = Refused(413, f"the body is too large; send {most:,} bytes at most")
        declared = headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdigit()):
            raise Refused(400, "Content-Length is no number")
        if len(declared) > 15 or int(declared) > most:
            raise too_large
        try:
            async with asyncio.timeout(BODY_S):
                while parts.more:
                    part = await parts.next()
                    if parts.held + len(part) > most:
                        raise too_large
                    if self.held + len(part) > HELD_BYTES:
                        raise Refused(503, "too many uploads at once; try again in a second", {"Retry-After": "1"})
                    self.held += len(part)
                    parts.keep(part)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {BODY_S:g} s; send it again") from None
        return parts.whole()


class Gone(Exception):
    """The client has hung up."""


class _Parts:
    """A body as it comes.

    Attributes:
        more: whether there is more to come.
        held: bytes that were kept.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive, self.more, self.held = receive, True, 0
        self._kept = bytearray()

    async def next(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        self.more = message.get("more_body", False)
        return message.get("body", b"")

    def keep(self, part: bytes) -> None:
        self._kept += part
        self.held += len(part)

    def whole(self) -> bytes:
        return bytes(self._kept)


def has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0 ") != ""


def replayed(body: bytes, receive: Receive) -> Receive:
    """What hands a body on that was read before, and then what comes after it."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def refuse(refused: Refused, scope: Scope, headers: Headers, parts: _Parts, send: Send) -> None:
    """Answer at once, and then read some of the body that is still coming: a connection that is closed upon data is
    reset, and the client may never see the answer."""
    response = refused.response
    if not has_body(headers) or not parts.more:
        await response(scope, parts.receive, send)
        return
    response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if headers.get("expect", "").lower() != "100-continue":
        await _drain(parts)
    await send({"type": "http.response.body", "body": b""})


async def _drain(parts: _Parts) -> None:
    left = LINGER_BYTES
    try:
        async with asyncio.timeout(LINGER_S):
            while parts.more and left > 0:
                left -= len(await parts.next())
    except (TimeoutError, Gone):
        pass

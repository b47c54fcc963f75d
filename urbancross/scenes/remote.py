"""Bytes of scenes that lie elsewhere: ranges over HTTP and of S3, asked again while a server stumbles, signed if told.

Nothing here tells what an exception of a library says, for that may repeat a signed URL.
"""

import functools
import json
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter

from urbancross.errors import TileError
from urbancross.hrefs import bare
from urbancross.stores import s3

HEAD_BYTES = 64 << 10  # asked for first: the header of most scenes, the whole of small ones
PARALLEL = 8  # ranges of a scene on their way at once
KEPT_BYTES = 32 << 20  # of ranges: GDAL asks for the same again where a square of one row lies beside the scene
HEADS, SIGNED = 64, 1024  # scenes whose heads, and URLs whose signatures, a process remembers
TIMEOUT_S = (10, 60)  # to connect, and between two pieces of an answer
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
BEFORE_EXPIRY_S = 60.0
SIGNED_BYTES = 64 << 10  # at most, of an answer that holds a signed URL
PASSING = {408, 425, 429, 500, 502, 503, 504}  # what a server says that may answer soon
DENIED = {400, 401, 403}  # what one says of a signature that is too old
NO_RANGES = "the server does not give ranges of files; download them first"


class Away(TileError):
    """A server did not give a tile's bytes within the tile's budget."""


@dataclass(frozen=True)
class Access:
    """How remote scenes are read.

    Attributes:
        retry_s: how long the requests of one tile are tried again, in all.
        sign_url: where URLs are signed, `{href}` standing for the one; None: they are asked for as they are.
    """

    retry_s: float = 120
    sign_url: str | None = None


PLAIN = Access()


@dataclass(frozen=True)
class Answer:
    data: bytes
    size: int
    version: str | None  # the server's mark of the file as it is now


class Fault(Exception):
    """A request came to nothing.

    Attributes:
        passing: whether it may go well soon.
        wait_s: what the server asks to wait.
    """

    def __init__(self, told: str, passing: bool, status: int | None = None, wait_s: float = 0) -> None:
        super().__init__(told)
        self.passing, self.status, self.wait_s = passing, status, wait_s


class Patience:
    """What one tile may still wait for servers."""

    def __init__(self, seconds: float) -> None:
        self.seconds = self.left_s = seconds

    def restart(self) -> None:
        self.left_s = self.seconds


class Web:
    """One process's way to remote files."""

    def __init__(self, access: Access) -> None:
        self.access, self.session = access, requests.Session()
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_connections=16, pool_maxsize=2 * PARALLEL))
        self.heads, self.signed = OrderedDict[str, Answer](), OrderedDict[str, tuple[str, float]]()
        self.kept = OrderedDict[tuple[str, int, int], bytes]()
        self.tired: set[str] = set()  # hosts that used up a tile's patience and have not answered since
        self.lock, self.pool = threading.Lock(), ThreadPoolExecutor(PARALLEL, "ranges")
        if access.sign_url:  # with DEBUG urllib3 logs every URL that it asks for
            logging.getLogger("urllib3").setLevel(logging.INFO)

    def head(self, href: str, patience: Patience) -> Answer:
        """The first bytes of a file, its size and its version.

        Raises:
            TileError: it cannot be read; Away: perhaps later.
        """
        with self.lock:
            known = self.heads.get(href)
        if known is None:
            known = self._patiently(href, [(0, HEAD_BYTES)], patience)[0]
            with self.lock:
                self.heads[href] = known
                while len(self.heads) > HEADS:
                    self.heads.popitem(last=False)
        return known

    def ranges(self, href: str, wanted: Sequence[tuple[int, int]], patience: Patience) -> list[bytes]:
        """The bytes of `(start, stop)` ranges that lie in the file, all of one version of it.

        Raises:
            TileError: as `head`, or the file changed.
        """
        first = self.head(href, patience)
        with self.lock:
            here = {each: self.kept[href, *each] for each in wanted if (href, *each) in self.kept}
        absent = [each for each in wanted if each not in here]
        found = dict(zip(absent, self._patiently(href, absent, patience), strict=True)) if absent else {}
        if any((each.size, each.version) != (first.size, first.version) for each in found.values()):
            with self.lock:
                self.heads.pop(href, None)
                for key in [key for key in self.kept if key[0] == href]:
                    del self.kept[key]
            raise TileError("the file changed while it was read; urbancross retry takes it as it is now")
        with self.lock:
            self.kept |= {(href, *span): each.data for span, each in found.items()}
            while sum(map(len, self.kept.values())) > KEPT_BYTES:
                self.kept.popitem(last=False)
        return [here[each] if each in here else found[each].data for each in wanted]

    def _patiently(self, href: str, wanted: Sequence[tuple[int, int]], patience: Patience) -> list[Answer]:
        host = urlsplit(href).netloc
        allowed_s = 0.0 if host in self.tired else patience.left_s
        spent = [0.0] * len(wanted)

        def ask(number: int) -> Answer:
            start, stop = wanted[number]
            renewed, tries = False, 0
            while True:
                began, used = time.monotonic(), None
                try:
                    if href.startswith("s3://"):
                        return self._from_s3(href, start, stop)
                    used = self._sign(href) if self.access.sign_url else href
                    return self._over_http(used, start, stop)
                except Fault as fault:
                    if fault.status in DENIED and self.access.sign_url and not renewed:
                        renewed = True
                        self._forget(href, used)
                        continue
                    if not fault.passing:
                        raise TileError(f"{fault}: {_shown(href)}") from None
                    wait_s = min(FIRST_WAIT_S * 2**tries, LONGEST_WAIT_S) * random.uniform(0.5, 1)
                    wait_s, tries = max(wait_s, fault.wait_s), tries + 1
                    spent[number] += time.monotonic() - began
                    if spent[number] + wait_s > allowed_s:
                        self.tired.add(host)
                        raise Away(
                            f"{fault}: {_shown(href)}, asked {tries} times; urbancross retry asks again"
                        ) from None
                    time.sleep(wait_s)
                    spent[number] += wait_s

        try:
            found = [ask(0)] if len(wanted) == 1 else list(self.pool.map(ask, range(len(wanted))))
        finally:
            patience.left_s = max(patience.left_s - max(spent), 0)
        self.tired.discard(host)
        return found

    def _over_http(self, url: str, start: int, stop: int) -> Answer:
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        status, told, data = self._get(url, headers, stop - start)
        total = told.get("Content-Range", "").rpartition("/")[2]
        if status == 206 and total.isdigit():
            size = int(total)
        elif status == 200 and start == 0:
            size = len(data)  # the whole of a small file, which some servers give rather than all of it as a range
        else:
            raise Fault(NO_RANGES, passing=False)
        return _whole(data, start, stop, size, told.get("ETag") or told.get("Last-Modified"))

    def _get(self, url: str, headers: dict[str, str], most: int) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one request.

        Args:
            most: bytes that the body may have; a server that sends more has not understood the range.
        """
        try:
            with self.session.get(url, headers=headers, timeout=TIMEOUT_S, stream=True) as answer:
                if answer.status_code >= 400:
                    told = f"{_reason(answer.status_code)} ({answer.status_code})"
                    wait = answer.headers.get("Retry-After", "")
                    wait_s = float(wait) if wait.isdigit() else 0.0
                    raise Fault(told, answer.status_code in PASSING, answer.status_code, wait_s)
                data = bytearray()
                for piece in answer.iter_content(1 << 20):
                    data += piece
                    if len(data) > most:
                        raise Fault(NO_RANGES, passing=False)
                return answer.status_code, answer.headers, bytes(data)
        except requests.exceptions.SSLError:
            raise Fault("the server's certificate is not to be trusted", passing=False) from None
        except requests.exceptions.Timeout:
            raise Fault("no answer in time", passing=True) from None
        except requests.exceptions.ChunkedEncodingError:
            raise Fault("the answer was cut short", passing=True) from None
        except requests.exceptions.ConnectionError:
            raise Fault("no connection", passing=True) from None
        except (requests.exceptions.RequestException, ValueError):
            raise Fault("no URL that can be asked", passing=False) from None

    def _from_s3(self, href: str, start: int, stop: int) -> Answer:
        found = s3.read_range(href, start, stop)
        if isinstance(found, s3.Refusal):
            raise Fault(found.told, found.passing)
        return _whole(found.data, start, stop, found.size, found.version)

    def _sign(self, href: str) -> str:
        """The signed URL of one, from the last time while that is valid."""
        with self.lock:
            url, until = self.signed.get(href, ("", 0.0))
        if time.time() < until:
            return url
        assert self.access.sign_url is not None
        try:
            told = self._get(self.access.sign_url.replace("{href}", quote(href, safe="")), {}, SIGNED_BYTES)[2]
        except Fault as fault:
            raise Fault(f"no signature ({fault})", fault.passing, wait_s=fault.wait_s) from None
        url, until = _signed(told)
        with self.lock:
            self.signed[href] = url, until
            while len(self.signed) > SIGNED:
                self.signed.popitem(last=False)
        return url

    def _forget(self, href: str, used: str | None) -> None:
        """A signed URL that was refused; not one that another thread had signed since."""
        with self.lock:
            if self.signed.get(href, ("", 0.0))[0] == used:
                self.signed.pop(href, None)


@functools.lru_cache(maxsize=4)
def web_of(access: Access) -> Web:
    """This process's one."""
    return Web(access)


def _signed(answer: bytes) -> tuple[str, float]:
    """The URL, and until when it is to be used, in seconds since 1970."""
    try:
        told: Any = json.loads(answer)
        url = told["href"]
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise ValueError
        expiry = told.get("msft:expiry") or told.get("expiry")
        until = datetime.fromisoformat(expiry).timestamp() - BEFORE_EXPIRY_S if expiry else float("inf")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Fault('no signature (--sign-url wants {"href": "https://...", "msft:expiry": "..."})', False) from None
    return url, until


def _whole(data: bytes, start: int, stop: int, size: int, version: str | None) -> Answer:
    if len(data) != min(stop, size) - start:
        raise Fault("the answer was cut short", passing=True)
    return Answer(data, size, version)


def _shown(href: str) -> str:
    """For people: which file, without a query."""
    return bare(href).partition("?")[0]


def _reason(status: int) -> str:
    return requests.status_codes._codes.get(status, ("refused",))[0].replace("_", " ")

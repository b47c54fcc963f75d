"""Who may ask, and what browsers are told: the outermost layer of the application.

A page of another site must not read an archive through its visitor's browser. Such a site can point a name of its own
at 127.0.0.1, so a request by a name that is not ours is refused; an address needs no such check, for no site has one.
"""

import ipaddress
import logging
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from urbancross.serve.refused import Refused

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
UNFORESEEN = Refused(500, "something went wrong here, and was logged; try another query")


class Guard:
    """
    Args:
        names: under which the application may be asked, beside localhost and any address.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = ()) -> None:
        self.app = app
        self.names = {"localhost", *(name.lower().rstrip(".") for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = ended = False
        is_head = scope["method"] == "HEAD"

        async def guarded(message: Message) -> None:
            nonlocal begun, ended
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            else:
                ended = not message.get("more_body", False)
                message = {**message, "body": b""} if is_head else message
            await send(message)

        try:
            self.check(Headers(scope=scope))
            await self.app({**scope, "method": "GET"} if is_head else scope, receive, guarded)
        except Refused as refused:
            response = refused.response
            response.headers["Connection"] = "close"  # its body, if there is one, stays unread
            await response(scope, receive, guarded)
        except Exception:  # nobody foresaw it: logged whole, and told without a place of this machine
            log.exception("%s %s", scope["method"], scope["path"][:200])
            if begun and not ended:
                raise
            if not begun:
                await UNFORESEEN.response(scope, receive, guarded)

    def check(self, headers: Headers) -> None:
        """
        Raises:
            Refused: asked by another name, or by a page of another site.
        """
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self.is_ours(host):
            raise Refused(403, "asked by a name that is not known here; give it to urbancross serve as --hostname")
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            raise Refused(403, "asked by a page of another site; open the address of urbancross serve itself")

    def is_ours(self, host: str) -> bool:
        """Whether `name`, `name:8000`, `127.0.0.1:8000` or `[::1]:8000` may stand in the Host header."""
        name, port = split_host(host.lower())
        if port and not (port.isascii() and port.isdigit()):
            return False
        return is_address(name) or name.rstrip(".") in self.names


def split_host(host: str) -> tuple[str, str]:
    if host.startswith("["):
        name, end, rest = host[1:].partition("]")
        return (name, rest.removeprefix(":")) if end else ("", "")
    name, _, port = host.partition(":")
    return name, port


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

"""`serve`: from the command line to a server that listens, until it is told to stop."""

import asyncio
import ipaddress
import logging
import os
import socket
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from urbancross.config import ServeConfig
from urbancross.errors import ConfigError
from urbancross.progress import say
from urbancross.serve.app import create
from urbancross.serve.library import opened

HEAD_S = 20.0  # a request's first lines come within, and an answer is taken
CONNECTIONS = 512
MOST_AT_ONCE = 16  # searches, and as many tiles: 40 threads are all that starlette has
GRACE_S = 2  # that answers under way have when the server ends


class Impatient(H11Protocol):
    """Ends connections that hold a place and do nothing: no request comes, or its answer is not taken."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look_later()

    def _look_later(self) -> None:
        self.loop.call_later(HEAD_S, self._look, self.cycle, self.is_stuck)

    @property
    def is_stuck(self) -> bool:
        return self.conn.their_state is h11.IDLE or self.flow.write_paused

    def _look(self, cycle: Any, was_stuck: bool) -> None:
        if self.transport.is_closing():
            return
        if was_stuck and self.is_stuck and self.cycle is cycle:
            self.transport.abort()
            return
        self._look_later()


class Server(uvicorn.Server):
    """Says where it listens as soon as it does."""

    def __init__(self, config: uvicorn.Config, url: str) -> None:
        super().__init__(config)
        self.url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"{self.url}  (Ctrl-C ends it)", flush=True)


def run(config: ServeConfig) -> None:
    try:
        serve(config)
    except KeyboardInterrupt:  # by SIGTERM, too: that is how it ends
        return


def serve(config: ServeConfig) -> None:
    with listening(config.host, config.port) as found:
        if not is_loopback(found):
            say(f"note: --host {config.host}: whoever reaches this address can read the whole archive")
        library, left_out = opened(config.archive, config.embeddings, config.checkpoint or (), config.device)
        for line in left_out:
            say(f"note: {line}")
        app = create(
            library,
            upload_bytes=int(config.max_upload_mib * (1 << 20)),
            requests_per_second=config.requests_per_second,
            burst=config.burst,
            at_once=min(4 * (os.cpu_count() or 1), MOST_AT_ONCE),  # most wait for the encoder
            hostnames=(config.host, *(config.hostname or ())),
        )
        settings = uvicorn.Config(
            app,
            http=Impatient,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
        Server(settings, url_of(config.host, found.getsockname()[1])).run(sockets=[found])


def listening(host: str, port: int) -> socket.socket:
    """A socket of this address; nobody is let in yet.

    Raises:
        ConfigError: the address is none of this machine, or taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError):
        raise ConfigError(f"--host {host}: no such address; leave it out for 127.0.0.1") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise ConfigError(f"--port {port} of {host}: {error.strerror}; give another, or 0 for any") from None
    return found


def is_loopback(found: socket.socket) -> bool:
    return ipaddress.ip_address(found.getsockname()[0].partition("%")[0]).is_loopback


def url_of(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

"""One writer at a time: a small object beside the shards of a table that its writer keeps renewing.

Taking, renewing and letting go are compare-and-swap on the object's version, so of two that try one wins. How long a
holder has been silent is told by the store's own clock on both sides; no two machines' clocks are compared. A lease
keeps two runs from doing the same work; that a table stays whole rests on publishing alone.
"""

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from urbancross import storage
from urbancross.errors import LeaseError, UrbanCrossError
from urbancross.failpoints import hit
from urbancross.storage import Place

LEASE = ".lease.json"
RENEW_S = 10.0
SILENT_S = 60.0  # a holder on another machine that has not renewed for so long is taken for dead


class Lease:
    """A held lease; `check` raises once somebody else has it."""

    def __init__(self, table: Place) -> None:
        self.table, self.place = table, table / LEASE
        self.me = {**_this_process(), "renewed": 0}
        self.version = self._take()
        self.lost, self._ended = threading.Event(), threading.Event()
        self._renewer = threading.Thread(target=self._renew, name=f"lease of {table.name}", daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Raises:
        LeaseError: the lease is another's by now.
        """
        if self.lost.is_set():
            raise LeaseError(f"{self.table} was taken over by another run while this one was silent; nothing is lost")

    def let_go(self) -> None:
        self._ended.set()
        self._renewer.join()
        hit("lease.before-release")
        with contextlib.suppress(UrbanCrossError):  # who finds it held by a process that has ended takes it over
            self._swap({"released": True})

    def _take(self) -> str:
        made = storage.create(self.place, _bytes(self.me))
        while made is None:
            found = storage.read(self.place)
            if found is None:
                made = storage.create(self.place, _bytes(self.me))
                continue
            holder, version = _parsed(found[0]), found[1]
            silent_s = storage.age_s(self.place)
            if not (holder.get("released") or _has_ended(holder) or silent_s > SILENT_S):
                raise LeaseError(
                    f"{self.table} is being written by process {holder.get('process')} on {holder.get('host')} "
                    f"(last sign of life {max(silent_s, 0):.0f} s ago); wait for it or stop it, "
                    f"then run the same command again; after {SILENT_S:.0f} s of silence it takes over"
                )
            made = storage.swap(self.place, _bytes(self.me), version)
        return made

    def _swap(self, told: dict[str, Any]) -> str | None:
        """Write over our own lease; None when it is another's by now."""
        made = storage.swap(self.place, _bytes(told), self.version)
        found = storage.read(self.place) if made is None else None
        if found is not None and _parsed(found[0]) | {"renewed": 0} == self.me | {"renewed": 0}:
            made = storage.swap(self.place, _bytes(told), found[1])  # our last one came through, its answer did not
        return made

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_S):
            self.me["renewed"] += 1
            try:
                made = self._swap(self.me)
            except UrbanCrossError:
                continue  # nobody answers for now; whether it is still ours, the next answer tells
            if made is None:
                self.lost.set()
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # out of what it waits for
                return
            self.version = made


@contextlib.contextmanager
def held(table: Place) -> Iterator[Lease]:
    """Hold a table's lease while the block runs.

    Raises:
        LeaseError: another run holds it, or took it over meanwhile.
    """
    lease = Lease(table)
    try:
        yield lease
    except KeyboardInterrupt:
        lease.check()  # a lost lease interrupts the main thread
        raise
    finally:
        lease.let_go()


def _bytes(told: dict[str, Any]) -> bytes:
    return (json.dumps(told) + "\n").encode()


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        told = json.loads(data)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _this_process() -> dict[str, Any]:
    """Names this process among all that ever ran on all machines."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "processes": _link("/proc/self/ns/pid"),  # the namespace in which the number counts
    }


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the holder surely is a process of this very machine and namespace, and no more."""
    here = _this_process()
    if not here["boot"] or any(holder.get(key) != here[key] for key in ("host", "boot", "processes")):
        return False
    process = holder.get("process")
    return isinstance(process, int) and _started(process) != holder.get("started")


def _started(process: int) -> str:
    """When a process started, in ticks since boot; empty when there is none, or it only waits to be buried."""
    fields = _text(f"/proc/{process}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

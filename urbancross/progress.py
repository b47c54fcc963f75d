"""How long work shows itself: a bar on a terminal, a plain line now and then elsewhere. All of it goes to stderr.

What is said, and how far work has come, is heard by whoever keeps the events of a run.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_EVENTS = 60.0

_bars: list[Progress] = []  # those on the terminal now
_listeners: list[Callable[[dict[str, Any]], None]] = []

GIB = 1 << 30  # bytes


def count(number: float, what: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def say(line: str) -> None:
    """One line for the user on stderr, above the bar if there is one; and an event."""
    _show(line)
    _tell({"said": line})


def _show(line: str) -> None:
    if _bars:
        _bars[-1].console.print(line, markup=False, highlight=False)
    else:
        print(line, file=sys.stderr, flush=True)


def _tell(event: dict[str, Any]) -> None:
    for listener in _listeners:
        listener(event)


@contextmanager
def heard_by(listener: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Tell `listener` what is said while the block runs, and how far work comes: {"said"}, or {"what", "done", "total",
    "unit"}."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class Meter:
    """Counts units of one piece of work; `add` as they finish."""

    def __init__(self, what: str, total: int, unit: str, bar: Progress | None) -> None:
        self.what, self.total, self.unit, self.bar = what, total, unit, bar
        self.done, self.began, self.said, self.told = 0, time.monotonic(), time.monotonic(), 0.0
        self.task = bar.add_task(what, total=total, note="") if bar else None

    def add(self, count: int, note: str = "") -> None:
        self.done += count
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.said >= SECONDS_BETWEEN_LINES or self.done >= self.total:
            self.said = time.monotonic()
            seconds = max(self.said - self.began, 1e-6)
            tail = f", {note}" if note else ""
            line = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {self.done / seconds:.1f} a second{tail}"
            _show(line)
        if time.monotonic() - self.told >= SECONDS_BETWEEN_EVENTS or self.done >= self.total:
            self.told = time.monotonic()
            _tell({"what": self.what, "done": self.done, "total": self.total, "unit": self.unit})


@contextmanager
def meter(what: str, total: int, unit: str = "tiles") -> Iterator[Meter]:
    """Show progress of `total` units while the block runs."""
    if not sys.stderr.isatty():
        yield Meter(what, total, unit, None)
        return
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    ) as bar:
        _bars.append(bar)
        try:
            yield Meter(what, total, unit, bar)
        finally:
            _bars.remove(bar)

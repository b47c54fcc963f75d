"""One small actor that knows which worker is at which tiles of which shard.

A worker that dies takes its own account with it. So when a shard comes back because its worker died, the next attempt
is careful: it says each batch before it begins. The next death tells the batch, whose tiles are then tried one by one;
a tile with which a worker dies alone, and again, is left out with its reason. The rest of the shard goes through.
"""

import time
from collections import Counter
from dataclasses import dataclass, field

DEATHS_ALONE = 2  # bad luck may strike once
DEATHS_WITHOUT_PROGRESS = 10  # then it is not the tiles; more where one node may take more workers with it
REPORTS_PER_S = 100  # of all workers together
REPORT_S = 0.25  # between those of one worker, at least

DIED = "failed:its worker died each time it was tried"
HUNG = "failed:no progress within --stall-minutes each time it was tried"


@dataclass
class Shard:
    """What is known of the attempts at one shard. Rows count from the shard's first."""

    worker: str | None = None  # who is at it
    since: float = 0.0
    done: int = 0  # rows behind it in this attempt
    at: tuple[int, int] | None = None  # the rows it is at, end-exclusive; known of careful attempts alone
    suspects: list[tuple[int, int]] = field(default_factory=list)  # batches in which a worker died
    alone: Counter[int] = field(default_factory=Counter)  # deaths with a single row
    condemned: dict[int, str] = field(default_factory=dict)  # row to failure


@dataclass(frozen=True)
class Orders:
    """What a worker is told when it takes a shard.

    Attributes:
        careful: an attempt died before; say each step before taking it.
        suspects: row ranges to try first, one by one.
        condemned: rows to leave out, with their failure.
        stop: why nothing more is to be done.
        report_s: how long to wait from one report to the next.
    """

    careful: bool = False
    suspects: tuple[tuple[int, int], ...] = ()
    condemned: dict[int, str] = field(default_factory=dict)
    stop: str | None = None
    report_s: float = REPORT_S


class Watch:
    """The state behind the actor; a plain class, so that it can be tested without Ray."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget the last piece of work; a late word on it finds nothing here."""
        self.shards: dict[str, Shard] = {}
        self.finished = 0  # rows of finished shards, and of other work that `add` tells
        self.heard = time.monotonic()
        self.deaths_in_a_row = 0
        self.on_the_way: set[str] = set()  # shards that are being published
        self.stopping: str | None = None
        self.news: list[tuple[str, str | None]] = []  # lines for the user, with stacks to keep; not yet fetched

    def add(self, count: int) -> None:
        self.heard = time.monotonic()
        self.finished += count

    def back_to(self, count: int) -> None:
        """So many are done, whatever was counted before."""
        self.heard = time.monotonic()
        self.finished = count

    def start(self, name: str, worker: str, hung: str | None = None) -> Orders:
        """A worker takes a shard; if another one had it and never came back, that one died.

        Args:
            hung: the stacks that the last attempt left because it made no progress.
        """
        self.heard = time.monotonic()
        if self.stopping is not None:
            return Orders(stop=self.stopping)
        shard = self.shards.setdefault(name, Shard())
        died = shard.worker is not None
        if died:
            where = f" at rows {shard.at[0]:,} to {shard.at[1]:,}" if shard.at else f" after row {shard.done:,}"
            how = "died" if hung is None else "made no step within --stall-minutes and was ended"
            self.news.append((f"{name}: {shard.worker} {how}{where}; the shard is tried again", hung))
            self._blame(name, shard, hung is not None)
        self.on_the_way.discard(name)
        shard.worker, shard.at, shard.since, shard.done = worker, None, self.heard, 0
        if self.deaths_in_a_row >= max(DEATHS_WITHOUT_PROGRESS, len(self.shards) + 1):  # each once, and one again
            self.stopping = (
                f"workers died {self.deaths_in_a_row} times without getting through one batch, last on {name}; "
                "out of memory? lower --workers or --batch-tiles"
            )
            return Orders(stop=self.stopping)
        report_s = max(REPORT_S, len(self.shards) / REPORTS_PER_S)
        return Orders(died, tuple(shard.suspects), dict(shard.condemned), report_s=report_s)

    def _blame(self, name: str, shard: Shard, hung: bool) -> None:
        self.deaths_in_a_row += 1
        if shard.at is None:
            return
        start, stop = shard.at
        if stop - start > 1:
            shard.suspects.append(shard.at)
            return
        shard.alone[start] += 1
        if hung or shard.alone[start] >= DEATHS_ALONE:
            shard.condemned[start] = HUNG if hung else DIED
            self.news.append((f"{name}: row {start:,} is left out, {shard.condemned[start]}", None))

    def went_on(self, name: str, done: int, at: tuple[int, int] | None = None) -> None:
        """A worker has `done` rows of a shard behind it and, in a careful attempt, is about to work on rows `at`."""
        self.heard = time.monotonic()
        shard = self.shards.get(name)
        if shard is None:  # a late word of a worker that was taken for dead
            return
        shard.at = at
        if done > shard.done:
            shard.done, self.deaths_in_a_row = done, 0

    def publishing(self, name: str) -> None:
        """All rows are done; the shard is on its way to the disk."""
        self.heard = time.monotonic()
        if name in self.shards:
            self.shards[name].at = None
            self.on_the_way.add(name)

    def finish(self, name: str, rows: int) -> None:
        """A shard is published, or was before."""
        if self.shards.pop(name, None) is not None:
            self.heard = time.monotonic()
            self.on_the_way.discard(name)
            self.finished += rows
            self.deaths_in_a_row = 0

    def stop(self, why: str) -> None:
        """Tell workers to take no further shard."""
        self.stopping = why

    def writing(self) -> int:
        """How many shards are whole and on their way to the disk."""
        return len(self.on_the_way)

    def progress(self) -> tuple[int, float, list[str], list[tuple[str, str | None]]]:
        """Rows done, seconds since a worker last spoke, what each is at, and news."""
        now = time.monotonic()
        at_work = [
            f"{name} (rows {shard.at[0]:,} to {shard.at[1]:,}, {shard.worker})"
            if shard.at
            else f"{name} (after row {shard.done:,}, {shard.worker})"
            for name, shard in self.shards.items()
        ]
        news, self.news = self.news, []
        return self.finished + sum(shard.done for shard in self.shards.values()), now - self.heard, at_work, news

"""What runs inside an actor: one shard after the other, published whole, whatever a tile does to the process."""

import faulthandler
import logging
import os
import pickle
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import ray

from urbancross import schemas, storage
from urbancross.distributed.stages import Stage
from urbancross.distributed.watch import Orders
from urbancross.drafts import draft
from urbancross.errors import SchemaError, UrbanCrossError, WorkerError
from urbancross.failpoints import hit
from urbancross.runs import count_failures
from urbancross.storage import Place

log = logging.getLogger(__name__)


class ShardWorker(Protocol):
    """Works on one shard of an archive after the other."""

    def work(self, name: str) -> dict[str, Any]: ...


@runtime_checkable
class Steady(Protocol):
    """A transform that may be at one batch for longer than a stall, and says meanwhile that it moves."""

    def on_step(self, went_on: Callable[[], None]) -> None: ...


class Replica:
    """What one actor runs: its worker, built at the first shard, and the worker's own errors handed over as values.

    Ray keeps only the text of an exception that a worker raised, and the user needs its kind.
    """

    def __init__(self, worker: Callable[..., ShardWorker], arguments: tuple[Any, ...]) -> None:
        self.build, self.arguments = worker, arguments

    @cached_property
    def worker(self) -> ShardWorker:
        return self.build(*self.arguments)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[bytes]]:
        return {"outcome": [pickle.dumps(self.outcome(str(name))) for name in batch["shard"]]}

    def outcome(self, name: str) -> dict[str, Any] | UrbanCrossError:
        try:
            return self.worker.work(name)
        except UrbanCrossError as error:
            return error
        except Exception as error:  # nobody foresaw it; Ray would wrap it in a page of its own words
            log.exception("shard %s", name)
            return WorkerError(f"{name}: {type(error).__name__}: {error}; run the same command to go on")


class StageWorker:
    """One replica of a stage's transform: takes the name of a shard, publishes the shard, returns counts."""

    def __init__(self, archive: Place, stage: Stage, schema: pa.Schema, watch: Any, stall_s: float) -> None:
        self.archive, self.stage, self.schema, self.watch = archive, stage, schema, watch
        self.guard = StallGuard(stall_s, watch._actor_id.hex())
        self.me = f"process {os.getpid()} on {socket.gethostname()}"

    @cached_property
    def transform(self) -> Callable[[dict[str, pa.Table]], pa.Table]:
        hit("worker.load")
        transform = self.stage.transform(**self.stage.arguments)
        if isinstance(transform, Steady):
            transform.on_step(self.guard.went_on)
        return transform

    def take(self, name: str) -> Orders:
        """Tell the watch that this worker is at a shard now; what it says to that.

        Raises:
            WorkerError: nothing more is to be done.
        """
        orders = ray.get(self.watch.start.remote(self.full(name), self.me, self.guard.left_by_the_last(name)))
        if orders.stop is not None:
            raise WorkerError(orders.stop)
        return orders

    def full(self, name: str) -> str:
        """A shard's name, unlike that of any other table."""
        return f"{self.stage.output}/{name}"

    def work(self, name: str) -> dict[str, Any]:
        orders = self.take(name)
        place = self.archive / self.stage.output / name
        if not (orders.careful and storage.exists(place)):  # the one that died may have come to the end
            failures: list[str | None] = []
            tally = Counter[str]()
            with self.guard.at(name), draft(place, self.schema) as shard:
                for rows in self.make(name, self.stage.read(self.archive, name), orders):
                    shard.add(rows)
                    failures += rows["failure"].to_pylist()
                    tally.update(self.stage.tally(rows) if self.stage.tally else {})
                self.watch.publishing.remote(self.full(name))
                if shard.publish():
                    hit("worker.published")
                    self.watch.finish.remote(self.full(name), len(failures))
                    return {**count_failures(failures), "tally": tally}
        failures = storage.read_shard(place, ["failure"])["failure"].to_pylist()
        self.watch.finish.remote(self.full(name), len(failures))
        return count_failures(failures)

    def make(self, name: str, sources: dict[str, pa.Table], orders: Orders) -> Iterator[pa.Table]:
        """A row for every tile of the aligned source tables, in their order."""
        return in_order(self.parts(name, sources, orders))

    def parts(self, name: str, sources: dict[str, pa.Table], orders: Orders) -> Iterator[tuple[int, pa.Table]]:
        """Rows and which row of the sources the first belongs to, in the order in which they are tried."""
        tile_ids = next(iter(sources.values()))["tile_id"]
        for row, failure in orders.condemned.items():
            made = self.left_out({table: rows.slice(row, 1) for table, rows in sources.items()}, failure)
            yield row, self.checked(name, made, tile_ids.slice(row, 1))
        done, told = 0, time.monotonic()
        for start, stop in steps(len(tile_ids), self.stage.batch_tiles, orders):
            self.guard.went_on()
            if orders.careful:
                ray.get(self.watch.went_on.remote(self.full(name), done, (start, stop)))
            elif time.monotonic() - told > orders.report_s:
                self.watch.went_on.remote(self.full(name), done)
                told = time.monotonic()
            hit("worker.batch")
            made = self.transform({table: rows.slice(start, stop - start) for table, rows in sources.items()})
            yield start, self.checked(name, made, tile_ids.slice(start, stop - start))
            done += stop - start

    def checked(self, name: str, rows: pa.Table, tile_ids: pa.ChunkedArray) -> pa.Table:
        """
        Raises:
            SchemaError: they are not what the stage has to make of these tiles.
        """
        schemas.check(rows.schema, self.schema, self.full(name))
        if not rows["tile_id"].equals(tile_ids):
            raise SchemaError(f"{self.full(name)}: the stage lost or reordered tiles")
        return rows.select(self.schema.names).replace_schema_metadata(self.schema.metadata)

    def left_out(self, sources: dict[str, pa.Table], failure: str) -> pa.Table:
        """The row of a tile that the transform must not see: a tile that failed upstream, with a reason of its own."""
        marked = {table: _with_failure(row, failure) for table, row in sources.items()}
        return _with_failure(self.transform(marked), failure)


def steps(rows: int, batch: int, orders: Orders) -> Iterator[tuple[int, int]]:
    """Row ranges to work on in turn: those of suspects one by one, then the rest in batches; none that is condemned."""
    for first, last in orders.suspects:
        yield from ((row, row + 1) for row in range(first, last) if row not in orders.condemned)
    for start in range(0, rows, batch):
        stop = min(start + batch, rows)
        if (start, stop) not in orders.suspects and not (stop - start == 1 and start in orders.condemned):
            yield start, stop


def in_order(parts: Iterable[tuple[int, pa.Table]]) -> Iterator[pa.Table]:
    """Parts that begin at some row, from row 0 on; each as soon as those before it are there."""
    early: dict[int, pa.Table] = {}
    following = 0
    for start, rows in parts:
        early[start] = rows
        while following in early:
            part = early.pop(following)
            following += part.num_rows
            yield part


def _with_failure(rows: pa.Table, failure: str) -> pa.Table:
    column = rows.schema.get_field_index("failure")
    return rows.set_column(column, rows.schema.field(column), pa.array([failure] * rows.num_rows, pa.string()))


class StallGuard:
    """Ends this process, its stacks on file, when a shard makes no step for too long.

    The timer is a thread in C: it fires even where a library hangs and holds Python's lock. The next attempt at the
    shard, on the same machine, finds the file.
    """

    def __init__(self, seconds: float, run: str) -> None:
        self.seconds = seconds
        self.folder = Path(tempfile.gettempdir()) / f"urbancross-{run}"
        self.path = self.folder / f"{os.getpid()}.txt"
        self.file: IO[str] | None = None

    @contextmanager
    def at(self, name: str) -> Iterator[None]:
        with self._opened() as self.file:
            self.file.write(f"{name}\n")
            self.file.flush()
            self.went_on()
            try:
                yield
            finally:
                self.file = None
                faulthandler.cancel_dump_traceback_later()
        self.path.unlink(missing_ok=True)  # who was given this shard anew may have read it and taken it away
        with suppress(OSError):  # another worker is at work
            self.folder.rmdir()

    def _opened(self) -> IO[str]:
        while True:
            # A worker that ends just now may take the empty folder away, even while mkdir looks what is there.
            with suppress(FileNotFoundError, FileExistsError):
                self.folder.mkdir(mode=0o700, exist_ok=True)
                return open(self.path, "w")

    def went_on(self) -> None:
        if self.file is not None:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=self.file)

    def left_by_the_last(self, name: str) -> str | None:
        """The stacks of a process that was ended at this shard, if it was for that."""
        files: list[Path] = []
        with suppress(FileNotFoundError):
            files = list(self.folder.iterdir())
        for file in files:
            with suppress(FileNotFoundError):  # of a worker that ended just now
                shard, _, text = file.read_text(errors="replace").partition("\n")
                if shard == name:
                    file.unlink()
                    return text if text.startswith("Timeout (") else None
        return None

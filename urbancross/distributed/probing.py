"""Some batches of a stage, made as its run makes them and thrown away: the same workers, as many, at the same time."""

import random
import time
import uuid
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pyarrow as pa
import ray

from urbancross import storage
from urbancross.config import MakerConfig
from urbancross.distributed.following import watched
from urbancross.distributed.resources import workers_that_fit
from urbancross.distributed.session import interruptible
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import map_shards
from urbancross.distributed.workers import StageWorker
from urbancross.errors import WorkerError
from urbancross.forecast import Batch, Probe
from urbancross.progress import say
from urbancross.runs import Balance, count_failures
from urbancross.storage import Place

FEWEST = 3  # batches of one worker, its first aside
PATIENCE_S = 120.0  # for a worker that does not come to the gate
POLL_S = 0.05
MOST_LISTED = 100_000  # batches among which is chosen one by one


class Gate:
    """Opens when all workers have come, so that what is timed behind it is timed while all are at work."""

    def __init__(self, workers: int) -> None:
        self.workers, self.here, self.last = workers, set[str](), time.monotonic()

    def come(self, worker: str) -> None:
        self.here.add(worker)
        self.last = time.monotonic()

    def is_open(self) -> bool:
        return len(self.here) >= self.workers or time.monotonic() - self.last > PATIENCE_S


class ProbeWorker(StageWorker):
    """Makes one batch of a shard at a time, times it, and throws it away."""

    def __init__(self, gate: Any, scratch: Place, seconds: float, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.gate, self.scratch, self.seconds = gate, scratch, seconds
        self.made, self.deadline = 0, 0.0

    def work(self, name: str) -> dict[str, Any]:
        """
        Args:
            name: of a shard, and which of its rows; see `chosen`.
        """
        orders = self.take(name)
        if orders.careful or (self.made >= 2 and time.monotonic() > self.deadline):
            self.watch.finish.remote(self.full(name), 0)
            return {"lost": orders.careful}
        with self.guard.at(name):
            batch, failures = self.timed(*shard_and_rows(name))
        self.watch.finish.remote(self.full(name), batch.tiles)
        self.made += 1
        if batch.first:
            self.gate.come.remote(self.me)
            while not ray.get(self.gate.is_open.remote()):
                time.sleep(POLL_S)
            self.deadline = time.monotonic() + self.seconds
        return {"batch": batch, "failures": failures}

    def timed(self, shard: str, start: int, stop: int) -> tuple[Batch, list[str | None]]:
        began, clock = time.time(), [time.perf_counter()]
        sources = self.stage.read(self.archive, shard)
        clock.append(time.perf_counter())
        out = self.transform({table: rows.slice(start, stop - start) for table, rows in sources.items()})
        clock.append(time.perf_counter())
        out = out.select(self.schema.names).replace_schema_metadata(self.schema.metadata)
        data = storage.encode_shard(out)
        clock.append(time.perf_counter())
        place = self.scratch / f"{uuid.uuid4().hex}.parquet"
        storage.create(place, data)
        clock.append(time.perf_counter())
        storage.remove(place)
        read_s, transform_s, encode_s, create_s = (after - before for before, after in pairwise(clock))
        size_bytes = len(data) - len(storage.encode_shard(out.slice(0, 0)))
        batch = Batch(
            worker=self.me,
            tiles=stop - start,
            shard_tiles=next(iter(sources.values())).num_rows,
            read_s=read_s,
            transform_s=transform_s,
            encode_s=encode_s,
            create_s=create_s,
            size_bytes=size_bytes,
            began_s=began,
            ended_s=time.time(),
            first=self.made == 0,
        )
        return batch, out["failure"].to_pylist()


def probe(
    archive: Place,
    stage: Stage,
    rows: dict[str, int],
    config: MakerConfig,
    sample: int,
    minutes: float,
    connect_s: float,
    seed: int,
) -> tuple[Probe, Balance]:
    """Try a stage on some of the tiles that it has still to make.

    Args:
        rows: names and tiles of the shards that are still to be made.
        sample: tiles to try.

    Raises:
        WorkerError: no batch came through.
    """
    began = time.time()
    workers, _ = workers_that_fit(config, len(rows))
    config = config.model_copy(update={"workers": workers})
    names = chosen(rows, stage.batch_tiles, sample, workers, seed)
    scratch = archive / "runs" / f".probe-{uuid.uuid4().hex}"
    schema = pa.schema(list(stage.schema), storage.with_made_by(stage.schema, stage.maker(archive)).metadata)
    gate: Any = ray.remote(num_cpus=0)(Gate).remote(workers)
    batches, lost, balance, stall_s = list[Batch](), 0, Balance(), 60 * config.stall_minutes
    tiles = sum(stop - start for _, start, stop in map(shard_and_rows, names))
    shown = replace(stage, output=f"probe of {stage.output}")
    try:
        with interruptible(), watched(archive, shown.output, tiles, stall_s) as following:
            worker = partial(ProbeWorker, gate, scratch, 60 * minutes)
            for told in map_shards(names, worker, (archive, shown, schema, following.watch, stall_s), config):
                if "batch" not in told:
                    lost += told["lost"]
                    continue
                batches.append(told["batch"])
                counts = count_failures(told["failures"])
                made = {name: counts[name] for name in ("written", "skipped", "failed")}
                balance += Balance(read=told["batch"].tiles, **made)
        closed = time.time()
    finally:
        ray.kill(gate)
        storage.remove_folder(scratch)
    if not batches:
        raise WorkerError(f"{stage.output}: its workers died at every batch; try it on a few tiles first")
    if lost:
        say(f"{stage.output}: workers died at {lost} of {len(names)} batches; the forecast holds nothing of that")
    return Probe(tuple(batches), workers, connect_s, began, closed), balance


def shard_and_rows(name: str) -> tuple[str, int, int]:
    """A shard and a range of its rows, end-exclusive; a number behind them tells equal ones apart."""
    shard, start, stop, _ = name.rsplit(" ", 3)
    return shard, int(start), int(stop)


def chosen(rows: dict[str, int], batch: int, sample: int, workers: int, seed: int) -> list[str]:
    """Batches to try, anywhere in the shards, cut as the run will cut them; some twice where there are few.

    Args:
        rows: tiles of every shard.
        sample: tiles to try; each worker gets another batch besides, its first, and at least `FEWEST` more.
    """
    drawn = random.Random(seed)
    shards = [name for name, tiles in rows.items() if tiles]
    count = max(-(-sample // batch), FEWEST * workers) + workers
    if sum(-(-rows[name] // batch) for name in shards) <= MOST_LISTED:
        found = [(name, start) for name in shards for start in range(0, rows[name], batch)]
        drawn.shuffle(found)
    else:
        picked = drawn.choices(shards, [rows[name] for name in shards], k=count)
        found = [(name, drawn.randrange(-(-rows[name] // batch)) * batch) for name in picked]
    repeated = [found[number % len(found)] for number in range(count)]
    return [
        f"{name} {start} {min(start + batch, rows[name])} {number}" for number, (name, start) in enumerate(repeated)
    ]

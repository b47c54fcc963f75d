"""Shards in, shards out: the only place that publishes tables.

A stage reads the shards of its source tables, hands batches of tiles to a transform on Ray Data actors, and publishes
each finished shard in one step under the name of its source shard. A shard that exists is done, so the same command
finishes what a killed one left; the driver holds names and counts, never rows.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from urbancross import schemas, storage
from urbancross.distributed.session import Resources, connect, counted, own_error, require_resources
from urbancross.errors import ConfigError, SchemaError, UrbanCrossError
from urbancross.runs import Balance, count_failures
from urbancross.tables import Columns, fingerprint_of, read_aligned

SHARD_NAME = "part-{:05d}.parquet"
PLANNED_ONCE = ("source", "window", "captions", "bounds")


# Aligned batches of the source tables, by name, to one output row per source row, in order.
Transform = Callable[[dict[str, pa.Table]], pa.Table]


class ShardWorker(Protocol):
    """Works on one shard of an archive after the other."""

    def work(self, name: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Stage:
    """One table made from others.

    Attributes:
        output: the table's name, with its variant.
        sources: the tables it reads, name to columns (None: all); the first says which tiles there are.
        schema: of the output.
        transform: builds the transform inside an actor, once, from `arguments`; `arguments` holds names and paths.
        settings: what changes the result, kept in every shard's metadata.
        notes: what does not, kept there too.
    """

    output: str
    sources: Columns
    schema: pa.Schema
    transform: Callable[..., Transform]
    arguments: dict[str, Any]
    settings: dict[str, Any]
    batch_tiles: int = 64
    notes: dict[str, Any] = field(default_factory=dict)


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


class StageWorker:
    """One replica of a stage's transform: takes the name of a shard, publishes the shard, returns counts."""

    def __init__(self, archive: Path, stage: Stage, schema: pa.Schema, tally: Any) -> None:
        self.archive, self.stage, self.schema, self.tally = archive, stage, schema, tally
        self.transform = stage.transform(**stage.arguments)

    def work(self, name: str) -> dict[str, int]:
        sources = read_aligned(self.archive, self.stage.sources, name)
        tiles = next(iter(sources.values())).num_rows
        parts = []
        for start in range(0, tiles, self.stage.batch_tiles):
            part = {table: rows.slice(start, self.stage.batch_tiles) for table, rows in sources.items()}
            parts.append(self.transform(part))
            self.tally.add.remote(parts[-1].num_rows)
        out = pa.concat_tables(parts) if parts else self.schema.empty_table()
        schemas.check(out.schema, self.schema, f"{self.stage.output}/{name}")
        if not out["tile_id"].equals(next(iter(sources.values()))["tile_id"]):
            raise SchemaError(f"{self.stage.output}/{name}: the stage lost or reordered tiles")
        out = out.select(self.schema.names).replace_schema_metadata(self.schema.metadata)
        if storage.publish_shard(self.archive / self.stage.output / name, out):
            return count_failures(out["failure"].to_pylist())
        return {"written": 0, "skipped": 0, "failed": 0}  # somebody else was first: theirs counts as done before


def run_stage(archive: Path, stage: Stage, resources: Resources) -> Balance:
    """Make what is missing of a stage's output and count what happened to every tile.

    Raises:
        ConfigError: a source is missing, or the output was made with other settings.
        SchemaError: a source is of another schema.
    """
    maker = {
        "table": stage.output,
        "settings": stage.settings,
        "sources": {source: _digest(fingerprint_of(archive, source)) for source in stage.sources},
        "notes": stage.notes,
    }
    first = next(iter(stage.sources))
    names = storage.shards(archive / first)
    for source, columns in stage.sources.items():
        check_source(archive, source, columns, names)
    done = set(storage.shards(archive / stage.output))
    for name in sorted(done):
        refuse_other_maker(archive / stage.output / name, maker)
    rows = dict(zip(names, storage.row_counts(archive / first, names), strict=True))
    todo = [name for name in names if name not in done]
    before = sum(count for name, count in rows.items() if name in done)
    total = Balance(read=sum(rows.values()), done_before=before)
    if not todo:
        return total

    connect()
    schema = storage.with_made_by(stage.schema, maker)
    with counted(f"{stage.output} of {archive.name}", sum(rows[name] for name in todo)) as tally:
        counts = list(map_shards(todo, StageWorker, (archive, stage, schema, tally), resources))
    written, skipped, failed = (sum(int(count[key]) for count in counts) for key in ("written", "skipped", "failed"))
    made = Balance(written=written, skipped=skipped, failed=failed)
    lost = sum(rows[name] for name in todo) - made.written - made.skipped - made.failed
    return total + made + Balance(done_before=lost)  # shards that another run published meanwhile


def map_shards(
    names: Sequence[str], worker: Callable[..., ShardWorker], arguments: tuple[Any, ...], resources: Resources
) -> Iterator[dict[str, Any]]:
    """What replicas of `worker` return for shards, in any order.

    Raises:
        UrbanCrossError: a worker's own error.
        WorkerError: a worker ended otherwise.
    """
    require_resources(resources)
    # One block a shard, made in the driver: a task that had to cut blocks might find every CPU held by an actor.
    shards = ray.data.from_items([{"shard": name} for name in names], override_num_blocks=len(names))
    result = shards.map_batches(
        Replica,
        fn_constructor_args=(worker, arguments),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(resources.workers, len(names))),
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
    )
    try:
        for row in result.iter_rows():
            outcome = pickle.loads(row["outcome"])  # from a process of our own
            if isinstance(outcome, UrbanCrossError):
                raise outcome
            yield outcome
    except RayError as error:
        raise own_error(error) from error


def publish_plan(archive: Path, rows: list[dict[str, Any]], settings: dict[str, Any], shard_tiles: int) -> None:
    """Append planned tiles to the table `plan`, which every other table follows."""
    maker = {"table": "plan", "settings": settings, "sources": {}}
    table = archive / "plan"
    known = storage.shards(table)
    if known:
        refuse_other_maker(table / known[0], maker)
    schema = storage.with_made_by(schemas.PLAN, maker)
    taken: set[str] = set()
    wanted = {row["tile_id"]: row for row in rows} if known else {}
    for name in known:
        for row in storage.read_shard(table / name, ["tile_id", *PLANNED_ONCE]).to_pylist():
            taken.add(row["tile_id"])
            refuse_edited(table, row, wanted.get(row["tile_id"]))
    fresh = [row for row in rows if row["tile_id"] not in taken]
    for number, start in enumerate(range(0, len(fresh), shard_tiles), start=len(known)):
        shard = pa.Table.from_pylist(fresh[start : start + shard_tiles], schema=schema)
        if not storage.publish_shard(table / SHARD_NAME.format(number), shard):
            raise ConfigError(f"{table}: another ingest is planning into this archive; wait for it, then run again")


def refuse_edited(table: Path, planned: dict[str, Any], now: dict[str, Any] | None) -> None:
    """A tile that was planned before has to come with the same image and captions; a set may grow, not change."""
    if now is None:
        return
    for key in PLANNED_ONCE:
        value = list(now[key]) if isinstance(now.get(key), tuple) else now.get(key)
        if value != planned[key]:
            raise ConfigError(
                f"{table} holds {planned['tile_id']} with another {key}: the source was edited; "
                "ingest it into a new archive"
            )


def check_source(archive: Path, source: str, columns: Sequence[str] | None, names: Sequence[str]) -> None:
    """One line if a source lacks a shard or a column."""
    have = storage.shards(archive / source)
    lacking = sorted(set(names) - set(have))
    if lacking:
        raise ConfigError(f"{archive / source} lacks {lacking[0]}; run the job that makes it again")
    wanted = {
        "tiles": schemas.TILES,
        "plan": schemas.PLAN,
        "geotags": schemas.GEOTAGS,
        "captions": schemas.CAPTIONS,
        "segments": schemas.SEGMENTS,
    }.get(source.partition("@")[0])
    if wanted is not None and have:
        fields = [wanted.field(column) for column in ("tile_id", "failure", *(columns or wanted.names))]
        schemas.check(storage.read_schema(archive / source / have[0]), pa.schema(fields), f"{archive / source}")


def refuse_other_maker(shard: Path, maker: dict[str, Any]) -> None:
    """Stop before a table becomes a mixture of two settings."""
    found, wanted = _flat(storage.made_by(storage.read_schema(shard))), _flat(maker)
    changed = [key for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)]
    if changed:
        key = changed[0]
        raise ConfigError(
            f"{shard.parent} was made with {key}={found.get(key)}, now {key}={wanted.get(key)}; "
            f"give the old value, use another archive, or remove {shard.parent} to make it anew"
        )


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, inner in value.items():
        if key == "notes":
            continue
        name = f"{prefix}{key}".removeprefix("settings.")
        if isinstance(inner, dict):
            out |= _flat(inner, f"{name}.")
        else:
            out[name] = str(inner)
    return out


def _digest(maker: dict[str, Any]) -> str:
    return storage.digest_text(sorted(_flat(maker).items()).__repr__())

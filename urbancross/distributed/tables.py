"""Shards in, shards out: the only place that publishes tables.

A stage reads the shards of its source tables, hands batches of tiles to a transform on Ray Data actors, and publishes
each finished shard in one step under the name of its source shard. A shard that exists is done, so the same command
finishes what a killed one left; the driver holds names and counts, never rows.
"""

import contextlib
import json
import pickle
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from urbancross import lease, runs, storage
from urbancross.config import MakerConfig, WorkersConfig
from urbancross.distributed.following import watched
from urbancross.distributed.resources import options, workers_that_fit
from urbancross.distributed.session import connect, interruptible, own_error
from urbancross.distributed.stages import Stage
from urbancross.distributed.workers import Replica, ShardWorker, StageWorker
from urbancross.errors import BudgetError, ConfigError, SchemaError, UrbanCrossError, WorkerError
from urbancross.forecast import score, score_in_words
from urbancross.progress import say
from urbancross.runs import Balance
from urbancross.storage import Place
from urbancross.tables import MAKER, ROWS, check_source, claimed, differs, digest_of_maker, row_counts

SETTLE_S = 2.0  # `ray job stop` kills three seconds after it asks


def run_stage(archive: Place, stage: Stage, config: MakerConfig) -> Balance:
    """Make what is missing of a stage's output and count what happened to every tile.

    Raises:
        ConfigError: a source is missing, or the output was made with other settings.
        SchemaError: a source is of another schema.
        LeaseError: another run writes this table.
        BudgetError: more tiles failed than `--max-failed` allows.
        WorkerError: workers keep dying, or nothing moves.
    """
    began = time.monotonic()
    maker, table, first = stage.maker(archive), archive / stage.output, next(iter(stage.sources))
    names = storage.shards(archive / first)
    for source, columns in stage.sources.items():
        check_source(archive, source, columns, names)
    refuse_other_maker(table, maker)
    rows = row_counts(archive, first, names)
    if set(names) <= set(storage.shards(table)):
        return Balance(read=sum(rows.values()), done_before=sum(rows.values()))
    connect()
    with interruptible(), lease.held(table) as held, claim(table, maker, config):
        storage.sweep(table)
        done = set(storage.shards(table))
        todo = {name: rows[name] for name in names if name not in done}
        schema = storage.with_made_by(stage.schema, maker)
        made = work_through(archive, stage, todo, StageWorker, (archive, stage, schema), config, held)
        storage.sweep(table)  # of workers that died
    if made.written + made.skipped + made.failed != sum(todo.values()):
        raise SchemaError(
            f"{archive / 'plan' / ROWS} does not fit the shards of {first}; remove it: the shards say their rows, too"
        )
    told = beside_forecast(archive, stage.output, maker, config.workers, sum(todo.values()), time.monotonic() - began)
    made = made.with_files(**told)
    return Balance(read=sum(rows.values()), done_before=sum(rows.values()) - sum(todo.values())) + made


def beside_forecast(
    archive: Place, table: str, maker: dict[str, Any], workers: int, tiles: int, took_s: float
) -> dict[str, Any]:
    """Say how the newest forecast of this table came true, if there is one; what is to be kept of it, by name."""
    try:
        told = runs.forecast_of(archive, table, digest_of_maker(maker), workers)
    except UrbanCrossError as error:  # the work is done; it does not fail by this
        say(f"note: no forecast to compare with: {error}")
        return {}
    found = score(told, tiles, took_s) if told is not None else None
    if found is None:
        return {}
    say(f"{table}: {score_in_words(found)}")
    return {"forecast_score": {"table": table, **found}}


def work_through(
    archive: Place,
    stage: Stage,
    rows: dict[str, int],
    worker: Callable[..., ShardWorker],
    arguments: tuple[Any, ...],
    config: MakerConfig,
    held: lease.Lease,
) -> Balance:
    """Hand shards to workers under a watch, and add up what became of their tiles.

    Args:
        rows: the shards' names and numbers of tiles.
        worker: built in an actor from `arguments`, the watch and the seconds after which a worker is stuck.
    """
    budget = runs.allowed_failures(config.max_failed, sum(rows.values()))
    made, reasons, skips, tally = Balance(), Counter[str](), Counter[str](), Counter[str]()
    stall_s = 60 * config.stall_minutes
    with watched(archive, stage.output, sum(rows.values()), stall_s) as following:
        try:
            for counts in map_shards(list(rows), worker, (*arguments, following.watch, stall_s), config):
                held.check()
                reasons.update(counts.pop("reasons"))
                skips.update(counts.pop("skips"))
                tally.update(counts.pop("tally", {}))
                made += Balance(**counts)
                if budget is not None and made.failed > budget:
                    raise BudgetError(
                        f"{made.failed:,} tiles failed, more than --max-failed {config.max_failed} allows "
                        f"({runs.most_common(reasons)}); mend the cause and run the same command to go on, then: "
                        f"urbancross retry --archive {archive} --table {stage.output}"
                    )
        except BaseException as error:
            settle(following.watch)
            if isinstance(error, KeyboardInterrupt) and following.why is not None:
                raise WorkerError(following.why) from None
            raise
    if made.failed:
        say(f"{stage.output}: failed {runs.most_common(reasons)}")
    if made.skipped:
        say(f"{stage.output}: skipped {runs.most_common(skips)}")
    if told := [f"{count:,} {what}" for what, count in tally.items() if count]:
        say(f"{stage.output}: {', '.join(told)}")
    return made.with_files(**({"tally": dict(tally)} if tally else {}))


def settle(watch: Any) -> None:
    """Let workers take no further shard, and give those that are whole a moment to get to the disk."""
    deadline = time.monotonic() + SETTLE_S
    with contextlib.suppress(RayError):
        watch.stop.remote("stopped; run the same command again to go on")
        while ray.get(watch.writing.remote(), timeout=SETTLE_S) and time.monotonic() < deadline:
            time.sleep(0.05)


def map_shards(
    names: Sequence[str], worker: Callable[..., ShardWorker], arguments: tuple[Any, ...], config: WorkersConfig
) -> Iterator[dict[str, Any]]:
    """What replicas of `worker` return for shards, in any order.

    Raises:
        UrbanCrossError: a worker's own error.
        WorkerError: a worker ended otherwise.
    """
    if not names:
        return
    first, most = workers_that_fit(config, len(names))
    # One block a shard, made in the driver: a task that had to cut blocks might find every CPU held by an actor.
    shards = ray.data.from_items([{"shard": name} for name in names], override_num_blocks=len(names))
    result = shards.map_batches(
        Replica,
        fn_constructor_args=(worker, arguments),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=first, max_size=most),
        **options(config),
    )
    try:
        for row in result.iter_rows():
            outcome = pickle.loads(row["outcome"])  # from a process of our own
            if isinstance(outcome, UrbanCrossError):
                raise outcome
            yield outcome
    except RayError as error:
        raise own_error(error) from error


def refuse_other_maker(table: Place, maker: dict[str, Any]) -> None:
    """Stop before a table becomes a mixture of two settings.

    Raises:
        ConfigError: the table was made, or is being made, with other settings; it names the first that differs.
    """
    found = claimed(table)
    if found is None:
        names = storage.shards(table)
        if not names:
            return
        found = storage.made_by(storage.read_schema(table / names[0]))
    if changed := differs(found, maker):
        raise ConfigError(
            f"{table} was made with {changed}; "
            f"give the old value, use another archive, or remove {table} to make it anew"
        )


@contextlib.contextmanager
def claim(table: Place, maker: dict[str, Any], config: MakerConfig) -> Iterator[None]:
    """Say beside the shards what makes them, before the first; taken back where the block fails before there is one.

    Raises:
        ConfigError: another maker was here first.
    """
    told = {**maker, "run": {"kind": type(config).__name__, "config": config.model_dump(mode="json")}}
    ours = storage.create(table / MAKER, (json.dumps(told, indent=2) + "\n").encode()) is not None
    if not ours:
        refuse_other_maker(table, maker)
    try:
        yield
    except BaseException:
        if ours and not storage.shards(table):
            storage.remove(table / MAKER)
        raise

"""`verify`: do the shards of a table hold what they should, and does making a part of it once more give the same?"""

import random
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import schemas, storage
from urbancross.config import VerifyConfig
from urbancross.distributed.following import watched
from urbancross.distributed.rebuilding import stage_of
from urbancross.distributed.session import connect, interruptible
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import map_shards
from urbancross.distributed.workers import StageWorker
from urbancross.errors import ConfigError, SchemaError
from urbancross.maps import table as whole_map
from urbancross.runs import Balance
from urbancross.storage import Place
from urbancross.tables import NO_TILES, ROWS, claimed, differs, read_rows, require_shards, row_counts

TOLERANCE = 1e-3  # of a float made once more: a batch of another size, or another CPU, rounds otherwise
NO_STAGE = {"plan", *NO_TILES}
SHOWN = 20


class VerifyWorker(StageWorker):
    """Compares a shard with its source, its maker and, for a batch, with what its stage makes now."""

    def __init__(self, batches: dict[str, int], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches = batches

    def work(self, name: str) -> dict[str, Any]:
        self.take(name)
        with self.guard.at(name):
            problems, rows = self.problems_of(name)
        self.watch.finish.remote(self.full(name), rows)
        return {
            "shard": name,
            "rows": rows,
            "problems": [f"{self.stage.output}/{name}: {problem}" for problem in problems],
        }

    def problems_of(self, name: str) -> tuple[list[str], int]:
        try:
            found = read_rows(self.archive, self.stage.output, name)
            schemas.check(found.schema, self.schema, "it")
            sources = self.stage.read(self.archive, name)
        except SchemaError as error:
            return [str(error)], 0
        ids = next(iter(sources.values()))["tile_id"]
        if found.num_rows != len(ids):
            return [f"{found.num_rows} rows, its source has {len(ids)}"], found.num_rows
        if not found["tile_id"].equals(ids):
            return ["other tiles than its source, or in another order"], found.num_rows
        problems = []
        if len(ids.unique()) < len(ids):
            problems.append("a tile stands in it twice")
        if changed := differs(storage.made_by(found.schema), storage.made_by(self.schema)):
            problems.append(f"made with {changed}")
        if name in self.batches and not problems:
            had = set(storage.read_schema(self.archive / self.stage.output / name).names)
            problems += self.remake(found, sources, self.batches[name], had)
        return problems, found.num_rows

    def remake(self, found: pa.Table, sources: dict[str, pa.Table], number: int, had: set[str]) -> list[str]:
        """
        Args:
            had: columns of the shard; one of an earlier version lacks some.
        """
        batch = self.stage.batch_tiles
        start = number % max(-(-found.num_rows // batch), 1) * batch
        now = self.transform({table: rows.slice(start, batch) for table, rows in sources.items()})
        then = found.slice(start, batch)
        return [
            f"row {start + row:,} ({old['tile_id']}): {column} is {str(old[column])[:60]}, now {str(new[column])[:60]}"
            for row, (old, new) in enumerate(zip(then.to_pylist(), now.to_pylist(), strict=True))
            for column in self.schema.names
            if column in had and not alike(old[column], new[column])
        ][:1]


def alike(old: Any, new: Any) -> bool:
    """Equal, or numbers that differ by rounding alone."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(alike, old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(alike(old[key], new[key]) for key in old)
    if isinstance(old, float) and isinstance(new, float):
        return bool(np.isclose(old, new, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))
    return bool(old == new)


def run(config: VerifyConfig) -> Balance:
    archive = storage.archive(config.archive)
    tables = [config.table] if config.table else storage.tables(archive)
    maps = [name for name in tables if name.startswith("map@") and (config.table or claimed(archive / name))]
    stages = []
    for table in tables:
        if table.startswith("map@") or (not config.table and table.partition("@")[0] in NO_STAGE):
            continue
        if config.table or claimed(archive / table) is not None:
            stages.append(stage_of(archive, table))
        elif storage.shards(archive / table):
            print(f"{table}: does not say what made it, left out")
    if not stages and not maps:
        raise ConfigError(f"{archive} has no table yet; make one first (see urbancross --help)")
    balance, problems = Balance(), [problem for table in maps for problem in verify_map(archive, table)]
    if stages:
        connect()
    for stage in stages:
        found, wrong = verify(archive, stage, config)
        balance, problems = balance + found, problems + wrong
    for problem in problems[:SHOWN]:
        print(problem)
    if problems:
        raise SchemaError(
            f"{len(problems)} things are not as they should be (above: {min(len(problems), SHOWN)}); "
            "remove those shards and run the jobs that made them again"
        )
    return balance


def verify_map(archive: Place, table: str) -> list[str]:
    """A map's table: whole, and every part as it was written; it has no tiles to balance."""
    require_shards(archive, table)
    problems = whole_map.problems(archive / table)
    rows = sum((whole_map.parts(archive / table) or {}).values())
    print(f"{table}: {len(storage.shards(archive / table)):,} parts, {rows:,} features")
    return problems


def verify(archive: Place, stage: Stage, config: VerifyConfig) -> tuple[Balance, list[str]]:
    """One table: its tiles as `done before` where their shard is right, as failed where it is not."""
    first = next(iter(stage.sources))
    names, wanted = storage.shards(archive / stage.output), storage.shards(archive / first)
    problems = [f"{stage.output}/{name}: {first} has no such shard" for name in sorted(set(names) - set(wanted))]
    if changed := differs(claimed(archive / stage.output) or {}, stage.maker(archive)):
        problems.append(f"{stage.output} was made with {changed}")
    names = [name for name in names if name in set(wanted)]
    rows = row_counts(archive, first, names)
    choice = random.Random(config.seed)
    batches = {name: choice.randrange(1 << 30) for name in choice.sample(names, min(config.sample, len(names)))}
    schema = storage.with_made_by(stage.schema, stage.maker(archive))
    stall_s = 60 * config.stall_minutes
    balance = Balance()
    with interruptible(), watched(archive, stage.output, sum(rows.values()), stall_s) as following:
        arguments = (archive, stage, schema, following.watch, stall_s)
        for told in map_shards(names, partial(VerifyWorker, batches), arguments, config):
            wrong = bool(told["problems"])
            problems += told["problems"]
            if not wrong and told["rows"] != rows[told["shard"]]:
                problems.append(
                    f"plan/{ROWS}: {told['shard']} has {told['rows']} rows, not {rows[told['shard']]}; remove it"
                )
            balance += Balance(
                read=told["rows"], done_before=0 if wrong else told["rows"], failed=told["rows"] if wrong else 0
            )
    lacking = len(wanted) - len(names)
    note = f", {lacking:,} shards are still to be made" if lacking else ""
    print(f"{stage.output}: {len(names):,} shards, {balance.read:,} tiles, {len(batches)} batches made again{note}")
    return balance, problems

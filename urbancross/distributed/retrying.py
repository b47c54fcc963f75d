"""`retry`: the failed rows of a table once more; every other row stays byte for byte as it was read."""

from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from urbancross import lease, schemas, storage
from urbancross.config import RetryConfig
from urbancross.distributed.rebuilding import stage_of
from urbancross.distributed.session import connect, interruptible
from urbancross.distributed.tables import refuse_other_maker, work_through
from urbancross.distributed.workers import StageWorker
from urbancross.errors import StorageError
from urbancross.runs import Balance, count_failures
from urbancross.tables import read_aligned, row_counts

NO_INPUT = "skipped:no input"


class RetryWorker(StageWorker):
    """Makes the failed rows of a shard anew and publishes the shard only if it is still the one that was read."""

    def __init__(self, reason: str | None, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.reason = reason

    def work(self, name: str) -> dict[str, Any]:
        orders = self.take(name)
        place = self.archive / self.stage.output / name
        with self.guard.at(name):
            found = storage.read(place)
            if found is None:
                raise StorageError(f"{place} is gone; run the job that makes it again")
            old = schemas.completed(storage.decode_shard(place, found[0]), self.stage.output)
            failures = old["failure"].to_pylist()
            inputs = read_aligned(self.archive, {next(iter(self.stage.sources)): []}, name)
            again = [
                row
                for row, (failure, upstream) in enumerate(
                    zip(failures, next(iter(inputs.values()))["failure"].to_pylist(), strict=True)
                )
                if self.is_wanted(failure, upstream)
            ]
            counts = count_failures([])
            if again:
                sources = self.stage.read(self.archive, name)
                wanted = {table: rows.take(again) for table, rows in sources.items()}
                new = pa.concat_tables(self.make(name, wanted, orders))
                counts = count_failures(new["failure"].to_pylist())
                order = [len(failures) + again.index(row) if row in again else row for row in range(len(failures))]
                old = old.select(new.schema.names).cast(new.schema)
                whole = pa.concat_tables([old, new]).take(order)
                self.watch.publishing.remote(self.full(name))
                if storage.swap(place, storage.encode_shard(whole), found[1]) is None:
                    raise StorageError(f"{place} was replaced by another run meanwhile; run the same command again")
        self.watch.finish.remote(self.full(name), len(failures))
        return {**counts, "done_before": len(failures) - len(again)}

    def is_wanted(self, failure: str | None, upstream: str | None) -> bool:
        if failure is None or (self.reason is not None and self.reason not in failure):
            return False
        return failure.startswith("failed:") or (failure.startswith(NO_INPUT) and upstream is None)


def run(config: RetryConfig) -> Balance:
    archive = storage.archive(config.archive)
    stage = stage_of(archive, config.table)
    stage = replace(stage, arguments=stage.arguments | stage.on_retry)
    maker, table = stage.maker(archive), archive / stage.output
    refuse_other_maker(table, maker)
    names = storage.shards(table)
    rows = row_counts(archive, stage.output, names)
    connect()
    with interruptible(), lease.held(table) as held:
        storage.sweep(table)
        worker = partial(RetryWorker, config.reason)
        schema = storage.with_made_by(stage.schema, maker)
        made = work_through(archive, stage, rows, worker, (archive, stage, schema), config, held)
    return Balance(read=sum(rows.values())) + made

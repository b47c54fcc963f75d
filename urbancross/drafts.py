"""How a shard is written: as a Parquet file, a group of rows at a time, so that who makes one never holds it whole."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from urbancross.failpoints import writing
from urbancross.stores import Place, store_of

GROUP_ROWS = 256
# Pages of a megabyte, where Arrow would gather all images of a group in one. No dictionaries:
# with them vectors take half as much again.
LAYOUT = {"compression": "zstd", "write_batch_size": 16, "use_dictionary": False}


class Groups:
    """Writes rows as they come, each group once it is full; equal rows give equal bytes, however they were cut."""

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self.writer = pq.ParquetWriter(file, schema, **LAYOUT)
        self.waiting: list[pa.Table] = []

    def add(self, rows: pa.Table) -> None:
        """
        Args:
            rows: of the schema, any number of them.
        """
        self.waiting.append(rows)
        while sum(part.num_rows for part in self.waiting) >= GROUP_ROWS:
            self._write()

    def finish(self) -> None:
        if any(part.num_rows for part in self.waiting):
            self._write()
        self.writer.close()

    def _write(self) -> None:
        rows = pa.concat_tables(self.waiting)
        group, self.waiting = rows.slice(0, GROUP_ROWS).combine_chunks(), [rows.slice(GROUP_ROWS)]
        del rows  # what the group is a copy of
        self.writer.write_table(group)


class Draft:
    """A shard that comes in parts; it is seen by nobody before `publish`."""

    def __init__(self, path: Place, file: IO[bytes], schema: pa.Schema) -> None:
        self.path, self.file, self.store = path, file, store_of(path)
        with self.store.writing_to(path):
            self.groups = Groups(file, schema)

    def add(self, rows: pa.Table) -> None:
        """
        Raises:
            StorageError: there is no room for them.
        """
        with self.store.writing_to(self.path):
            self.groups.add(rows)

    def publish(self) -> bool:
        """Give the shard its final name in one step; False when the name was taken before.

        Raises:
            StorageError: it cannot be written.
        """
        with self.store.writing_to(self.path):
            writing(self.path.name, "halfway")
            self.groups.finish()
            return self.store.create_from(self.path, self.file) is not None


@contextmanager
def draft(path: Place, schema: pa.Schema) -> Iterator[Draft]:
    """A shard to fill; what was not published when the block ends is gone.

    Raises:
        StorageError: nothing can be written there.
    """
    with store_of(path).draft(path) as file:
        shard = Draft(path, file, schema)
        try:
            yield shard
        finally:
            with suppress(OSError, pa.ArrowException):  # a writer left open would write when it is collected
                shard.groups.writer.close()

"""What a stage is: one table made from others."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from urbancross.storage import Place
from urbancross.tables import Columns, digest_of_maker, fingerprint_of, read_aligned

# Aligned batches of the source tables, by name, to one output row per source row, in order.
Transform = Callable[[dict[str, pa.Table]], pa.Table]


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
        on_retry: arguments that are otherwise when failed tiles are tried again.
        prepare: what is done to the sources of a whole shard before they are cut into batches.
        tally: what to count of a finished shard beside its failures, for the user.
    """

    output: str
    sources: Columns
    schema: pa.Schema
    transform: Callable[..., Transform]
    arguments: dict[str, Any]
    settings: dict[str, Any]
    batch_tiles: int = 64
    notes: dict[str, Any] = field(default_factory=dict)
    on_retry: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[dict[str, pa.Table]], dict[str, pa.Table]] | None = None
    tally: Callable[[pa.Table], dict[str, int]] | None = None

    def read(self, archive: Place, name: str) -> dict[str, pa.Table]:
        """The aligned source tables of one shard.

        Raises:
            SchemaError: they do not hold the same tiles.
        """
        sources = read_aligned(archive, self.sources, name)
        return sources if self.prepare is None else self.prepare(sources)

    def maker(self, archive: Place) -> dict[str, Any]:
        """What makes the table, as every shard of it will say.

        Raises:
            ConfigError: a source is missing.
        """
        return {
            "table": self.output,
            "settings": self.settings,
            "sources": {source: digest_of_maker(fingerprint_of(archive, source)) for source in self.sources},
            "notes": self.notes,
        }

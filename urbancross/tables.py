"""Tables of an archive, read: which there are, what made them, and shards of several side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from urbancross import storage
from urbancross.errors import ConfigError, SchemaError

Columns = Mapping[str, Sequence[str] | None]  # table name to the columns wanted; None: all


def read_aligned(archive: Path, sources: Columns, name: str) -> dict[str, pa.Table]:
    """Shard `name` of several tables, which must hold the same tiles in the same order.

    Raises:
        SchemaError: they do not.
    """
    tables = {
        table: storage.read_shard(archive / table / name, None if columns is None else ["tile_id", "failure", *columns])
        for table, columns in sources.items()
    }
    first, *others = tables
    for other in others:
        if not tables[other]["tile_id"].equals(tables[first]["tile_id"]):
            raise SchemaError(f"{archive / other / name} does not hold the tiles of {first}/{name}; make it again")
    return tables


def table_of(archive: Path, kind: str, variant: str | None, flag: str) -> str:
    """The name of the one table of a kind, such as `captions@given`.

    Raises:
        ConfigError: none, or several and the flag does not say which.
    """
    found = sorted(path.name for path in archive.glob(f"{kind}@*") if storage.shards(path))
    if variant is not None:
        if f"{kind}@{variant}" in found:
            return f"{kind}@{variant}"
        raise ConfigError(f"--{flag} {variant}: {archive} has no {kind}@{variant}; it has {', '.join(found) or 'none'}")
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"{archive} has no {kind} table; make one first (see urbancross --help)")
    raise ConfigError(
        f"{archive} has several: {', '.join(found)}; say which with --{flag} {found[0].partition('@')[2]}"
    )


def fingerprint_of(archive: Path, table: str) -> dict[str, Any]:
    """What made a table, from its first shard.

    Raises:
        ConfigError: there is no such table.
    """
    names = storage.shards(archive / table)
    if not names:
        verb = {"tiles": "ingest", "plan": "ingest", "geotags": "geotag"}.get(table, table.partition("@")[0])
        raise ConfigError(f"{archive} has no table {table}; make it with: urbancross {verb} --archive {archive} ...")
    return storage.made_by(storage.read_schema(archive / table / names[0]))


def digest_of(archive: Path, table: str) -> str:
    """Digest of what made a table and of how many tiles it holds."""
    names = storage.shards(archive / table)
    told = json.dumps(fingerprint_of(archive, table) | {"notes": None}, sort_keys=True)
    return storage.digest_text(f"{told} {sum(storage.row_counts(archive / table, names))}")


def has_split(archive: Path, split: str) -> bool:
    """Whether any tile of an archive is of this split."""
    return any(
        split in storage.read_shard(archive / "tiles" / name, ["split"])["split"].unique().to_pylist()
        for name in storage.shards(archive / "tiles")
    )


def require_split(archive: Path, split: str) -> None:
    """Stop before any work where no tile is of this split.

    Raises:
        ConfigError: there is none.
    """
    if storage.shards(archive / "tiles") and not has_split(archive, split):
        raise ConfigError(f"{archive} has no tile of split {split}; choose another with --split")


def embeddings_by(archive: Path, fingerprint: str) -> str | None:
    """The embeddings table that the weights of a fingerprint made, if there is one."""
    for table in sorted(archive.glob("embeddings@*")):
        for name in storage.shards(table)[:1]:
            if storage.made_by(storage.read_schema(table / name)).get("settings", {}).get("checkpoint") == fingerprint:
                return table.name
    return None

"""Tables of an archive, read: which there are, what made them, and shards of several side by side."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from urbancross import schemas, storage
from urbancross.errors import ConfigError, SchemaError
from urbancross.storage import PARALLEL_READS, Place

Columns = Mapping[str, Sequence[str] | None]  # table name to the columns wanted; None: all

MAKER = ".made-by.json"  # beside the shards: what makes them, claimed before the first one
AUDIT = "audit.json"  # in an archive: which splits leak into which
MADE_BY_VERB = {
    "captions": "caption",
    "segments": "segment",
    "ranks": "rank",
    "embeddings": "embed",
    "features": "pretrain",
}
ROWS = ".rows.json"  # in `plan`: rows of each of its shards, and so of every table's
FIRST = ("plan", "tiles")  # tables that say which tiles there are
NO_TILES = {"map", "runs", "checkpoints", "index", "stac"}  # kinds of what lies in an archive and has no row for a tile
NOT_RESULT = {"notes", "run"}  # what a maker says beside what changes its result
VERBS = {
    "plan": "ingest",
    "tiles": "ingest",
    "captions@given": "ingest",
    "geotags": "geotag",
    "map": "geotag",
    "captions": "caption",
    "segments": "segment",
    "ranks": "rank",
    "embeddings": "embed",
    "segment_embeddings": "embed",
    "features": "pretrain",
    "hashes": "audit-splits",
    "duplicates": "duplicates",
}


def read_aligned(archive: Place, sources: Columns, name: str) -> dict[str, pa.Table]:
    """Shard `name` of several tables, which must hold the same tiles in the same order.

    Raises:
        SchemaError: they do not.
    """
    tables = {
        table: read_rows(archive, table, name, None if columns is None else ["tile_id", "failure", *columns])
        for table, columns in sources.items()
    }
    first, *others = tables
    for other in others:
        if not tables[other]["tile_id"].equals(tables[first]["tile_id"]):
            raise SchemaError(f"{archive / other / name} does not hold the tiles of {first}/{name}; make it again")
    return tables


def read_rows(archive: Place, table: str, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One shard of a table; columns that its version did not have yet are null.

    Raises:
        SchemaError: it lacks another of `columns`.
    """
    place, added = archive / table / name, schemas.ADDED.get(table, set())
    if columns is None:
        return schemas.completed(storage.read_shard(place), table)
    if not added & set(columns):
        return storage.read_shard(place, list(columns))
    late = added - set(storage.read_schema(place).names)
    known = dict.fromkeys([*columns, *(["bounds"] if "bbox" in late & set(columns) else [])])
    found = storage.read_shard(place, [name for name in known if name not in late])
    return schemas.completed(found, table).select(list(columns))


def check_source(archive: Place, source: str, columns: Sequence[str] | None, names: Sequence[str]) -> None:
    """Stop before any work where a table lacks a shard or a column.

    Args:
        columns: that are wanted; None: all.
        names: of the shards that are wanted.

    Raises:
        ConfigError: a shard is not there.
        SchemaError: a column is not there, or of another type.
    """
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
        "ranks": schemas.RANKS,
        "hashes": schemas.HASHES,
    }.get(source.partition("@")[0])
    if wanted is not None and have:
        found = storage.read_schema(archive / source / have[0])
        late = schemas.ADDED.get(source, set()) - set(found.names)
        names = [name for name in ("tile_id", "failure", *(columns or wanted.names)) if name not in late]
        schemas.check(found, pa.schema([wanted.field(name) for name in names]), f"{archive / source}")


def of_tiles(archive: Place) -> list[str]:
    """The folders of an archive that may be tables with a row for every tile."""
    return [name for name in storage.tables(archive) if name.partition("@")[0] not in NO_TILES]


def find_tile(archive: Place, tile_id: str) -> tuple[str, int]:
    """The shard and the row of a tile, the same in every table.

    Raises:
        ConfigError: no table has it.
    """
    for table in FIRST:
        names = storage.shards(archive / table)
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            for start in range(0, len(names), PARALLEL_READS):
                some = names[start : start + PARALLEL_READS]
                columns = pool.map(lambda name: _ids(archive / table / name), some)  # noqa: B023
                for name, ids in zip(some, columns, strict=True):
                    if tile_id in ids:
                        return name, ids.index(tile_id)
    raise ConfigError(f"{archive} has no tile {tile_id}; urbancross search --archive {archive} TEXT prints ids")


def _ids(shard: Place) -> list[str]:
    return storage.read_shard(shard, ["tile_id"])["tile_id"].to_pylist()


def table_of(archive: Place, kind: str, variant: str | None, flag: str) -> str:
    """The name of the one table of a kind, such as `captions@given`.

    Raises:
        ConfigError: none, or several and the flag does not say which.
    """
    found = [name for name in storage.tables(archive, kind) if storage.shards(archive / name)]
    if variant is not None:
        if f"{kind}@{variant}" in found:
            return f"{kind}@{variant}"
        raise ConfigError(f"--{flag} {variant}: {archive} has no {kind}@{variant}; it has {', '.join(found) or 'none'}")
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"{archive} has no {kind} table; make one first with urbancross {MADE_BY_VERB[kind]}")
    raise ConfigError(
        f"{archive} has several: {', '.join(found)}; say which with --{flag} {found[0].partition('@')[2]}"
    )


def ranks_of(archive: Place, variant: str, segments: str) -> str:
    """The name of a ranks table, which must be one of these segments.

    Raises:
        ConfigError: there is none, or it ranks other segments.
    """
    table = table_of(archive, "ranks", variant, "ranks")
    of = [name for name in fingerprint_of(archive, table).get("sources", {}) if name.startswith("segments@")]
    if of and segments not in of:
        raise ConfigError(f"{table} ranks {of[0]}, not {segments}; give --segments {of[0].partition('@')[2]}")
    return table


def require_shards(archive: Place, table: str) -> list[str]:
    """Names of a table's shards, of which there must be one.

    Raises:
        ConfigError: there is no such table.
    """
    names = storage.shards(archive / table)
    if not names:
        verb = verb_of(table)
        then = f"make it with: urbancross {verb} --archive {archive} ..." if verb else f"it has {_told(archive)}"
        raise ConfigError(f"{archive} has no table {table}; {then}")
    return names


def _told(archive: Place) -> str:
    return ", ".join(name for name in storage.tables(archive) if storage.shards(archive / name)) or "none yet"


def verb_of(table: str) -> str | None:
    """The verb that makes a table; None for a table of another program."""
    return VERBS.get(table) or VERBS.get(table.partition("@")[0])


def fingerprint_of(archive: Place, table: str) -> dict[str, Any]:
    """What made a table: what its maker claimed, or what the first shard says of itself.

    Raises:
        ConfigError: there is no such table.
    """
    names = require_shards(archive, table)
    return claimed(archive / table) or storage.made_by(storage.read_schema(archive / table / names[0]))


def claimed(table: Place) -> dict[str, Any] | None:
    """What the maker of a table wrote beside its shards; None where nobody did."""
    return _own_json(table / MAKER)


def row_counts(archive: Place, table: str, names: Sequence[str]) -> dict[str, int]:
    """Rows of shards: the plan says it of all at once; of a shard that nobody planned, its own footer."""
    planned = _own_json(archive / "plan" / ROWS) or {}
    others = [name for name in names if type(planned.get(name)) is not int]
    footers = dict(zip(others, storage.row_counts(archive / table, others), strict=True))
    return {name: footers[name] if name in footers else planned[name] for name in names}


def _own_json(place: Place) -> dict[str, Any] | None:
    """What urbancross wrote beside shards, or None.

    Raises:
        ConfigError: it is something else by now.
    """
    found = storage.json_or_none(place, "table")
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{place} is not what urbancross writes there; remove it and run the same command again")
    return found


def digest_of(archive: Place, table: str) -> str:
    """Digest of what made a table and of how many tiles it holds."""
    names = storage.shards(archive / table)
    maker = digest_of_maker(fingerprint_of(archive, table))
    return storage.digest_text(f"{maker} {sum(row_counts(archive, table, names).values())}")


def has_split(archive: Place, split: str) -> bool:
    """Whether any tile of an archive is of this split."""
    return any(
        split in storage.read_shard(archive / "tiles" / name, ["split"])["split"].unique().to_pylist()
        for name in storage.shards(archive / "tiles")
    )


def require_split(archive: Place, split: str) -> None:
    """Stop before any work where no tile is of this split.

    Raises:
        ConfigError: there is none.
    """
    if storage.shards(archive / "tiles") and not has_split(archive, split):
        raise ConfigError(f"{archive} has no tile of split {split}; choose another with --split")


def require_tight(archive: Place, split: str) -> None:
    """Stop before any work where an audit found that the train split leaks into this one.

    Raises:
        ConfigError: it does.
    """
    for leak in (storage.json_or_none(archive / AUDIT, "audit") or {}).get("leaks", []):
        if leak["split"] == split and leak["from"] == "train" and (leak["near_copies"] or leak["neighbours"]):
            of = f" of {leak['archive']}" if leak["archive"] else ""
            raise ConfigError(
                f"split {split} of {archive} leaks: {leak['near_copies']:,} of its {leak['tiles']:,} tiles have a "
                f"near-copy in train{of}, {leak['neighbours']:,} a neighbour; give --allow-leaks to evaluate it all "
                "the same"
            )


def embeddings_by(archive: Place, fingerprint: str, kind: str = "embeddings") -> str | None:
    """The table of embeddings (or `segment_embeddings`) that the weights of a fingerprint made, if there is one."""
    for table in storage.tables(archive, kind):
        for name in storage.shards(archive / table)[:1]:
            maker = storage.made_by(storage.read_schema(archive / table / name))
            if maker.get("settings", {}).get("checkpoint") == fingerprint:
                return table
    return None


def differs(found: dict[str, Any], wanted: dict[str, Any]) -> str | None:
    """The first setting in which two makers differ, as `key=value, now key=value`."""
    old, new = flat(found), flat(wanted)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return f"{changed[0]}={old.get(changed[0])}, now {changed[0]}={new.get(changed[0])}" if changed else None


def digest_of_maker(maker: dict[str, Any]) -> str:
    """What tables made from a table keep of its maker."""
    return storage.digest_text(sorted(flat(maker).items()).__repr__())


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, str]:
    out: dict[str, str] = {}
    for key, inner in value.items():
        if key in NOT_RESULT:
            continue
        name = f"{prefix}{key}".removeprefix("settings.")
        if isinstance(inner, dict):
            out |= flat(inner, f"{name}.")
        else:
            out[name] = str(inner)
    return out

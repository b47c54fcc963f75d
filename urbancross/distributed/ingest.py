"""A source to the tables `plan`, `tiles` and, where it has captions, `captions@given`."""

import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
from rasterio.enums import Resampling

from urbancross import lease, schemas, sources, splits, storage, tiles
from urbancross.config import AuditConfig, IngestConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import refuse_other_maker, run_stage
from urbancross.errors import ConfigError, TileError, TileSkipped
from urbancross.hrefs import is_remote
from urbancross.runs import Balance
from urbancross.scenes.colours import Stretch
from urbancross.scenes.pixels import Screen
from urbancross.scenes.remote import Access
from urbancross.scenes.tiling import Reader, Tiling, bands_of, grid_of
from urbancross.stac import Asked
from urbancross.storage import Place
from urbancross.tables import ROWS

SHARD_NAME = "part-{:05d}.parquet"
PLANNED_ONCE = ("source", "window", "captions", "bounds")
PLANNING = {"grid", "gsd", "zoom", "overlap", "bands", "stretch"}  # settings of what is planned
ASKING = {"asset", "collections", "bbox", "datetime", "query", "filter", "max_items"}  # of which items are planned
READING = {"resampling", "min_valid", "max_cloud"}  # and of how that is read
CARRIED = ["domain", "bounds", "crs", "transform", "gsd_m", "datetime", "split"]


class TileReader:
    """Planned files and windows to rows of `tiles`, each image proved to decode."""

    def __init__(self, take_changed: bool, tiling: Tiling) -> None:
        self.take_changed, self.reader = take_changed, Reader(tiling)
        self.went_on: Callable[[], None] = lambda: None

    def on_step(self, went_on: Callable[[], None]) -> None:
        self.went_on = went_on

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        planned = tables["plan"].to_pylist()
        rows = schemas.each_tile(planned, self.read)
        for row, plan in zip(rows, planned, strict=True):
            row |= {name: plan[name] for name in CARRIED}
            row["geometry"] = plan.get("footprint") or tiles.footprint(plan["bounds"])
            row["bbox"] = plan["bounds"] and dict(zip(schemas.BBOX.names, plan["bounds"], strict=True))
            row["failure"] = plan["failure"] or row["failure"]
        return pa.Table.from_pylist(rows, schema=schemas.TILES)

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        self.went_on()  # a tile may wait for its server as long as --retry-seconds
        now = sources.version_of(row["source"], self.reader.tiling.access)
        changed = now is not None and row["source_version"] not in (None, now)  # one that was absent may come late
        if changed and row.get("member"):
            raise TileError("its tar changed since it was planned; ingest it into a new archive")
        if changed and not self.take_changed:
            raise TileError("the file changed since it was planned; urbancross retry takes it as it is now")
        return {"image": self.reader.read(row)}


class GivenCaptions:
    """The captions that came with a set."""

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return pa.Table.from_pylist(schemas.each_tile(tables["plan"].to_pylist(), self.given), schema=schemas.CAPTIONS)

    def given(self, row: dict[str, Any]) -> dict[str, Any]:
        if not row["captions"]:
            raise TileSkipped("no caption came with it")
        return {"captions": row["captions"], "engine": "given"}


def tiling_of(config: IngestConfig) -> Tiling:
    """
    Raises:
        ConfigError: flags that do not go together, or a text that says nothing.
    """
    return Tiling(
        grid_of(config.grid, config.tile_px, config.gsd, config.zoom, config.overlap),
        bands_of(config.bands),
        None if config.stretch is None else Stretch.of(config.stretch),
        Resampling[config.resampling],
        Screen(config.min_valid, config.max_cloud),
        Access(config.retry_seconds, config.sign_url),
    )


def asked_of(config: IngestConfig) -> Asked:
    collections = [name.strip() for name in (config.collections or "").split(",")]
    return Asked(
        config.asset,
        tuple(filter(None, collections)),
        config.bbox,
        config.datetime,
        tuple(config.query or ()),
        config.filter,
        config.max_items,
        signed=config.sign_url is not None,
    )


def said(config: IngestConfig, names: set[str]) -> dict[str, Any]:
    """Settings that are not as by default; what an earlier version made knew no other."""
    defaults = {name: IngestConfig.model_fields[name].default for name in names}
    return {name: value for name, value in config.model_dump(include=names).items() if value != defaults[name]}


def stages(config: IngestConfig) -> list[Stage]:
    tiles_stage = Stage(
        "tiles",
        {"plan": None},
        geoparquet(schemas.TILES),
        TileReader,
        {"take_changed": False, "tiling": tiling_of(config)},
        {"domain": config.domain} | said(config, READING),
        on_retry={"take_changed": True},
    )
    given = Stage(
        "captions@given", {"plan": ["captions"]}, schemas.CAPTIONS, GivenCaptions, {}, {"engine": "given"}, 2048
    )
    return [tiles_stage, given]


def run(config: IngestConfig) -> Balance:
    archive = storage.place(config.archive)
    reach = AuditConfig.model_fields["reach"].default  # near-copies as `audit-splits` sees them
    shares = splits.Shares(
        config.split, config.valid_share, config.test_share, config.seed, config.split_by, config.block_m, reach
    )
    known = {} if config.split_by == "file" else planned_splits(archive)
    rows = sources.plan(config.source, config.images, config.domain, tiling_of(config), shares, known, asked_of(config))
    settings = config.model_dump(
        include={"source", "images", "domain", "tile_px", "split", "valid_share", "test_share", "seed"}
    )
    settings["source"] = config.source if is_remote(config.source) else str(storage.local(config.source))
    if config.split_by != "file":  # plans of an earlier version knew no other
        settings |= config.model_dump(include={"split_by", "block_m"} if config.split_by == "place" else {"split_by"})
    settings |= said(config, {*PLANNING, *READING, *ASKING})
    with lease.held(archive / "plan"):
        storage.sweep(archive / "plan")
        publish_plan(archive, rows, settings, config.shard_tiles)
    read, given = stages(config)
    balance = run_stage(archive, read, config)
    if any(row["captions"] for row in rows):
        run_stage(archive, given, config)
    return balance


def planned_splits(archive: Place) -> dict[str, str]:
    """Of tiles that an earlier run planned, by id; half a plan says nothing, or the rest would be divided otherwise."""
    found: dict[str, str] = {}
    for name in storage.json_or_none(archive / "plan" / ROWS, "plan") or {}:
        planned = storage.read_shard(archive / "plan" / name, ["tile_id", "split", "failure"]).to_pylist()
        found |= {row["tile_id"]: splits.LEFT_OUT if splits.is_buffer(row) else row["split"] for row in planned}
    return found


def geoparquet(schema: pa.Schema) -> pa.Schema:
    """`schema` with GeoParquet 1.1 metadata: its `geometry` column (WKB, degrees, longitude first), and its boxes."""
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon", "MultiPolygon"],
        "covering": schemas.COVERING,
    }  # no crs: OGC:CRS84, degrees, longitude first
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return schema.with_metadata({b"geo": json.dumps(geo).encode()})


def publish_plan(archive: Place, rows: list[dict[str, Any]], settings: dict[str, Any], shard_tiles: int) -> None:
    """Append planned tiles to the table `plan`, which every other table follows; and its counts, in one object."""
    maker = {"table": "plan", "settings": settings, "sources": {}}
    table = archive / "plan"
    known = storage.shards(table)
    refuse_other_maker(table, maker)
    schema = storage.with_made_by(schemas.PLAN, maker)
    counts: dict[str, int] = {}
    taken: set[str] = set()
    wanted = {row["tile_id"]: row for row in rows} if known else {}
    for name in known:
        planned = storage.read_shard(table / name, ["tile_id", *PLANNED_ONCE]).to_pylist()
        counts[name] = len(planned)
        for row in planned:
            taken.add(row["tile_id"])
            refuse_edited(table, row, wanted.get(row["tile_id"]))
    fresh = [row for row in rows if row["tile_id"] not in taken]
    for number, start in enumerate(range(0, len(fresh), shard_tiles), start=len(known)):
        shard = pa.Table.from_pylist(fresh[start : start + shard_tiles], schema=schema)
        name = SHARD_NAME.format(number)
        if not storage.publish_shard(table / name, shard):
            raise ConfigError(f"{table}: another ingest is planning into this archive; wait for it, then run again")
        counts[name] = shard.num_rows
    storage.write_json(table / ROWS, counts)


def refuse_edited(table: Place, planned: dict[str, Any], now: dict[str, Any] | None) -> None:
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

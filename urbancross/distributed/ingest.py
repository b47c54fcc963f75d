"""A source to the tables `plan`, `tiles` and, where it has captions, `captions@given`."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from urbancross import schemas, sources, storage, tiles
from urbancross.config import IngestConfig
from urbancross.distributed.tables import Stage, publish_plan, run_stage
from urbancross.errors import TileSkipped
from urbancross.runs import Balance

CARRIED = ["domain", "bounds", "crs", "gsd_m", "datetime", "split"]


class TileReader:
    """Planned files and windows to rows of `tiles`, each image proved to decode."""

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        planned = tables["plan"].to_pylist()
        rows = schemas.each_tile(planned, self.read)
        for row, plan in zip(rows, planned, strict=True):
            row |= {name: plan[name] for name in CARRIED} | {"geometry": tiles.footprint(plan["bounds"])}
            row["failure"] = plan["failure"] or row["failure"]
        return pa.Table.from_pylist(rows, schema=schemas.TILES)

    def read(self, row: dict[str, Any]) -> dict[str, Any]:
        path = Path(row["source"])
        return {"image": tiles.read_image(path) if row["window"] is None else tiles.read_window(path, row["window"])}


class GivenCaptions:
    """The captions that came with a set."""

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        return pa.Table.from_pylist(schemas.each_tile(tables["plan"].to_pylist(), self.given), schema=schemas.CAPTIONS)

    def given(self, row: dict[str, Any]) -> dict[str, Any]:
        if not row["captions"]:
            raise TileSkipped("no caption came with it")
        return {"captions": row["captions"], "engine": "given"}


def run(config: IngestConfig) -> Balance:
    archive = storage.local(config.archive)
    shares = sources.Shares(config.split, config.valid_share, config.test_share, config.seed)
    rows = sources.plan(config.source, config.images, config.domain, config.tile_px, shares)
    settings = config.model_dump(
        include={"source", "images", "domain", "tile_px", "split", "valid_share", "test_share", "seed"}
    )
    settings["source"] = str(storage.local(config.source))
    publish_plan(archive, rows, settings, config.shard_tiles)
    stage = Stage("tiles", {"plan": None}, geoparquet(schemas.TILES), TileReader, {}, {"domain": config.domain})
    balance = run_stage(archive, stage, config)
    if any(row["captions"] for row in rows):
        captions = Stage(
            "captions@given", {"plan": ["captions"]}, schemas.CAPTIONS, GivenCaptions, {}, {"engine": "given"}, 2048
        )
        run_stage(archive, captions, config)
    return balance


def geoparquet(schema: pa.Schema) -> pa.Schema:
    """`schema` with GeoParquet 1.1 metadata for its `geometry` column (WKB polygons, longitude and latitude)."""
    column = {"encoding": "WKB", "geometry_types": ["Polygon"]}  # no crs: OGC:CRS84, degrees, longitude first
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    return schema.with_metadata({b"geo": json.dumps(geo).encode()})

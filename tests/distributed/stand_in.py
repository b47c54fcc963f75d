"""A stage with a deterministic stand-in for a model, as a program that tests start, kill and start again.

    python tests/distributed/stand_in.py --archive A [--evil '{"t-00001-003": "segfault"}'] [--workers 2] ...

The payload of a tile is the SHA-256 of its image, so every history of kills must end with the same bytes. Tiles named
in `--evil` do to their worker what models do at times.
"""

import ctypes
import hashlib
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from urbancross import cli, lease, schemas, storage
from urbancross.config import StageConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.errors import TileError
from urbancross.runs import Balance
from urbancross.storage import Place

PAYLOADS = pa.schema([schemas.TILE_ID, pa.field("payload", pa.string()), schemas.FAILURE])
TABLE = "payloads@stand-in"


class StandInConfig(StageConfig):
    """Hash every tile."""

    batch_tiles: int = 4
    """Tiles per batch."""
    evil: str = "{}"
    """JSON: tile to what it does to its worker."""
    patience: float = 60
    """Seconds after which a silent holder of the lease is taken for dead."""
    pause: float = 0
    """Seconds that a tile takes."""


class Hasher:
    def __init__(self, evil: dict[str, str], pause: float) -> None:
        self.evil, self.pause = evil, pause

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        rows = schemas.each_tile(tables["tiles"].to_pylist(), self.payload)
        rows = [row for row in rows if self.evil.get(row["tile_id"]) != "lose"]
        return pa.Table.from_pylist(rows, schema=PAYLOADS)

    def payload(self, row: dict[str, Any]) -> dict[str, Any]:
        match self.evil.get(row["tile_id"]):
            case "segfault":
                ctypes.string_at(0)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
            case "hang with the lock":
                ctypes.PyDLL(None).sleep(3600)
            case "raise":
                raise ZeroDivisionError("odd tile")
        if self.pause:
            time.sleep(self.pause)
        if row["image"].startswith(b"bad"):
            raise TileError("bad image")
        return {"payload": hashlib.sha256(row["image"]).hexdigest()}


def stages(config: StandInConfig) -> list[Stage]:
    told = {"evil": json.loads(config.evil), "pause": config.pause}
    return [Stage(TABLE, {"tiles": ["image"]}, PAYLOADS, Hasher, told, {"hash": "sha256"}, config.batch_tiles)]


def join(address: str) -> None:
    """Join a cluster whose workers get this program's failpoints."""
    told = {name: value for name, value in os.environ.items() if name.startswith("URBANCROSS_FAILPOINTS")}
    ray.init(address, runtime_env={"env_vars": told}, logging_level=logging.ERROR, log_to_driver=False)


def run(config: StandInConfig) -> Balance:
    lease.SILENT_S, lease.RENEW_S = config.patience, min(config.patience / 4, 10)
    if folder := os.environ.get("URBANCROSS_FAILPOINTS_ONCE"):
        (Path(folder) / "driver.pid").write_text(str(os.getpid()))
    (stage,) = stages(config)
    return run_stage(storage.archive(config.archive), stage, config)


def make_archive(archive: Place, shards: int = 4, tiles: int = 10, first: int = 0) -> None:
    """Shards of `tiles`: one in each has failed before, one has a bad image."""
    schema = storage.with_made_by(schemas.TILES, {"table": "tiles", "settings": {"domain": "x"}, "sources": {}})
    for shard in range(first, first + shards):
        rows = [
            {
                "tile_id": f"t-{shard:05d}-{tile:03d}",
                "domain": "x",
                "image": None if tile == 2 else (b"bad" if tile == 5 else b"") + f"{shard}/{tile}".encode(),
                "failure": "failed:no such file" if tile == 2 else None,
            }
            for tile in range(tiles)
        ]
        place = archive / "tiles" / f"part-{shard:05d}.parquet"
        storage.publish_shard(place, pa.Table.from_pylist(rows, schema=schema))


if __name__ == "__main__":
    if address := os.environ.get("RAY_ADDRESS"):
        join(address)
    cli.VERBS["stand-in"] = cli.Verb(StandInConfig, "__main__:run")
    cli.main("stand-in", sys.argv[1:])

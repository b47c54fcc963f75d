"""Do two actors cut segments twice as fast as one, and the same ones?

    python benchmarks/segment_actors.py --checkpoint WEIGHTS --out FOLDER [--tiles 64] [--rounds 5] [--flags '{...}']

Runs `segment --engine sam` with one and with two workers in turn, each worker on one CPU, over an archive of tiles of a
drawn country; counts shards per second between the first and the last that a run publishes, so that starting Ray and
loading weights are left out. The tables of all runs are compared.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa

from urbancross import cli, storage
from urbancross.world import NORTHLAND, write_country

SHARD_TILES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--tiles", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flags", default='{"points_per_side": 16}', help="settings of segment, as JSON")
    told = parser.parse_args()
    home = Path(told.out).absolute()
    archive = drawn(home, told.tiles)
    flags = {"checkpoint": told.checkpoint, **json.loads(told.flags)}
    rates: dict[int, list[float]] = {1: [], 2: []}
    first: pa.Table | None = None
    for number in range(told.rounds):
        for workers in (1, 2):
            rates[workers].append(timed(archive, workers, flags))
            found = rows(archive / "segments@timed")
            assert first is None or found.equals(first), "the tables differ"
            first = found
        print(f"round {number}: {rates[1][-1]:.3f} and {rates[2][-1]:.3f} tiles/s", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    result = {
        "tiles": told.tiles,
        "flags": flags,
        "rates": rates,
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
    }
    print(json.dumps(result, indent=2))


def drawn(home: Path, tiles: int) -> Path:
    """An archive of so many tiles of a drawn country, in small shards."""
    scenes = -(-tiles // 36)
    if not (home / "world").is_dir():
        write_country(NORTHLAND, home / "world", scenes=scenes, scene_px=1344, seed=3)
    whole, archive = home / "whole", home / "archive"
    call("ingest", source=str(home / "world" / "scenes"), archive=str(whole), domain="d", shard_tiles=SHARD_TILES)
    shutil.rmtree(archive, ignore_errors=True)
    for table in ("plan", "tiles"):
        for name in storage.shards(whole / table)[: tiles // SHARD_TILES]:
            (archive / table).mkdir(parents=True, exist_ok=True)
            shutil.copy(whole / table / name, archive / table / name)
    return archive


def timed(archive: Path, workers: int, flags: dict[str, Any]) -> float:
    """Tiles per second of one run, once every worker has published a shard."""
    table = archive / "segments@timed"
    shutil.rmtree(table, ignore_errors=True)
    call("segment", archive=str(archive), engine="sam", name="timed", workers=workers, cpus_per_worker=1, **flags)
    ends = sorted(storage.modified_s(table / name) for name in storage.shards(table))
    return SHARD_TILES * (len(ends) - workers) / (ends[-1] - statistics.mean(ends[:workers]))


def rows(table: Path) -> pa.Table:
    return pa.concat_tables(
        storage.read_shard(table / name).replace_schema_metadata(None) for name in storage.shards(table)
    )


def call(verb: str, **settings: Any) -> None:
    cli.call(verb, cli.VERBS[verb].kind(**settings))


if __name__ == "__main__":
    main()

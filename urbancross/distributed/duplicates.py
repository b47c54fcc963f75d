"""`duplicates`: hashes of all tiles to the table `hashes`, then which tile is a copy of which to `duplicates`."""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import schemas, storage
from urbancross.config import DuplicatesConfig
from urbancross.distributed.auditing import hashing
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.duplicates import copies
from urbancross.errors import ConfigError
from urbancross.runs import Balance
from urbancross.storage import Place
from urbancross.tables import read_rows


class Marker:
    """Rows of `duplicates`; compares all tiles of the archive once, some 1.3 kB each."""

    def __init__(self, archive: Place, reach: int, turned: bool) -> None:
        self.archive, self.reach, self.turned = archive, reach, turned

    @cached_property
    def found(self) -> dict[str, dict[str, Any]]:
        """Of every copy, its row."""
        ids, digests, hashes = list[str](), list[bytes](), list[np.ndarray]()
        for name in storage.shards(self.archive / "hashes"):
            rows = read_rows(self.archive, "hashes", name, ["tile_id", "hashes", "digest"])
            ids += rows["tile_id"].to_pylist()
            digests += [told or b"" for told in rows["digest"].to_pylist()]
            hashes.append(_filled(rows["hashes"]))
        seen = np.concatenate(hashes)
        known = seen.any(axis=1)
        told = copies(np.array(digests, "S16"), seen if self.turned else seen[:, :1], known, self.reach)
        return {
            ids[row]: {
                "copy_of": ids[told.of[row]],
                "kind": "exact" if told.exact[row] else "near",
                "distance": int(told.distance[row]),
            }
            for row in np.flatnonzero(told.of >= 0).tolist()
        }

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        rows = tables["hashes"].to_pylist()
        for row in rows:  # too plain for a hash, but not for a digest
            row["failure"] = None if row["digest"] is not None else row["failure"]
        none = {"copy_of": None}
        out = schemas.each_tile(rows, lambda row: self.found.get(row["tile_id"], none))
        return pa.Table.from_pylist(out, schema=schemas.DUPLICATES)


def _filled(hashes: pa.ChunkedArray) -> np.ndarray:
    """`[N, 8]` uint64, zeros where there is none."""
    out = np.zeros((len(hashes), 8), np.uint64)
    there = hashes.is_valid().to_numpy()
    out[there] = hashes.drop_null().combine_chunks().flatten().to_numpy().reshape(-1, 8)
    return out


def stages(config: DuplicatesConfig, archive: Place) -> list[Stage]:
    settings = {"reach": config.reach, "turned": config.turned}
    mark = Stage(
        "duplicates",
        {"hashes": ["digest"]},
        schemas.DUPLICATES,
        Marker,
        {"archive": archive, **settings},
        settings,
        batch_tiles=2048,
        tally=tally,
    )
    return [hashing(config.batch_tiles), mark]


def tally(made: pa.Table) -> dict[str, int]:
    kinds = made["kind"].to_pylist()
    return {f"{kind} copies": kinds.count(kind) for kind in ("exact", "near")}


def run(config: DuplicatesConfig) -> Balance:
    archive = storage.archive(config.archive)
    hash_all, mark = stages(config, archive)
    run_stage(archive, hash_all, config)
    require_digests(archive)
    # One worker: each would compare all tiles, which takes a minute for a million and the writing seconds.
    return run_stage(archive, mark, config.model_copy(update={"workers": 1}))


def require_digests(archive: Place) -> None:
    """
    Raises:
        ConfigError: hashes of an earlier version, which had no digests of pixels.
    """
    for name in storage.shards(archive / "hashes"):
        if "digest" not in storage.read_schema(archive / "hashes" / name).names:
            raise ConfigError(
                f"{archive / 'hashes'} is of an earlier version and knows no digests of pixels; remove it, and run the "
                "same command again"
            )

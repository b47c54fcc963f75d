"""`audit-splits`: hashes of all tiles to the table `hashes`, then which splits leak into which."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import schemas, storage
from urbancross.config import AuditConfig
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.duplicates import digest_of, near_duplicates, neighbours_in_place, perceptual_hashes
from urbancross.embedding import looks
from urbancross.progress import say
from urbancross.runs import Balance
from urbancross.storage import Place
from urbancross.tables import AUDIT, fingerprint_of, read_rows, table_of
from urbancross.tiles import decode

EXAMPLES = 10


class Hasher:
    """Perceptual hashes of tiles, and the digest of their pixels."""

    def __call__(self, tables: dict[str, pa.Table]) -> pa.Table:
        digests: dict[str, bytes] = {}

        def hashed(row: dict[str, Any]) -> dict[str, Any]:
            pixels = decode(row["image"])
            digests[row["tile_id"]] = digest_of(pixels)
            return {"hashes": perceptual_hashes(pixels)}

        rows = schemas.each_tile(tables["tiles"].to_pylist(), hashed)
        told = [row | {"digest": digests.get(row["tile_id"])} for row in rows]  # also of those too plain for a hash
        return pa.Table.from_pylist(told, schema=schemas.HASHES)


def hashing(batch_tiles: int) -> Stage:
    return Stage("hashes", {"tiles": ["image"]}, schemas.HASHES, Hasher, {}, {}, batch_tiles)


def stages(config: AuditConfig) -> list[Stage]:
    return [hashing(config.batch_tiles)]


@dataclass(frozen=True)
class Tiles:
    """What is compared of all tiles of an archive, row by row; 9 numbers a tile, and its vector where it is wanted."""

    ids: list[str]
    splits: np.ndarray
    bounds: list[list[float] | None]
    hashes: np.ndarray  # [N, 8] uint64
    hashed: np.ndarray  # [N] bool
    vectors: np.ndarray | None  # [N, D]

    def of(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.splits == split)


def run(config: AuditConfig) -> Balance:
    archive = storage.archive(config.archive)
    balance = run_stage(archive, stages(config)[0], config)
    here, found, replaced = tiles_of(archive, config.embeddings), [], {""}
    splits = sorted(set(here.splits.tolist()) - {""})
    for split in splits:
        found += [leak(here, split, here, other, config) for other in splits if other != split]
    if config.against is not None:
        away = storage.archive(config.against, "--against")
        replaced.add(str(away))
        run_stage(away, stages(config)[0], config)
        there = tiles_of(away, config.embeddings)
        for other in sorted(set(there.splits.tolist()) - {""}):
            found += [leak(here, split, there, other, config) | {"archive": str(away)} for split in splits]
    known = (storage.json_or_none(archive / AUDIT, "audit") or {}).get("leaks", [])
    others = [old for old in known if old["archive"] not in replaced]
    storage.write_json(archive / AUDIT, {"settings": config.model_dump(), "leaks": [*others, *found]})
    for told in found:
        of = f"{told['from']} of {told['archive']}" if told["archive"] else told["from"]
        print(
            f"{told['split']}: {told['near_copies']:,} of {told['tiles']:,} tiles have a near-copy in {of}, "
            f"{told['neighbours']:,} lie within {config.buffer_tiles:g} tiles of it"
        )
    if not any(box is not None for box in here.bounds):
        say("note: no tile says where it lies, so places were not compared")
    return balance


def leak(here: Tiles, split: str, there: Tiles, other: str, config: AuditConfig) -> dict[str, Any]:
    """How many tiles of a split have a near-copy or a neighbour in another split, perhaps of another archive."""
    mine, theirs = here.of(split), there.of(other)
    usable, known = mine[here.hashed[mine]], theirs[there.hashed[theirs]]
    copies = near_duplicates(here.hashes[usable, 0], there.hashes[known], config.reach)
    copies = np.stack([usable[copies[:, 0]], known[copies[:, 1]]], axis=1)
    if here.vectors is not None and there.vectors is not None:
        cosine = np.einsum("pd,pd->p", here.vectors[copies[:, 0]], there.vectors[copies[:, 1]])
        copies = copies[cosine >= config.min_cosine]
    placed = [mine[[here.bounds[i] is not None for i in mine]], theirs[[there.bounds[i] is not None for i in theirs]]]
    near = neighbours_in_place(
        [here.bounds[i] or [] for i in placed[0]], [there.bounds[i] or [] for i in placed[1]], config.buffer_tiles
    )
    return {
        "split": split,
        "from": other,
        "archive": "",
        "tiles": len(mine),
        "near_copies": len(np.unique(copies[:, 0])),
        "neighbours": len(np.unique(near[:, 0])),
        "examples": [[here.ids[i], there.ids[j]] for i, j in copies[:EXAMPLES].tolist()],
    }


def tiles_of(archive: Place, embeddings: str | None) -> Tiles:
    table = table_of(archive, "embeddings", embeddings, "embeddings") if embeddings else None
    ids, splits, bounds, hashes, vectors = [], [], [], [], []
    for name in storage.shards(archive / "tiles"):
        rows = read_rows(archive, "tiles", name, ["tile_id", "split", "bounds", "failure"])
        ids += rows["tile_id"].to_pylist()
        # A tile without pixels, also one left out between two splits, is of none.
        told = zip(rows["split"].to_pylist(), rows["failure"].to_pylist(), strict=True)
        splits += [split if split and failure is None else "" for split, failure in told]
        bounds += rows["bounds"].to_pylist()
        hashes += storage.read_shard(archive / "hashes" / name, ["hashes"])["hashes"].to_pylist()
        if table is not None:
            vectors += storage.read_shard(archive / table / name, ["vector"])["vector"].to_pylist()
    width = next((len(vector) for vector in vectors if vector), 1)
    seen = np.array([vector or [0.0] * width for vector in vectors], np.float32).reshape(-1, width)
    if table is not None:
        seen = looks(seen, fingerprint_of(archive, table).get("notes", {}).get("width", width))
    return Tiles(
        ids,
        np.array(splits),
        bounds,
        np.array([found or [0] * 8 for found in hashes], np.uint64).reshape(-1, 8),
        np.array([found is not None for found in hashes], bool),
        seen if table is not None else None,
    )

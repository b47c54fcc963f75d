"""Archives without pixels, to index and to search: vectors lie around those of their captions by a small model."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from learning import small_open_clip

from urbancross import schemas, storage
from urbancross.archive import Archive
from urbancross.config import IndexConfig
from urbancross.index import building
from urbancross.index.facts import Filters
from urbancross.index.folder import MANIFEST, files_of, read_manifest
from urbancross.models import checkpoints
from urbancross.models.dual_encoder import DualEncoder
from urbancross.runs import Balance
from urbancross.storage import Place

KINDS = ("a harbour with boats", "a dense forest", "a bare desert", "rows of grey roofs", "a lake", "a green field")
DETAILS = ("in the snow", "near a road", "at the coast", "with a bridge", "by a river", "under clouds", "on a hill")
WIDTH = 24
MODEL = "small"
INDEX = "index@m"


load = checkpoints.load  # as it is, also where a test has it answer with what is loaded already


@cache
def encoder(model: str) -> DualEncoder:
    return load(checkpoints.resolve(model))


def model_in(folder: Path) -> str:
    """What --checkpoint is given: a small open_clip model with random weights."""
    if not (folder / MODEL).is_dir():
        small_open_clip(folder / MODEL)
    return f"local-dir:{folder / MODEL}"


def caption(number: int) -> str:
    return f"{KINDS[number % len(KINDS)]}, {DETAILS[number // len(KINDS) % len(DETAILS)]}"


def name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def near(rng: np.random.Generator, vectors: np.ndarray, spread: float = 0.3) -> np.ndarray:
    """Unit vectors beside others."""
    found = vectors + spread * rng.normal(size=vectors.shape) / np.sqrt(vectors.shape[1])
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def add_shard(
    archive: Place,
    model: str,
    shard: int,
    count: int = 60,
    failed: Sequence[int] = (),
    captions: bool = True,
    **of: Any,
) -> None:
    """Tiles, captions and embeddings of one more shard; tile k of all lies k / 100 degrees east of 20 E.

    Args:
        failed: rows without a vector.
        of: columns of `schemas.TILES` for every tile.
    """
    numbers = range(shard * 1000, shard * 1000 + count)
    tiles = [
        {"tile_id": f"t{k}", "domain": "d", "split": ("train", "valid")[k % 2], "bounds": _bounds(k)} | of
        for k in numbers
    ]
    publish(archive, "tiles", shard, tiles, schemas.TILES)
    if captions:
        told = [{"tile_id": f"t{k}", "captions": [caption(k)]} for k in numbers]
        publish(archive, "captions@given", shard, told, schemas.CAPTIONS)
    add_embeddings(archive, model, shard, count, failed)


def _bounds(number: int) -> list[float]:
    return [20 + number / 100, 60.0, 20 + (number + 0.9) / 100, 60.01]


def add_embeddings(archive: Place, model: str, shard: int, count: int = 60, failed: Sequence[int] = ()) -> None:
    vectors = vectors_of(model, shard, count)
    rows = [
        {"tile_id": f"t{shard * 1000 + i}", "failure": "failed:truncated"} if i in failed else
        {"tile_id": f"t{shard * 1000 + i}", "vector": vectors[i]}
        for i in range(count)
    ]  # fmt: skip
    publish(archive, "embeddings@m", shard, rows, schemas.embeddings(WIDTH), maker(model))


def vectors_of(model: str, shard: int, count: int = 60) -> np.ndarray:
    told = encoder(model).encode_texts([caption(shard * 1000 + i) for i in range(count)])
    return near(np.random.default_rng(shard), told)


def maker(model: str, **sources: str) -> dict[str, Any]:
    fingerprint = checkpoints.resolve(model).fingerprint
    return {"settings": {"checkpoint": fingerprint}, "notes": {"checkpoint": model}, "sources": sources}


def add_segments(archive: Place, model: str, shard: int, count: int = 60) -> None:
    """Up to three segments of every tile but each fourth."""
    rng = np.random.default_rng(100 + shard)
    rows, cut = [], []
    for i, vector in enumerate(vectors_of(model, shard, count)):
        found = near(rng, np.repeat(vector[None], i % 4, axis=0), 2.0)
        tile = f"t{shard * 1000 + i}"
        rows.append({"tile_id": tile, "vectors": list(found) if len(found) else None})
        cut.append({"tile_id": tile, "segments": [{"rank": r, "box": [0, 0, r, r]} for r in range(len(found))]})
    told = maker(model, **{"segments@s": "x"})
    publish(archive, "segment_embeddings@m", shard, rows, schemas.segment_embeddings(WIDTH), told)
    publish(archive, "segments@s", shard, cut, schemas.SEGMENTS)


def add_tags(archive: Place, shard: int, count: int = 60) -> None:
    rows = [
        {"tile_id": f"t{shard * 1000 + i}", "center_tags": [f"natural=n{i % 3}"], "surrounding_tags": None}
        for i in range(count)
    ]
    publish(archive, "geotags", shard, rows, schemas.GEOTAGS)


def publish(
    archive: Place, table: str, shard: int, rows: list[dict[str, Any]], schema: pa.Schema, told: dict | None = None
) -> None:
    schema = schema if told is None else storage.with_made_by(schema, told)
    place = archive / table / name(shard)
    storage.remove(place)
    assert storage.publish_shard(place, pa.Table.from_pylist(rows, schema=schema))


def index(archive: Place, **settings: Any) -> Balance:
    """What `urbancross index` does."""
    return building.run(IndexConfig(archive=str(archive), **{"queries": 40} | settings))


def manifest(archive: Any) -> dict[str, Any]:
    found = read_manifest(archive / INDEX)
    assert found is not None
    return found


def files(archive: Any) -> dict[str, Any]:
    """Names in the index's folder, with their time of change, but what nobody reads."""
    names = [name for name in storage.names(archive / INDEX) if not name.startswith(".")]
    return {name: storage.modified_s(archive / INDEX / name) for name in names}


def found_by(archive: Any, top: int = 1000, weight: float = 0.0, **filters: Any) -> list[str]:
    """Ids of tiles, best first, without their evidence."""
    asked = Archive(str(archive))
    query = np.linspace(-0.2, 0.3, WIDTH, dtype=np.float32)
    found = asked._candidates(asked.index, query, Filters(**filters), weight, top).found
    return [f"t{1000 * int(tile.shard[5:10]) + tile.row}" for tile in found]


def ids(*shards: int, but: tuple[str, ...] = ("t7",)) -> set[str]:
    return {f"t{1000 * shard + i}" for shard in shards for i in range(60)} - set(but)


def is_whole(archive: Any) -> bool:
    """Nothing lacks, and nothing lies beside."""
    told = manifest(archive)
    return set(files(archive)) == files_of(told) | {MANIFEST}

"""`evaluate`: the tiles and captions of one split, encoded on Ray Data actors, and their retrieval recall."""

import os
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from urbancross import metrics, storage
from urbancross.captions.land_cover import land_cover
from urbancross.config import EvaluateConfig
from urbancross.distributed.following import counted
from urbancross.distributed.session import connect
from urbancross.distributed.tables import check_source, map_shards
from urbancross.embedding import embed_tiles
from urbancross.errors import ConfigError, WorkerError
from urbancross.models import checkpoints
from urbancross.pairs import text_key
from urbancross.runs import Balance, count_failures
from urbancross.storage import Place
from urbancross.tables import embeddings_by, read_aligned, require_split, require_tight, row_counts, table_of


class PairEncoder:
    """Tiles and captions of one split of a shard to vectors; tiles embedded before are not encoded again."""

    def __init__(
        self, archive: Place, model: checkpoints.Model, config: EvaluateConfig, captions: str, watch: Any
    ) -> None:
        self.archive, self.config, self.captions, self.watch = archive, config, captions, watch
        self.encoder = checkpoints.load(model, config.device)
        self.embedded = embeddings_by(archive, model.fingerprint)

    def work(self, name: str) -> dict[str, Any]:
        orders = ray.get(self.watch.start.remote(f"evaluate/{name}", f"process {os.getpid()}"))
        if orders.stop is not None:
            raise WorkerError(orders.stop)
        tables = read_aligned(self.archive, {"tiles": ["image", "split"], self.captions: ["captions"]}, name)
        tiles, captions = tables["tiles"], tables[self.captions]["captions"].to_pylist()
        in_split = [split == self.config.split for split in tiles["split"].to_pylist()]
        failures = tiles["failure"].to_pylist()
        failed = count_failures([f for f, inside in zip(failures, in_split, strict=True) if inside])["failed"]
        told = zip(in_split, captions, failures, strict=True)
        use = np.flatnonzero([inside and bool(lines) and failure is None for inside, lines, failure in told])
        vectors = self.vectors(name, tiles.take(pa.array(use)), use)
        texts = [text for i in use for text in captions[i]]
        read = self.encoder.encode_texts(texts)
        self.watch.finish.remote(f"evaluate/{name}", tiles.num_rows)
        return {
            "shard": name,
            "read": tiles.num_rows,
            "failed": failed,
            "lines": [len(captions[i]) for i in use],
            "keys": [text_key(text) for text in texts],
            "covers": [land_cover(captions[i]) for i in use] if self.config.by else [],
            "vectors": vectors,
            "texts": read,
        }

    def vectors(self, name: str, tiles: pa.Table, use: np.ndarray) -> np.ndarray:
        known = self.archive / self.embedded / name if self.embedded else None
        if known is not None and storage.exists(known):
            column = storage.read_shard(known, ["vector"])["vector"].take(pa.array(use))
            return np.asarray(column.to_pylist(), np.float32).reshape(-1, self.encoder.vector_width)
        parts = [
            embed_tiles(self.encoder, tiles.slice(start, self.config.batch_tiles))["vector"].to_pylist()
            for start in range(0, tiles.num_rows, self.config.batch_tiles)
        ]
        vectors = [vector for part in parts for vector in part]
        return np.asarray(vectors, np.float32).reshape(-1, self.encoder.vector_width)


def run(config: EvaluateConfig) -> Balance:
    archive = storage.archive(config.archive)
    model = checkpoints.resolve(config.checkpoint)
    captions = table_of(archive, "captions", config.captions, "captions")
    if config.out:
        storage.require_writable(storage.place(config.out), "--out")
    names = storage.shards(archive / "tiles")
    check_source(archive, "tiles", ["image", "split"], names)
    check_source(archive, captions, ["captions"], names)
    require_split(archive, config.split)
    if not config.allow_leaks:
        require_tight(archive, config.split)
    connect()
    with counted(
        f"evaluate {config.split} of {archive.name}", sum(row_counts(archive, "tiles", names).values())
    ) as watch:
        encoded = map_shards(names, PairEncoder, (archive, model, config, captions, watch), config)
        parts = sorted(encoded, key=lambda part: part["shard"])
    tiles, texts = (np.concatenate([part[key] for part in parts]) for key in ("vectors", "texts"))
    keys = np.array([key for part in parts for key in part["keys"]], np.int64)
    lines = np.array([count for part in parts for count in part["lines"]], np.int64)
    if not len(tiles):
        raise ConfigError(f"{archive} has no captioned tile of split {config.split}; choose another with --split")
    owner = np.repeat(np.arange(len(tiles)), lines)
    covers = np.array([cover for part in parts for cover in part["covers"]])
    found = metrics.evaluate_retrieval(
        tiles,
        texts,
        owner,
        config.protocol,
        text_keys=keys,
        bootstrap=config.bootstrap,
        seed=config.seed,
        groups=covers if config.by else None,
    )
    result = {
        "protocol": config.protocol,
        "split": config.split,
        **found,
        "captions": captions,
        "checkpoint": model.place,
        "fingerprint": model.fingerprint,
    }
    if config.out:
        storage.write_json(storage.place(config.out), result)
    low, high = found["ci95"]["mR"]
    gallery = found["gallery"]
    print(
        f"mR {100 * found['mR']:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}), "
        f"chance {100 * found['chance_mR']:.1f} %, {gallery['tiles']:,} tiles, {gallery['texts']:,} texts"
    )
    for name, told in found.get("by", {}).items():
        low, high = told["ci95"]["mR"]
        print(f"  {name}: mR {100 * told['mR']:.1f} % ({100 * low:.1f} to {100 * high:.1f}), {told['tiles']:,} tiles")
    read, failed = sum(part["read"] for part in parts), sum(part["failed"] for part in parts)
    return Balance(read=read, written=len(tiles), skipped=read - len(tiles) - failed, failed=failed).with_files(
        metrics=result
    )

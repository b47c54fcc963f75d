"""An embeddings table and a query to the best tiles, each with its evidence. Exact: every vector is compared."""

import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from urbancross import storage, tables
from urbancross.config import SearchConfig
from urbancross.errors import ConfigError, TileError
from urbancross.globe import meets
from urbancross.models import checkpoints
from urbancross.storage import Place
from urbancross.tiles import decode, parse_bbox, read_image


@dataclass(frozen=True)
class Hit:
    """A tile that was found, and what is known of it."""

    rank: int
    tile_id: str
    score: float  # cosine in [-1, 1]
    split: str | None
    bounds: list[float] | None
    captions: list[str]
    tags: list[str]
    shard: str
    row: int
    where: dict[str, Any] | None = None  # the segment that fits best: its rank, score, and box in pixels


def best(
    archive: Place,
    embeddings: str,
    query: np.ndarray,
    top: int,
    split: str | None = None,
    bbox: tuple[float, float, float, float] | None = None,
    segments: str | None = None,
    segment_weight: float = 0.0,
) -> list[Hit]:
    """The `top` tiles with the highest score for a unit vector `[D]`; ties by tile order.

    The score is (1 - a) cos(tile, query) + a max_k cos(segment k, query), a the `segment_weight`; of a tile without
    segments the first cosine alone. Shards are read one after the other, so memory does not grow with the archive.

    Args:
        segments: table of segment embeddings; with it every hit says where in the tile.
    """
    found: list[tuple[float, str, int, str]] = []
    for name in storage.shards(archive / embeddings):
        rows = storage.read_shard(archive / embeddings / name, ["tile_id", "vector", "failure"])
        keep = pc.is_null(rows["failure"])
        if split is not None or bbox is not None:
            told = storage.read_shard(archive / "tiles" / name, ["split", "bounds"])
            if split is not None:
                keep = pc.and_(keep, pc.fill_null(pc.equal(told["split"], split), False))
            if bbox is not None:
                keep = pc.and_(keep, pa.array([_meets(bounds, bbox) for bounds in told["bounds"].to_pylist()]))
        use = np.flatnonzero(keep.to_numpy())
        if not len(use):
            continue
        vectors = rows["vector"].take(pa.array(use)).combine_chunks().flatten().to_numpy().reshape(len(use), -1)
        scores = vectors @ query
        if segments is not None and segment_weight and storage.exists(archive / segments / name):
            told = storage.read_shard(archive / segments / name, ["vectors"])["vectors"].take(pa.array(use))
            nearest = best_of_segments(told, query)
            scores += segment_weight * (np.where(np.isnan(nearest), scores, nearest) - scores)
        for i in np.argsort(-scores, kind="stable")[:top]:
            found.append((float(scores[i]), name, int(use[i]), rows["tile_id"][int(use[i])].as_py()))
        found = sorted(found, key=lambda hit: (-hit[0], hit[1], hit[2]))[:top]
    hits = [_with_evidence(archive, rank, *hit) for rank, hit in enumerate(found, start=1)]
    return hits if segments is None else [replace(hit, where=where(archive, segments, hit, query)) for hit in hits]


def best_of_segments(vectors: pa.ChunkedArray, query: np.ndarray) -> np.ndarray:
    """The highest cosine among the segments of each tile, `[tiles]`; NaN where there is none."""
    lists = pa.concat_arrays(vectors.chunks) if vectors.num_chunks else pa.array([], vectors.type)
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    out = np.full(len(lists), np.nan, np.float32)
    if counts.any():
        scores = lists.flatten().flatten().to_numpy().reshape(-1, len(query)) @ query
        starts = (np.cumsum(counts) - counts)[counts > 0]
        out[counts > 0] = np.maximum.reduceat(scores, starts)
    return out


def where(archive: Place, segments: str, hit: Hit, query: np.ndarray) -> dict[str, Any] | None:
    """The segment of a hit that fits a query best; None where the tile has none, or they were not embedded yet."""
    if not storage.exists(archive / segments / hit.shard):
        return None
    vectors = storage.read_shard(archive / segments / hit.shard, ["vectors"])["vectors"][hit.row].as_py()
    if not vectors:
        return None
    scores = np.asarray(vectors, np.float32) @ query
    rank = int(scores.argmax())
    table = next(name for name in tables.fingerprint_of(archive, segments)["sources"] if name.startswith("segments@"))
    row = storage.read_shard(archive / table / hit.shard, ["segments"])["segments"][hit.row].as_py()
    (segment,) = (segment for segment in row if segment["rank"] == rank)
    return {"rank": rank, "score": round(float(scores[rank]), 6), "box": segment["box"]}


def _meets(bounds: list[float] | None, bbox: tuple[float, float, float, float]) -> bool:
    return bounds is not None and meets(bounds, bbox)


def _with_evidence(archive: Place, rank: int, score: float, shard: str, row: int, tile_id: str) -> Hit:
    told = storage.read_shard(archive / "tiles" / shard, ["split", "bounds"]).slice(row, 1).to_pylist()[0]
    captions: list[str] = []
    tags: list[str] = []
    for table in storage.tables(archive, "captions"):
        if storage.exists(archive / table / shard):
            captions = storage.read_shard(archive / table / shard, ["captions"])["captions"][row].as_py() or []
            break
    if storage.exists(archive / "geotags" / shard):
        found = (
            storage.read_shard(archive / "geotags" / shard, ["center_tags", "surrounding_tags"])
            .slice(row, 1)
            .to_pylist()[0]
        )
        tags = [*(found["center_tags"] or []), *(found["surrounding_tags"] or [])]
    return Hit(rank, tile_id, round(score, 6), told["split"], told["bounds"], captions, tags, shard, row)


def picture(archive: Place, hit: Hit) -> bytes:
    """The encoded image of a hit."""
    return storage.read_shard(archive / "tiles" / hit.shard, ["image"])["image"][hit.row].as_py()


def embeddings_table(archive: Place, variant: str | None) -> tuple[str, dict[str, Any]]:
    """Name of the embeddings table, and what made it.

    Raises:
        ConfigError: there is none, or another program made it.
    """
    table = tables.table_of(archive, "embeddings", variant, "embeddings")
    names = storage.shards(archive / table)
    maker = storage.made_by(storage.read_schema(archive / table / names[0]))
    if not {"notes", "settings"} <= maker.keys():
        raise ConfigError(f"{archive / table} does not say what made it; make it with: urbancross embed")
    lacking = set(storage.shards(archive / "tiles")) - set(names)
    if lacking:
        print(f"note: {table} lacks {len(lacking)} shards; run urbancross embed again to finish it", file=sys.stderr)
    return table, maker


def run(config: SearchConfig) -> None:
    archive = storage.archive(config.archive)
    if not (config.text and config.text.strip()) and not config.image:
        raise ConfigError(
            'say what to look for: urbancross search --archive A "a harbour with many boats", or --image FILE'
        )
    bbox = parse_bbox(config.bbox) if config.bbox else None
    table, maker = embeddings_table(archive, config.embeddings)
    model = checkpoints.resolve(config.checkpoint or maker["notes"]["checkpoint"])
    if model.fingerprint != maker["settings"]["checkpoint"]:
        raise ConfigError(
            f"{table} was made by other weights than {model.name}; give the --checkpoint that made it, or embed again"
        )
    segments = tables.embeddings_by(archive, model.fingerprint, "segment_embeddings")
    if config.segment_weight and segments is None:
        raise ConfigError(
            f"--segment-weight: {archive} has no segment embeddings by {model.name}; make them with: urbancross embed "
            f"--archive {archive} --checkpoint {model.name} --segments ..."
        )
    encoder = checkpoints.load(model, config.device)
    query = np.zeros(encoder.vector_width, np.float32)
    if config.text:
        query += encoder.encode_texts([config.text])[0]
    if config.image:
        try:
            query += encoder.encode_image_queries([decode(read_image(storage.file(config.image, "--image")))])[0]
        except TileError as error:
            raise ConfigError(f"--image {config.image}: {error}; give a JPEG, PNG or WebP") from None
    query /= np.linalg.norm(query)
    hits = best(archive, table, query, config.top, config.split, bbox, segments, config.segment_weight)
    if config.json_:
        told = {
            "query": {"text": config.text, "image": config.image},
            "embeddings": table,
            "hits": [asdict(hit) for hit in hits],
        }
        print(json.dumps(told, indent=2))
    else:
        show(hits, " and ".join(filter(None, (config.text, config.image))))


def show(hits: list[Hit], query: str) -> None:
    """Print hits as a table."""
    if not hits:
        print(f"no tile to compare with “{query}”: the filters leave none")
        return
    title = escape(f"“{query}”")  # rich would take [brackets] for its own markup
    table = Table("#", "score", "tile", title=title, title_justify="left")
    located = any(hit.where for hit in hits)
    for column in (["where, pixels"] if located else []) + ["what is known of it"]:
        table.add_column(column)
    for hit in hits:
        known = hit.captions[0] if hit.captions else "; ".join(hit.tags)
        place = "x {}-{}, y {}-{}".format(*(hit.where["box"][i] for i in (0, 2, 1, 3))) if hit.where else ""
        cells = [str(hit.rank), f"{hit.score:.3f}", escape(hit.tile_id), *([place] if located else []), escape(known)]
        table.add_row(*cells)
    Console(width=None if Console().is_terminal else 140).print(table)

"""An embeddings table and a query to the best tiles, each with its evidence. Exact: every vector is compared."""

import json
import sys
from dataclasses import asdict, dataclass
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


def best(
    archive: Place,
    embeddings: str,
    query: np.ndarray,
    top: int,
    split: str | None = None,
    bbox: tuple[float, float, float, float] | None = None,
) -> list[Hit]:
    """The `top` tiles with the highest cosine to a unit vector `[D]`; ties by tile order.

    Shards are read one after the other, so memory does not grow with the archive.
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
        for i in np.argsort(-scores, kind="stable")[:top]:
            found.append((float(scores[i]), name, int(use[i]), rows["tile_id"][int(use[i])].as_py()))
        found = sorted(found, key=lambda hit: (-hit[0], hit[1], hit[2]))[:top]
    return [_with_evidence(archive, rank, *hit) for rank, hit in enumerate(found, start=1)]


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
    encoder = checkpoints.load(model, config.device)
    query = np.zeros(encoder.width, np.float32)
    if config.text:
        query += encoder.encode_texts([config.text])[0]
    if config.image:
        try:
            query += encoder.encode_images([decode(read_image(storage.file(config.image, "--image")))])[0]
        except TileError as error:
            raise ConfigError(f"--image {config.image}: {error}; give a JPEG, PNG or WebP") from None
    hits = best(archive, table, query / np.linalg.norm(query), config.top, config.split, bbox)
    if config.json_:
        told = {
            "query": {"text": config.text, "image": config.image},
            "embeddings": table,
            "hits": [asdict(hit) for hit in hits],
        }
        print(json.dumps(told, indent=2))
    else:
        show(hits, config.text or str(config.image))


def show(hits: list[Hit], query: str) -> None:
    """Print hits as a table."""
    if not hits:
        print(f"no tile to compare with “{query}”: the filters leave none")
        return
    title = escape(f"“{query}”")  # rich would take [brackets] for its own markup
    table = Table("#", "score", "tile", "what is known of it", title=title, title_justify="left")
    for hit in hits:
        known = hit.captions[0] if hit.captions else "; ".join(hit.tags)
        table.add_row(str(hit.rank), f"{hit.score:.3f}", escape(hit.tile_id), escape(known))
    Console(width=None if Console().is_terminal else 140).print(table)

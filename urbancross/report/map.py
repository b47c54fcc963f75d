"""`report --map`: an archive as one offline page: tiles on a map and as pictures, searched without server or model."""

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from urbancross import corners, schemas, storage, tables
from urbancross.archive import Archive
from urbancross.captions.words import phrases
from urbancross.config import MapConfig
from urbancross.embedding import looks
from urbancross.errors import ConfigError
from urbancross.index.facts import Filters, facts_of
from urbancross.models.dual_encoder import DualEncoder
from urbancross.progress import say
from urbancross.report import offline, reduced, thumbnails
from urbancross.report.phrasebook import STOP, best_parts, phrases_and_words
from urbancross.runs import Balance
from urbancross.serve import summary
from urbancross.storage import Place
from urbancross.tiles import parse_bbox

MOST = 100_000  # tiles of a page
FEW = 20_000  # tiles up to which each keeps several parts of its captions
PARTS = 3
DEGREE = 10_000_000  # parts of a degree that bounds are told in
NO_PLACE = -(2**31)
SHARE = 2**16 - 1


@dataclass(frozen=True)
class Chosen:
    """The tiles of a page, in the order of the archive.

    Attributes:
        numbers: [N] places in the archive.
        facts: rows of `index.facts.FACTS`.
        names: of all shards, which `facts` counts.
    """

    numbers: np.ndarray
    facts: pa.Table
    names: list[str]

    def __len__(self) -> int:
        return len(self.numbers)

    def by_shard(self, rows: Sequence[int] | None = None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name of a shard, which of the chosen lie in it (those of `rows`, or all), and at which of its rows."""
        shard, within = (self.facts[name].to_numpy() for name in ("shard", "row"))
        some = np.arange(len(self)) if rows is None else np.asarray(rows, int)
        for at in np.unique(shard[some]):
            here = some[shard[some] == at]
            yield self.names[at], here, within[here]


def run(config: MapConfig) -> Balance:
    place, out = storage.archive(config.archive), storage.local(config.out)
    storage.require_writable(out, "--out")
    archives = [
        Archive(config.archive, embeddings=table.partition("@")[2], indexed=False) for table in tables_of(place, config)
    ]
    asked, chosen = choose(place, [archive.table for archive in archives], config)
    told = captions_of(archives[0], chosen)
    known = phrases_and_words(Counter(part for parts in told for part in parts), config.phrases)
    data: dict[str, Any] = {}
    for nth, archive in enumerate(archives):
        say(f"map: {archive.table}: {len(chosen):,} tiles, {len(known):,} phrases")
        vectors = vectors_of(place, archive.table, chosen)
        texts = archive.encoder.encode_texts([*known, *(config.queries or ())])
        if not nth:
            rows = {phrase: row for row, phrase in enumerate(known)}
            width = archive.encoder.width
            most = PARTS if len(chosen) <= FEW else 1
            parts = best_parts(told, looks(vectors, width), rows, looks(texts[: len(known)], width), most)
        data[f"model-{nth}"] = model_of(archive.encoder, vectors, texts, len(known), config.directions)
    pictures = thumbnails.chosen(
        len(chosen), int(config.pictures_mib * 2**20), lambda rows: images(place, chosen, rows)
    )
    say(f"map: {len(pictures):,} pictures")
    data["tiles"] = tiles_of(place, chosen, parts, known)
    data["pictures"] = {
        "rows": sorted(pictures),
        "jpegs": [base64.b64encode(pictures[row]).decode() for row in sorted(pictures)],
    }
    data["archive"] = {
        "name": place.name,
        "models": [archive.table.partition("@")[2] for archive in archives],
        "queries": config.queries or [],
        "phrases": len(known),
        "note": note_of(len(pictures), len(chosen)),
        "stop": STOP,
        "summary": summary.summary(chosen.facts),
        "cells": summary.cells(chosen.facts),
    }
    page = offline.page(data).encode()
    storage.replace(out, page)
    say(f"map: {out}, {len(page) / 2**20:.1f} MiB")
    return Balance(read=asked, written=len(chosen), skipped=asked - len(chosen))


def note_of(pictures: int, tiles: int) -> str:
    """What the page says of itself."""
    seen = "" if pictures == tiles else f"; pictures of {pictures:,}, spread over all, were kept"
    return f"one file, searched offline{seen}"


def tables_of(archive: Place, config: MapConfig) -> list[str]:
    """The embeddings that the page searches by, one or two.

    Raises:
        ConfigError: there is none, or not the one that was named.
    """
    if config.embeddings:
        named = dict.fromkeys(config.embeddings)
        return [tables.table_of(archive, "embeddings", variant, "embeddings") for variant in named]
    found = [name for name in storage.tables(archive, "embeddings") if storage.shards(archive / name)]
    return found[:2] or [tables.table_of(archive, "embeddings", None, "embeddings")]


def choose(archive: Place, embeddings: Sequence[str], config: MapConfig) -> tuple[int, Chosen]:
    """How many tiles the flags leave, and those of them that have a vector in every table.

    Raises:
        ConfigError: they are none, or more than a page holds.
    """
    bbox = parse_bbox(config.bbox) if config.bbox else None
    names = tables.require_shards(archive, "tiles")
    total = sum(tables.row_counts(archive, "tiles", names).values())
    filters = Filters(bbox=bbox, domain=config.domain, split=config.split)
    if total > MOST and not filters and config.sample is None:
        raise too_many(total)
    facts = facts_of(archive, names)
    numbers = np.flatnonzero(filters.allowed(facts))
    if config.sample is not None and config.sample < len(numbers):
        numbers = np.sort(np.random.default_rng(config.seed).choice(numbers, config.sample, replace=False))
    if len(numbers) > MOST:
        raise too_many(len(numbers))
    asked = len(numbers)
    for table in embeddings:
        numbers = numbers[embedded(archive, table, names)[numbers]]
    if not len(numbers):
        raise ConfigError(f"{archive} has no tile with a vector to show; choose another --split, --domain or --bbox")
    return asked, Chosen(numbers, facts.take(numbers), names)


def too_many(count: int) -> ConfigError:
    return ConfigError(
        f"{count:,} tiles are more than the {MOST:,} of a page; take some with --split, --domain, --bbox or "
        f"--sample {MOST}, or search all with urbancross serve"
    )


def embedded(archive: Place, table: str, names: Sequence[str]) -> np.ndarray:
    """`[tiles]` bool: which have a vector."""
    counts, there = tables.row_counts(archive, "tiles", names), set(storage.shards(archive / table))
    found = [
        storage.read_shard(archive / table / name, ["failure"])["failure"].is_null().to_numpy()
        if name in there
        else np.zeros(counts[name], bool)
        for name in names
    ]
    return np.concatenate(found)


def vectors_of(archive: Place, table: str, chosen: Chosen) -> np.ndarray:
    """`[N, D]` float32."""
    parts = []
    for name, _, rows in chosen.by_shard():
        column = storage.read_shard(archive / table / name, ["vector"])["vector"].take(pa.array(rows)).combine_chunks()
        parts.append(column.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1).astype(np.float32))
    return np.concatenate(parts)


def captions_of(archive: Archive, chosen: Chosen) -> list[list[str]]:
    """The phrases of each tile's captions, of the first table that has its shard."""
    told: list[list[str]] = [[] for _ in range(len(chosen))]
    for name, here, rows in chosen.by_shard():
        for table in archive.evidence.captions:
            if storage.exists(archive.place / table / name):
                captions = storage.read_shard(archive.place / table / name, ["captions"])["captions"]
                for at, texts in zip(here, captions.take(pa.array(rows)).to_pylist(), strict=True):
                    told[at] = [part for text in texts or [] for part in phrases(text)]
                break
    return told


def images(archive: Place, chosen: Chosen, rows: Sequence[int]) -> Iterator[tuple[int, bytes | None]]:
    """The encoded images of some of the chosen."""
    for name, here, within in chosen.by_shard(rows):
        found = storage.read_shard(archive / "tiles" / name, ["image"])["image"]
        for at, row in zip(here.tolist(), within.tolist(), strict=True):
            yield at, found[row].as_py()


def model_of(encoder: DualEncoder, vectors: np.ndarray, texts: np.ndarray, known: int, most: int) -> dict[str, Any]:
    """What the page has of a model: tiles, phrases and queries in few coordinates.

    Args:
        vectors: [N, D] of the tiles.
        texts: [known + queries, D] of phrases, then of queries.
    """
    found = reduced.reduction(vectors, texts, encoder.width, most)
    tiles, said = reduced.coded(vectors @ found.tiles.T), reduced.coded(texts[:known] @ found.queries.T)
    return {
        "directions": len(found.tiles),
        "tiles": offline.packed(tiles.codes),
        "tiles_scale": offline.packed(tiles.scale),
        "as_query": offline.packed(found.as_query),
        "metric": offline.packed(found.metric),
        "query_length": float(np.linalg.norm(encoder.as_queries(vectors[:1])[0])),
        "phrases": offline.packed(said.codes),
        "phrases_scale": offline.packed(said.scale),
        "queries": offline.packed(np.asarray(texts[known:] @ found.queries.T, np.float32)),
    }


def tiles_of(archive: Place, chosen: Chosen, parts: Sequence[Sequence[str]], known: Sequence[str]) -> dict[str, Any]:
    """What the page knows of tiles, a column a fact."""
    facts = chosen.facts
    bounds = np.stack([facts[name].to_numpy() for name in ("west", "south", "east", "north")], axis=1)
    placed = np.where(np.isnan(bounds), NO_PLACE, np.nan_to_num(bounds) * DEGREE)
    times: list[str | None] = [None] * len(chosen)
    gsds: list[float | None] = [None] * len(chosen)
    ends = np.full((len(chosen), 4, 2), np.nan)
    for name, here, rows in chosen.by_shard():
        shard = archive / "tiles" / name
        columns = [*corners.COLUMNS, "datetime", "gsd_m"]
        known_columns = [column for column in columns if column in storage.read_schema(shard).names]
        read = schemas.completed(storage.read_shard(shard, known_columns), "tiles").take(pa.array(rows))
        ends[here] = corners.corners(read)
        for at, row in zip(here, read.to_pylist(), strict=True):
            times[at] = row["datetime"]
            gsds[at] = float(f"{row['gsd_m']:.4g}") if row["gsd_m"] and np.isfinite(row["gsd_m"]) else None
    spans = dict(zip(times, zip(facts["from_us"].to_pylist(), facts["to_us"].to_pylist(), strict=True), strict=True))
    moments = offline.column(times)
    known_spans = [spans[text] for text in moments["values"]]
    return {
        "count": len(chosen),
        "numbers": offline.packed(chosen.numbers.astype(np.uint32)),
        "ids": facts["tile_id"].to_pylist(),
        "bounds": offline.packed(np.rint(placed).astype(np.int32)),
        "corners": within_bounds(ends, bounds),
        "times": {**moments, "spans": [[None if us is None else us / 1000 for us in span] for span in known_spans]},
        "gsd": offline.column(gsds),
        "domains": offline.column(facts["domain"].to_pylist()),
        "splits": offline.column(facts["split"].to_pylist()),
        "tags": offline.lists([tags or [] for tags in facts["tags"].to_pylist()]),
        "parts": offline.lists(parts, known),
    }


def within_bounds(ends: np.ndarray, bounds: np.ndarray) -> str | None:
    """Corners `[N, 4, 2]` of pictures as shares of their bounds `[N, 4]`, from the west and from the north, each in 16
    bits; None where all stand upright."""
    if np.isnan(ends).all():
        return None
    west, south, east, north = bounds.T[..., None]
    width = np.where(west <= east, east, east + 360) - west
    with np.errstate(all="ignore"):  # bounds of nothing
        shares = np.stack([(ends[..., 0] - west) / width, (north - ends[..., 1]) / (north - south)], axis=-1)
    shares = np.where(np.isnan(shares), corners.OF_PICTURE, shares)
    return offline.packed(np.rint(np.clip(shares, 0, 1) * SHARE).astype(np.uint16))

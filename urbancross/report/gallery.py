"""`gallery`: tiles with their ranked segments drawn over them, as one HTML page that needs nothing else.

`render` is pure, as that of the report is: values in, text out, no script.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from urbancross import storage, tables
from urbancross.config import GalleryConfig
from urbancross.errors import ConfigError, TileError
from urbancross.report.drawn import Drawn, Fit, Gallery, TileShown, drawn
from urbancross.report.page import environment
from urbancross.storage import Place

PICTURE_PX, PICTURE_BYTES = 448, 100_000  # a picture past either is shrunk


def render(gallery: Gallery) -> str:
    """The whole page."""
    page = environment()
    page.globals.update(picture_px=PICTURE_PX, picture_bytes=PICTURE_BYTES)
    return page.get_template("gallery.html.j2").render(gallery=gallery)


def run(config: GalleryConfig) -> None:
    archive, out = storage.archive(config.archive), storage.local(config.out)
    storage.require_writable(out, "--out")
    sources = sources_of(archive, config)
    names = tables.require_shards(archive, sources["segments"])
    for table in sources.values():
        tables.check_source(archive, table, None, names)
    if config.split is not None:
        tables.require_split(archive, config.split)
    chosen, total = choose_tiles(archive, names, config)
    rows = (row for name, places in chosen.items() for row in rows_of(archive, sources, name, places))
    shown = [tile_of(row, config.max_segments) for row in rows]
    of_split = f" of split {config.split}" if config.split else ""
    page = Gallery(
        title=f"{archive.name}: {sources['segments']}",
        subtitle=f"{len(shown):,} of {total:,} tiles{of_split}, chosen by seed {config.seed}; the first "
        f"{config.max_segments} segments of each",
        tiles=shown,
        made_by={
            table: {**maker.get("settings", {}), **maker.get("notes", {})}
            for table in dict.fromkeys(sources.values())
            for maker in [tables.fingerprint_of(archive, table)]
        },
        ranked="ranks" in sources,
    )
    storage.replace(out, render(page).encode())
    print(f"gallery: {out}")


def sources_of(archive: Place, config: GalleryConfig) -> dict[str, str]:
    """The tables to read, by kind; captions only where the archive has some.

    Raises:
        ConfigError: one is not there, or there are several and no flag says which.
    """
    found = {"tiles": "tiles", "segments": tables.table_of(archive, "segments", config.segments, "segments")}
    if config.captions is not None or any(storage.shards(archive / t) for t in storage.tables(archive, "captions")):
        found["captions"] = tables.table_of(archive, "captions", config.captions, "captions")
    if config.ranks is not None:
        found["ranks"] = tables.ranks_of(archive, config.ranks, found["segments"])
    return found


def choose_tiles(archive: Place, names: Sequence[str], config: GalleryConfig) -> tuple[dict[str, list[int]], int]:
    """Rows of shards, in order, that seed and split choose, all equally likely; and of how many.

    Raises:
        ConfigError: there is no tile.
    """
    if config.split is None:
        rows = {name: np.arange(count) for name, count in tables.row_counts(archive, "tiles", names).items()}
    else:
        told = {name: storage.read_shard(archive / "tiles" / name, ["split"])["split"].to_pylist() for name in names}
        rows = {name: np.flatnonzero([split == config.split for split in splits]) for name, splits in told.items()}
    ends = np.cumsum([len(rows[name]) for name in names])
    total = int(ends[-1])
    if not total:
        raise ConfigError(f"{archive} has no tile to show; choose another --split")
    picked = np.sort(np.random.default_rng(config.seed).choice(total, min(config.tiles, total), replace=False))
    shard = np.searchsorted(ends, picked, side="right")
    within = picked - np.concatenate([[0], ends])[shard]
    return {names[k]: rows[names[k]][within[shard == k]].tolist() for k in np.unique(shard)}, total


def rows_of(archive: Place, sources: dict[str, str], name: str, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Some rows of a shard, each as kind of table -> row."""
    columns = {"tiles": ["image"], "segments": ["segments"], "captions": ["captions"], "ranks": ["scores", "phrases"]}
    read = tables.read_aligned(archive, {table: columns[kind] for kind, table in sources.items()}, name)
    taken = {kind: read[table].take(pa.array(rows)).to_pylist() for kind, table in sources.items()}
    return [{kind: found[i] for kind, found in taken.items()} for i in range(len(rows))]


def tile_of(row: dict[str, Any], most: int) -> TileShown:
    """A tile as the page shows it, from its rows by kind of table."""
    tile, segments = row["tiles"], row["segments"]
    captions, ranks = row.get("captions"), row.get("ranks")
    reason: str | None = tile["failure"] or segments["failure"]
    found: list[Drawn] = []
    elsewhere: tuple[int, Fit] | None = None
    if reason is None:
        try:
            found, elsewhere = drawn(segments["segments"], most, ranks)
        except TileError as error:
            reason = f"failed:{error}"
        reason = reason or (None if found else "no segments")
    no_fit = None
    if ranks is not None and found and found[0].fit is None:
        no_fit = ranks["failure"] or "failed:ranks of other segments; rank again"
    return TileShown(
        tile["tile_id"],
        tile["image"],
        found_size(tile["image"], segments["segments"]),
        found,
        len(segments["segments"] or []),
        reason,
        list(dict.fromkeys((captions or {}).get("captions") or [])),  # sets repeat themselves
        (captions or {}).get("failure"),
        no_fit,
        elsewhere,
    )


def found_size(image: bytes | None, segments: Sequence[dict[str, Any]] | None) -> tuple[int, int] | None:
    """H, W of a tile: what its masks are of, or what its picture says."""
    if segments:
        h, w = segments[0]["size"]
        return h, w
    try:
        with Image.open(io.BytesIO(image or b"")) as found:
            return found.height, found.width
    except OSError:
        return None

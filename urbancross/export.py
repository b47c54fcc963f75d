"""`export`: the segments of an archive as GeoParquet polygons, a file for each reference system of their tiles.

Or the archive as a STAC Collection (`catalog`), or one tile as a GeoTIFF.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from urbancross import catalog, runs, schemas, storage, tables
from urbancross.config import ExportConfig
from urbancross.errors import ConfigError, TileError, TileSkipped
from urbancross.geotiff import geotiff
from urbancross.progress import meter, say
from urbancross.runs import Balance
from urbancross.segments import shapes
from urbancross.segments.choice import ordered
from urbancross.segments.layers import DEGREES, TOLD, layer_of, layers
from urbancross.storage import Place
from urbancross.tiles import decode

BATCH_TILES = 64


def run(config: ExportConfig) -> Balance:
    archive, out = storage.archive(config.archive), storage.local(config.out)
    if out.exists():
        raise ConfigError(f"--out {out} exists already; remove it, or give another name")
    storage.require_writable(out, "--out")
    if config.tile is not None:
        return export_tile(archive, config.tile, out)
    if config.stac:
        return export_stac(archive, out, config)
    sources, maker = sources_of(archive, config)
    names = tables.require_shards(archive, sources[1])
    for table in sources:
        tables.check_source(archive, table, None, names)
    if config.split is not None:
        tables.require_split(archive, config.split)
    require_place(archive, names)
    if later := len(storage.shards(archive / "tiles")) - len(names):
        say(f"note: {sources[1]} lacks {later:,} shards; run urbancross segment again to finish it")
    total = sum(tables.row_counts(archive, sources[1], names).values())
    failures: list[str | None] = []
    by_bounds = Counter[bool]()
    with storage.publish_folder(out) as folder:
        with layers(folder, maker) as files, meter("export", total) as shown:
            for name in names:
                for batch in batches(archive, sources, name):
                    rows = [row for row in batch if config.split in (None, row["split"])]
                    found = schemas.each_tile(rows, lambda row: polygons_of(row, config))
                    files.add(found)
                    failures += [row["failure"] for row in found]
                    by_bounds.update(row["inexact"] for row in found if row["failure"] is None)
                    shown.add(len(batch))
        counts = runs.count_failures(failures)
        if not counts["written"]:
            raise ConfigError(f"{archive} has no segment to export ({runs.most_common(counts['skips'])})")
    for kind, reasons in (("failed", counts["reasons"]), ("skipped", counts["skips"])):
        if reasons:
            say(f"export: {kind} {runs.most_common(reasons)}")
    if by_bounds[True]:
        say(
            f"note: {by_bounds[True]:,} tiles of scenes are placed by their bounds, some pixels off: their table is of "
            "an earlier version; ingest them into a new archive"
        )
    for name, count in files.rows.items():
        print(f"{out / name}: {count:,} segments")
    return Balance(read=len(failures), **{end: counts[end] for end in ("written", "skipped", "failed")})


def export_tile(archive: Place, tile_id: str, out: Path) -> Balance:
    """
    Raises:
        ConfigError: there is no such tile, it has no pixels, or no place.
    """
    shard, number = tables.find_tile(archive, tile_id)
    if not storage.exists(archive / "tiles" / shard):
        raise ConfigError(f"{archive}: {tile_id} is planned, not read yet; run urbancross ingest again to finish it")
    row = tables.read_rows(archive, "tiles", shard).slice(number, 1).to_pylist()[0]
    if row["failure"] is not None:
        raise ConfigError(f"--tile {tile_id} has no pixels ({row['failure']}); give another")
    try:
        data = geotiff(row, decode(row["image"]))
    except TileError as error:
        raise ConfigError(f"--tile {tile_id}: {error}; give another") from None
    if storage.create(out, data) is None:
        raise ConfigError(f"--out {out} exists already; remove it, or give another name")
    return Balance(read=1, written=1)


def export_stac(archive: Place, out: Path, config: ExportConfig) -> Balance:
    if config.split is not None:
        tables.require_split(archive, config.split)
    with storage.publish_folder(out) as folder:
        seen = catalog.write(archive, folder, out, config.licence, config.split)
        counts = runs.count_failures(seen.failures)
        if not counts["written"]:
            raise ConfigError(
                f"{archive} has no tile to export ({runs.most_common(counts['skips'] or counts['reasons'])})"
            )
    print(f"{out / catalog.COLLECTION}: {counts['written']:,} items in {catalog.ITEMS}")
    return Balance(read=len(seen.failures), **{end: counts[end] for end in ("written", "skipped", "failed")})


def sources_of(archive: Place, config: ExportConfig) -> tuple[list[str], dict[str, Any]]:
    """The tables to read, tiles and segments first, and what the files say of their making.

    Raises:
        ConfigError: there is no such table, or the ranks are of other segments.
    """
    segments = tables.table_of(archive, "segments", config.segments, "segments")
    found = ["tiles", segments]
    if config.ranks is not None:
        found.append(tables.ranks_of(archive, config.ranks, segments))
    made_by = {table: tables.fingerprint_of(archive, table) for table in found}
    return found, {
        "verb": "export",
        "settings": config.model_dump(include={"split", "max_segments", "simplify"}),
        "made_by": {
            table: {key: value for key, value in told.items() if key != "run"} for table, told in made_by.items()
        },
    }


def require_place(archive: Place, names: Sequence[str]) -> None:
    """Stop before any work where no tile says where it lies.

    Raises:
        ConfigError: none does.
    """
    for name in names:
        told = tables.read_rows(archive, "tiles", name, ["transform", "bounds"])
        if any(column.null_count < len(column) for column in told.columns):
            return
    raise ConfigError(
        f"no tile of {archive} has a place on the globe: nothing to export; ingest GeoTIFF scenes, or a captioned set "
        "with bounds"
    )


def batches(archive: Place, sources: Sequence[str], name: str) -> Iterator[list[dict[str, Any]]]:
    """The rows of a shard, side by side, some tiles at a time; `failure` is the first of theirs."""
    tiles, segments, *ranks = sources
    columns: dict[str, list[str]] = {tiles: [*TOLD, "bounds", "crs", "transform"], segments: ["segments"]}
    columns |= {table: ["scores", "phrases"] for table in ranks}
    read = tables.read_aligned(archive, columns, name)
    for start in range(0, read[tiles].num_rows, BATCH_TILES):
        rows, *others = (read[table].slice(start, BATCH_TILES).to_pylist() for table in sources)
        for row, found, *ranked in zip(rows, *others, strict=True):
            row["segments"], row["table"] = found["segments"], segments
            row["failure"] = row["failure"] or found["failure"]
            row["ranks"] = ranked[0] if ranked else None
        yield rows


def polygons_of(row: dict[str, Any], config: ExportConfig) -> dict[str, Any]:
    """The segments of a tile with their shapes on the ground, and the system that these are in.

    Raises:
        TileSkipped: the tile has no place.
        TileError: its reference system, or a mask of it, cannot be used.
    """
    segments = ordered(row["segments"], "quality")
    if not segments:
        raise TileSkipped("no segments")
    size = segments[0]["size"]
    exact = row["transform"] is not None and row["crs"] is not None
    if not exact and row["bounds"] is None:
        raise TileSkipped("no place on the globe")
    transform = row["transform"] if exact else shapes.across(row["bounds"], size)
    if not np.isfinite(transform).all() or shapes.determinant(transform) == 0:
        raise TileError("its place has no extent")
    fit = (row["ranks"] or {}).get("scores")
    if fit is not None and len(fit) != len(segments):
        raise TileError(f"{len(fit)} ranks for {len(segments)} segments; rank again")
    phrases = (row["ranks"] or {}).get("phrases")
    layer = layer_of(row["crs"] if exact else DEGREES)
    segments = segments[: config.max_segments]
    drawn = shapes.placed([shapes.outline(segment, config.simplify) for segment in segments], transform)
    h, w = size
    told = {name: row[name] for name in ["tile_id", *TOLD]}
    told |= {"placed_by": "transform" if exact else "bounds", "segments": row["table"]}
    return {
        "layer": layer,
        "inexact": not exact and row["crs"] is not None,
        "shapes": drawn,
        "middle": shapes.placed([shapely.Point(w / 2, h / 2)], transform)[0],
        "rows": [
            {
                **told,
                **{name: segment[name] for name in ("rank", "score", "predicted_iou", "stability")},
                "area_px": segment["area"],
                "caption_score": fit[i] if fit else None,
                "phrase": phrases[i] if phrases else None,
            }
            for i, segment in enumerate(segments)
        ],
    }

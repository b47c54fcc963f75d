"""The pyarrow schema of every table, and `check`: the single source of truth for what a shard holds.

Every table has one row per tile of the `plan` shard of the same name, in the same order. `failure` is null for a
done row, `skipped:<why>` for a tile that needs no result and `failed:<why>` for one that could not have it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from urbancross.errors import SchemaError, TileError, TileSkipped

log = logging.getLogger(__name__)

# Columns that tables of an earlier version lack; they count as null there, but `bbox`, which follows from `bounds`.
ADDED = {
    "plan": {"footprint", "transform", "colours", "member"},
    "tiles": {"transform", "bbox"},
    "hashes": {"digest"},
}

FAILURE = pa.field("failure", pa.string())
TILE_ID = pa.field("tile_id", pa.string(), nullable=False)

# How a tile's pixels lie in its `crs`: (a, b, c, d, e, f) in the order of rasterio.Affine, so that the corner (x, y) of
# a pixel, (0, 0) being the tile's upper left, lies at (a x + b y + c, d x + e y + f), easting or longitude first. Null
# where only bounds are known.
TRANSFORM = pa.list_(pa.float64(), 6)

# What a shape covers, as GeoParquet has it: degrees where its column is in degrees.
BBOX = pa.struct([pa.field(name, pa.float64()) for name in ("xmin", "ymin", "xmax", "ymax")])
COVERING = {"bbox": {field.name: ["bbox", field.name] for field in BBOX}}  # says so in the metadata of its geometry

# Which bytes of a file are the image; null: all of them.
MEMBER = pa.struct([pa.field("offset", pa.int64()), pa.field("size", pa.int64())])

# How a scene's bands become red, green and blue: bands counted from 1, of each the values that become 0 and 255.
COLOURS = pa.struct(
    [
        pa.field("bands", pa.list_(pa.int32())),
        pa.field("low", pa.list_(pa.float64())),
        pa.field("high", pa.list_(pa.float64())),
        pa.field("palette", pa.bool_()),
    ]
)

# What the ingest knows of a tile before it has read a pixel: which file or which window of which scene.
PLAN = pa.schema(
    [
        TILE_ID,  # path of the image in its set, "{scene}/{row}-{col}", "{scene}/{square of the grid}", "{tar}/{key}"
        pa.field("source", pa.string(), nullable=False),  # absolute path of the image, the scene or the tar
        pa.field("source_version", pa.string()),  # the file's size in bytes and time of change; null: it was absent
        pa.field(
            "window", pa.list_(pa.int32(), 4)
        ),  # (x0, y0, x1, y1) pixels of the scene; null: an image, or a square
        pa.field("member", MEMBER),  # of a tar
        pa.field("colours", COLOURS),  # null: an image
        pa.field("domain", pa.string(), nullable=False),
        pa.field("split", pa.string()),  # train | valid | test, or null
        pa.field("captions", pa.list_(pa.string())),  # those that came with the set
        pa.field("bounds", pa.list_(pa.float64(), 4)),  # west, south, east, north; degrees; west > east across 180
        pa.field("footprint", pa.binary()),  # what the window covers as WKB in degrees; null: the box of the bounds
        pa.field("crs", pa.string()),
        pa.field("transform", TRANSFORM),
        pa.field("gsd_m", pa.float64()),
        pa.field("datetime", pa.string()),  # ISO 8601
        FAILURE,
    ]
)

TILES = pa.schema(
    [
        TILE_ID,
        pa.field("domain", pa.string(), nullable=False),
        pa.field("image", pa.binary()),  # encoded RGB: JPEG, PNG or WebP; null where the tile failed
        pa.field("bounds", pa.list_(pa.float64(), 4)),
        pa.field(
            "geometry", pa.binary()
        ),  # the footprint as WKB (multi)polygon in degrees; GeoParquet's primary column
        pa.field("bbox", BBOX),  # its box, the numbers of `bounds`: xmin > xmax across 180, as RFC 7946 has it
        pa.field("crs", pa.string()),  # of the scene
        pa.field("transform", TRANSFORM),
        pa.field("gsd_m", pa.float64()),
        pa.field("datetime", pa.string()),
        pa.field("split", pa.string()),
        FAILURE,
    ]
)

GEOTAGS = pa.schema(
    [
        TILE_ID,
        pa.field("center_tags", pa.list_(pa.string())),  # "key=value", most visible first
        pa.field("center_counts", pa.list_(pa.int32())),  # how many features of the tile carry each of them
        pa.field("surrounding_tags", pa.list_(pa.string())),
        pa.field("surrounding_counts", pa.list_(pa.int32())),
        pa.field("nearby_tags", pa.list_(pa.string())),  # of features outside the tile, where it has few of its own
        FAILURE,
    ]
)

VERDICT = pa.struct(  # the captions' claims held against all tags of the tile; see captions/truth.py
    [
        pa.field("word", pa.string()),  # no map | no claim | supported | not in map | contradicted
        pa.field("precision", pa.float32()),  # of what is claimed, the share that the map has; null: nothing to compare
        pa.field("coverage", pa.float32()),  # of the tile's tags, the share that is claimed
        pa.field("supported", pa.list_(pa.string())),  # claims, as written
        pa.field("not_in_map", pa.list_(pa.string())),
        pa.field("contradictions", pa.list_(pa.string())),
    ]
)

CAPTIONS = pa.schema(
    [
        TILE_ID,
        pa.field("captions", pa.list_(pa.string())),
        pa.field("engine", pa.string()),  # given | template | vllm | openai; template too where it stood in for a model
        pa.field("model", pa.string()),  # of vllm and openai: the name that was asked for
        pa.field("prompt_version", pa.string()),
        pa.field("tags", pa.list_(pa.string())),  # the tags that the engine was given
        pa.field("tags_from", pa.string()),  # tile | nearby | other tile | none
        pa.field("seed", pa.int64()),
        pa.field("land_use", pa.string()),  # of the first caption, by the model
        pa.field("objects", pa.list_(pa.string())),  # of all captions, by the model
        pa.field("attempts", pa.int32()),  # questions that the hardest of the captions took
        pa.field("repaired", pa.bool_()),  # an answer was no whole JSON
        pa.field("verdict", VERDICT),
        FAILURE,
    ]
)

SEGMENT = pa.struct(
    [
        pa.field("rle", pa.string()),  # COCO run-length code of the mask over the tile, size (H, W) below
        pa.field("size", pa.list_(pa.int32(), 2)),  # H, W of the tile
        pa.field("box", pa.list_(pa.int32(), 4)),  # x0, y0, x1, y1 in pixels, end-exclusive
        pa.field("area", pa.int32()),  # pixels
        pa.field("predicted_iou", pa.float32()),  # null where the engine predicts none
        pa.field("stability", pa.float32()),
        pa.field("score", pa.float32()),  # the caption-free order: higher first
        pa.field("rank", pa.int32()),  # 0 is the best
    ]
)

SEGMENTS = pa.schema([TILE_ID, pa.field("segments", pa.list_(SEGMENT)), FAILURE])

# How well the segments of a tile fit its captions, by an encoder; lists follow the segments' rank.
RANKS = pa.schema(
    [
        TILE_ID,
        pa.field("scores", pa.list_(pa.float32())),  # cosine with all phrases of the captions together
        pa.field("phrases", pa.list_(pa.string())),  # the phrase that fits each segment best
        FAILURE,
    ]
)


HASHES = pa.schema(
    [
        TILE_ID,
        pa.field("hashes", pa.list_(pa.uint64(), 8)),  # perceptual: of the tile, and of its other rotations and flips
        pa.field("digest", pa.binary(16)),  # of its pixels; tiles that are too plain for a hash have one, too
        FAILURE,
    ]
)

# Which tiles show what an earlier one, in the order of the plan, shows already; the earliest is no copy.
DUPLICATES = pa.schema(
    [
        TILE_ID,
        pa.field("copy_of", pa.string()),  # a tile that is itself no copy; null: this one is none
        pa.field("kind", pa.string()),  # exact: pixel for pixel | near
        pa.field("distance", pa.int32()),  # bits in which their perceptual hashes differ
        FAILURE,
    ]
)


def embeddings(width: int) -> pa.Schema:
    """One unit vector `[width]` per tile."""
    return pa.schema([TILE_ID, pa.field("vector", pa.list_(pa.float32(), width)), FAILURE])


def segment_embeddings(width: int) -> pa.Schema:
    """Unit vectors `[width]` of a tile's first segments, by rank."""
    return pa.schema([TILE_ID, pa.field("vectors", pa.list_(pa.list_(pa.float32(), width))), FAILURE])


def features(image_width: int, text_width: int) -> pa.Schema:
    """What frozen towers say of a tile, its captions and its segments, before any head."""
    return pa.schema(
        [
            TILE_ID,
            pa.field("image", pa.list_(pa.float32(), image_width)),
            pa.field("texts", pa.list_(pa.list_(pa.float32(), text_width))),  # one per caption, in order
            pa.field("segments", pa.list_(pa.list_(pa.float32(), image_width))),  # by rank
            pa.field("shortened", pa.int32()),  # captions that the text tower could not read to their end
            FAILURE,
        ]
    )


def check(found: pa.Schema, wanted: pa.Schema, where: str) -> None:
    """Name every column of `wanted` that `found` lacks or types otherwise.

    Raises:
        SchemaError: at least one column does not fit.
    """
    types = dict(zip(found.names, found.types, strict=True))
    wrong = [
        f"{field.name}: want {field.type}, found {types.get(field.name, 'no such column')}"
        for field in wanted
        if types.get(field.name) != field.type
    ]
    if wrong:
        raise SchemaError(
            f"{where} does not fit its schema ({'; '.join(wrong)}); remove it, and make it with urbancross"
        )


def completed(found: pa.Table, table: str) -> pa.Table:
    """Rows of a table as they would be of today's version: columns that came later are null, or made from others."""
    for field in {"plan": PLAN, "tiles": TILES, "hashes": HASHES}.get(table, ()):
        if field.name in ADDED[table] and field.name not in found.column_names:
            known = field.name == "bbox" and "bounds" in found.column_names
            column = boxes(found["bounds"].to_pylist()) if known else pa.nulls(found.num_rows, field.type)
            found = found.append_column(field, column)
    return found


def boxes(bounds: Sequence[Sequence[float] | None]) -> pa.Array:
    """Bounds as rows of `BBOX`."""
    return pa.array([None if box is None else dict(zip(BBOX.names, box, strict=True)) for box in bounds], BBOX)


def each_tile(
    rows: Iterable[dict[str, Any]], result: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """One output row per input row, in order: `result(row)`, or the reason why there is none.

    A row that failed upstream is skipped here. Whatever a single tile raises stays that tile's own failure.
    """
    out = []
    for row in rows:
        tile_id = row["tile_id"]
        if row["failure"] is not None:
            out.append({"tile_id": tile_id, "failure": f"skipped:no input ({row['failure']})"})
            continue
        try:
            out.append({"tile_id": tile_id, "failure": None, **result(row)})
        except TileSkipped as reason:
            out.append({"tile_id": tile_id, "failure": f"skipped:{reason}"})
        except TileError as reason:
            out.append({"tile_id": tile_id, "failure": f"failed:{reason}"})
        except Exception as error:  # a library's own exception at one odd tile must not cost the whole shard
            log.exception("tile %s", tile_id)
            out.append({"tile_id": tile_id, "failure": f"failed:{type(error).__name__}: {error}"})
    return out

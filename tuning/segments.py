"""What segments are worth on a drawn country, whose true footprints are known.

    python tuning/segments.py --out FOLDER [--scenes 10] [--sam-steps 2000]

For each engine: IoU of the best segment with every building and every water body of the test tiles. For each order: of
the first K segments of a tile, the share that lies on a tag which the tile's captions name; the caption order is by a
model pretrained on the train tiles without segments. The engine `sam` has small weights, trained here on the true
footprints of the train tiles, so it is told what a building is: read it as what SAM's code can do. Prints tables in
Markdown and writes FOLDER/segments.json; what is there already is not made again.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.warp
import shapely
from PIL import Image
from rasterio.features import rasterize
from small_sam import SHAPE, THRESHOLDS, train
from tags import call, country

from urbancross import storage
from urbancross.captions.words import mentions
from urbancross.errors import UrbanCrossError
from urbancross.segments.choice import ordered
from urbancross.segments.masks import decode
from urbancross.tiles import decode as decode_image

# All that an engine finds, so that small houses are not lost to the defaults' bounds.
BOUNDS = {"min_area": 0.002, "max_area": 0.9, "max_segments": 64}
KINDS = {"building": ("building",), "water": ("natural=water", "landuse=reservoir", "leisure=swimming_pool")}
SMALLEST = 0.004  # share of the tile that an object has to show
LARGEST = 0.6  # a tag that covers more of the tile than a segment may is no answer to "which segment"
ORDERS = ("caption", "quality", "area", "random")
SEEDS = 20  # of the random order
SAM_PX = 224  # a tile as it is
SAM_FLAGS = {**THRESHOLDS, "points_per_side": 16}
ON = 0.5  # share of a segment that has to lie on a tag


@dataclass(frozen=True)
class Ground:
    """What is truly on one tile: masks `[H, W]` of its features, and their tags."""

    masks: list[np.ndarray]
    tags: list[frozenset[str]]

    def of_kind(self, kind: str) -> list[np.ndarray]:
        """Its buildings, or its waters, one by one, that show enough of themselves."""
        names = KINDS[kind]
        found = [
            mask
            for mask, tags in zip(self.masks, self.tags, strict=True)
            if any(tag in names or tag.partition("=")[0] in names for tag in tags)
        ]
        return [mask for mask in found if mask.mean() >= SMALLEST]

    def under(self, tag: str) -> np.ndarray | None:
        """Where a tag holds, `[H, W]`; None where nowhere."""
        found = [mask for mask, tags in zip(self.masks, self.tags, strict=True) if tag in tags]
        return np.any(found, axis=0) if found else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--sam-steps", type=int, default=2000, help="of training the SAM; 0: go without")
    parser.add_argument("--sam-flags", default=json.dumps(SAM_FLAGS), help="settings of segment --engine sam, as JSON")
    parser.add_argument("--head-epochs", type=int, default=16)
    parser.add_argument("--split", default="test")
    told = parser.parse_args()
    home = Path(told.out).absolute()
    archive = country(home, told.scenes)
    call("caption", archive=archive)
    engines: dict[str, dict[str, Any]] = {"felzenszwalb": {}, "grid": {}}
    if told.sam_steps:
        weights = home / "sam.pth"
        if not weights.exists():
            draw = train_tiles(Path(archive), home / "world")
            train(weights, told.sam_steps, shape=replace(SHAPE, img_size=SAM_PX), draw=draw)
        engines["sam"] = {"checkpoint": str(weights), **json.loads(told.sam_flags)}
    for engine, flags in engines.items():
        call("segment", archive=archive, engine=engine, name=engine, **BOUNDS, **flags)
    model = home / "plain"
    call("pretrain", archive=archive, out=str(model), segments="none", head_epochs=told.head_epochs, workers=1)
    results: dict[str, Any] = {}
    for engine in engines:
        call("rank", archive=archive, segments=engine, checkpoint=str(model))
        results[engine] = measured(Path(archive), home / "world", engine, f"{engine}-template-plain", told.split)
    storage.write_json(home / "segments.json", results)
    print(tables(results))


def train_tiles(archive: Path, world: Path) -> Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]:
    """Train tiles by seed, and on each pixel the number of the smallest feature there."""
    tiles = []
    for shard in storage.shards(archive / "tiles"):
        rows = storage.read_shard(archive / "tiles" / shard, ["image", "split", "failure"]).to_pylist()
        for row, ground in zip(rows, grounds(archive, world, shard), strict=True):
            if row["split"] == "train" and not row["failure"]:
                tile = decode_image(row["image"])
                numbers = np.zeros(tile.shape[:2], np.uint8)
                for number, mask in enumerate(sorted(ground.masks, key=np.sum, reverse=True)[:255], 1):
                    numbers[mask] = number
                tiles.append((tile, numbers))

    def draw(seed: int, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
        tile, numbers = tiles[seed % len(tiles)]
        small = Image.fromarray(numbers).resize((w, h), Image.Resampling.NEAREST)
        return np.asarray(Image.fromarray(tile).resize((w, h))), np.asarray(small)

    return draw


def grounds(archive: Path, world: Path, shard: str) -> Iterator[Ground]:
    """The ground of every tile of a shard, in order, from the world's own truth."""
    features = json.loads((world / "truth.geojson").read_text())["features"]
    shapes = np.array([shapely.geometry.shape(feature["geometry"]) for feature in features])
    tags = [
        frozenset(f"{key}={value}" for key, value in feature["properties"].items() if key not in ("in_map", "scene"))
        for feature in features
    ]
    scenes: dict[str, Any] = {}
    for row in storage.read_shard(archive / "plan" / shard, ["source", "window"]).to_pylist():
        if row["source"] not in scenes:
            scenes[row["source"]] = in_pixels(Path(row["source"]), shapes)
        placed, tree = scenes[row["source"]]
        x0, y0, x1, y1 = row["window"]
        near = tree.query(shapely.box(x0, y0, x1, y1))
        masks, kept = [], []
        for i in sorted(near.tolist()):
            if placed[i].geom_type not in ("Polygon", "MultiPolygon"):
                continue
            shift = rasterio.Affine.translation(x0, y0)
            mask = rasterize([placed[i]], (y1 - y0, x1 - x0), transform=shift, dtype=np.uint8).astype(bool)
            if mask.any():
                masks.append(mask)
                kept.append(tags[i])
        yield Ground(masks, kept)


def in_pixels(scene: Path, shapes: np.ndarray) -> tuple[np.ndarray, shapely.STRtree]:
    """Shapes in degrees as pixels of a scene."""
    with rasterio.open(scene) as raster:
        back, crs = ~raster.transform, raster.crs

    def project(lonlat: np.ndarray) -> np.ndarray:
        xs, ys = rasterio.warp.transform("EPSG:4326", crs, *lonlat.T)
        return np.stack(back @ (np.array(xs), np.array(ys)), axis=1)

    placed = shapely.transform(shapes, project)
    return placed, shapely.STRtree(placed)


def measured(archive: Path, world: Path, engine: str, ranks: str, split: str) -> dict[str, Any]:
    """Best IoU of every object, and shares of matching segments of every tile, by order and K."""
    ious: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    shares: dict[str, list[list[float]]] = {order: [] for order in ORDERS}
    count = []
    for shard in storage.shards(archive / f"segments@{engine}"):
        tables = {
            name: storage.read_shard(archive / name / shard).to_pylist()
            for name in ("tiles", f"segments@{engine}", "captions@template", f"ranks@{ranks}")
        }
        told = zip(*tables.values(), grounds(archive, world, shard), strict=True)
        for tile, cut, captions, fits, ground in told:
            if tile["split"] != split or tile["failure"]:
                continue
            segments = cut["segments"] or []
            count.append(len(segments))
            masks = [decode(segment) for segment in segments]
            for kind in KINDS:
                ious[kind].append(
                    [max((iou(mask, found) for mask in masks), default=0.0) for found in ground.of_kind(kind)]
                )
            named = named_ground(captions, ground)
            if segments and named is not None and fits["scores"]:
                on = [float(named[mask].mean() >= ON) for mask in masks]
                for order in ORDERS:
                    seeds = range(SEEDS) if order == "random" else (0,)
                    orders = [
                        [segment["rank"] for segment in ordered(segments, order, tile["tile_id"], seed, fits)]
                        for seed in seeds
                    ]
                    by_rank = {segment["rank"]: value for segment, value in zip(segments, on, strict=True)}
                    shares[order].append(
                        [float(np.mean([np.mean([by_rank[r] for r in o[:k]]) for o in orders])) for k in (1, 3, 5)]
                    )
    return {
        "segments_per_tile": float(np.mean(count)),
        "iou": {kind: with_interval(found) | {"objects": sum(map(len, found))} for kind, found in ious.items()},
        "on_tag": {
            order: {f"K={k}": with_interval([[row[i]] for row in rows]) for i, k in enumerate((1, 3, 5))}
            for order, rows in shares.items()
        },
        "caption_over_random": {
            f"K={k}": with_interval([[a[i] - b[i]] for a, b in zip(shares["caption"], shares["random"], strict=True)])
            for i, k in enumerate((1, 3, 5))
        },
        "tiles": len(count),
        "tiles_with_named_tags": len(shares["caption"]),
    }


def named_ground(captions: dict[str, Any], ground: Ground) -> np.ndarray | None:
    """Where the tags that a tile's captions name really are; None where they are nowhere, or too large to be meant."""
    texts = captions["captions"] or []
    named = [tag for tag in captions["tags"] or [] if any(mentions(text, tag) for text in texts)]
    places = [place for tag in named if (place := ground.under(tag)) is not None and place.mean() <= LARGEST]
    return np.any(places, axis=0) if places else None


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(int((a | b).sum()), 1))


def with_interval(groups: list[list[float]], draws: int = 2000) -> dict[str, Any]:
    """Mean over all values, and its 95 % bootstrap interval, whole tiles drawn."""
    sums, sizes = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    if not sizes.sum():
        return {"mean": None, "ci95": None}
    rows = np.random.default_rng(0).integers(0, len(groups), (draws, len(groups)))
    means = sums[rows].sum(axis=1) / np.maximum(sizes[rows].sum(axis=1), 1)
    return {"mean": float(sums.sum() / sizes.sum()), "ci95": np.percentile(means, [2.5, 97.5]).tolist()}


def tables(results: dict[str, Any]) -> str:
    first = next(iter(results.values()))
    lines = [
        f"{first['tiles']} test tiles; objects of at least {100 * SMALLEST:g} % of the tile",
        "",
        "| engine | segments a tile | best IoU, " + " | best IoU, ".join(KINDS) + " |",
        "|---|---|" + "---|" * len(KINDS),
    ]
    for engine, found in results.items():
        cells = [f"{cell(found['iou'][kind])} ({found['iou'][kind]['objects']} objects)" for kind in KINDS]
        lines.append(f"| {engine} | {found['segments_per_tile']:.1f} | {' | '.join(cells)} |")
    lines += ["", "| engine | order | K = 1 | K = 3 | K = 5 |", "|---|---|---|---|---|"]
    for engine, found in results.items():
        for order, by_k in {**found["on_tag"], "caption - random": found["caption_over_random"]}.items():
            lines.append(f"| {engine} | {order} | {' | '.join(cell(by_k[f'K={k}'], 2) for k in (1, 3, 5))} |")
    return "\n".join(lines)


def cell(found: dict[str, Any], digits: int = 2) -> str:
    if found["mean"] is None:
        return "none"
    low, high = found["ci95"]
    return f"{found['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    try:
        main()
    except UrbanCrossError as error:
        raise SystemExit(str(error)) from None

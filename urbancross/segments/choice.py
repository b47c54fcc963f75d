"""Masks -> segments, best first, and the orders in which a loader takes them.

A segment is a row of `schemas.SEGMENT`. Its rank needs no caption: score = predicted IoU · stability · √area, with the
area as a share of the tile, and 1 for the predicted IoU where an engine predicts none.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from urbancross.segments.masks import Mask, code


def choose(
    masks: Sequence[Mask],
    max_segments: int = 32,
    min_area: float = 0.01,
    max_area: float = 0.6,
    max_iou: float = 0.7,
) -> list[dict[str, Any]]:
    """Keep the best masks of a tile as segments, best first; the order of the masks makes no difference.

    Args:
        masks: of one tile.
        max_segments: how many to keep.
        min_area: smallest share of the tile that a segment may cover.
        max_area: largest such share.
        max_iou: a mask that overlaps a better one by more than this is dropped.

    Returns:
        Rows of `schemas.SEGMENT`, rank 0 first; empty where no mask is in bounds.
    """
    fitting = [mask for mask in masks if mask.area and min_area <= mask.share <= max_area]
    kept: list[Mask] = []
    for mask in sorted(fitting, key=lambda mask: (-quality(mask), mask.box, mask.rle)):
        if len(kept) == max_segments:
            break
        if not kept or coco.iou([code(mask)], [code(k) for k in kept], [0] * len(kept)).max() <= max_iou:
            kept.append(mask)
    return [
        {**vars(mask), "size": list(mask.size), "box": list(mask.box), "score": quality(mask), "rank": rank}
        for rank, mask in enumerate(kept)
    ]


def quality(mask: Mask) -> float:
    """The caption-free score."""
    return float((1.0 if mask.predicted_iou is None else mask.predicted_iou) * mask.stability * np.sqrt(mask.share))


def ordered(
    segments: Sequence[dict[str, Any]],
    order: str,
    tile_id: str = "",
    seed: int = 0,
    ranks: dict[str, Any] | None = None,
    min_score: float | None = None,
) -> list[dict[str, Any]]:
    """The segments of a tile in the order in which they are taken.

    Args:
        segments: rows of `schemas.SEGMENT`.
        order: `quality` (the stored rank), `caption` (how well they fit the tile's captions), `area` (largest first) or
            `random` (by tile and seed).
        ranks: for `caption`: the tile's row of `schemas.RANKS`.
        min_score: for `caption`: leave out segments that fit less well than this cosine.
    """
    by_rank = sorted(segments, key=lambda segment: segment["rank"])
    if order == "quality":
        return by_rank
    if order == "area":
        return sorted(by_rank, key=lambda segment: -segment["area"])
    if order == "random":
        number = int.from_bytes(hashlib.blake2b(f"{seed} {tile_id}".encode(), digest_size=8).digest(), "big")
        return [by_rank[i] for i in np.random.default_rng(number).permutation(len(by_rank))]
    scores = (ranks or {}).get("scores") or []
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    return [by_rank[i] for i in best if min_score is None or scores[i] >= min_score]

"""How good a retrieval is, and how much better than another.

N = tiles, M = caption lines, D = embedding width. Recalls are shares in [0, 1]. Two protocols, never to be mixed:

- `field`: every caption line is a query and a gallery item, and its own tile alone is relevant, as papers on RSICD
  and RSITMD count. Where tiles share a caption, text to tile cannot reach 1.
- `unique-text`: identical lines are one text, and every tile that has it is relevant.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from urbancross.errors import ConfigError

Protocol = Literal["field", "unique-text"]
Embeddings = tuple[np.ndarray, np.ndarray]
"""Tiles [N, D] and texts [M, D]."""

CUTS = (1, 5, 10)
"""The k of R@k."""

TIE = 1e-9
"""Similarities closer than this are ties: a float64 product of equal vectors still differs by 1e-16 here and there,
and a collapsed encoder must not live off that."""

BLOCK_BYTES = 32 * 2**20
"""Size of one block of the similarity matrix; what is derived from it about triples that."""


def rank_of_first_relevant(scores: np.ndarray, relevant: np.ndarray, tolerance: float = 0.0) -> np.ndarray:
    """Rank of the best relevant item of each query: 1 + non-relevant items that are not clearly below it.

    Ties count against the query, and so does NaN wherever it stands: an encoder that maps everything to one point, or
    to nothing, earns nothing.

    Args:
        scores: [Q, G], higher is better.
        relevant: [Q, G] bool; at least one per query.
        tolerance: scores closer than this are ties.

    Returns:
        [Q] int64, from 1 to G.
    """
    if not relevant.any(axis=1).all():
        raise ConfigError(f"query {int(np.argmin(relevant.any(axis=1)))} has no relevant item, so it has no rank")
    best = np.where(relevant & ~np.isnan(scores), scores, -np.inf).max(axis=1, keepdims=True)  # [Q, 1]
    below = scores < best - tolerance  # false for NaN
    return 1 + np.count_nonzero(~below & ~relevant, axis=1)


def evaluate_retrieval(
    tiles: np.ndarray,
    texts: np.ndarray,
    text_tile: np.ndarray,
    protocol: Protocol = "field",
    text_keys: np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 from tile to text and from text to tile, with its chance level and 95 % intervals.

    R@k is the share of queries with a relevant item among the best k. A tile without captions is no query, but stays
    in the gallery. Intervals are percentiles over tiles drawn with replacement, together with their captions, the
    gallery staying as it is: captions of one tile are not independent. A text of several tiles counts as an equal
    share under each.

    Args:
        tiles: [N, D] unit vectors.
        texts: [M, D] unit vectors, one per caption line.
        text_tile: [M] int, the row of `tiles` each line belongs to.
        protocol: see the top of this module.
        text_keys: [M] int, equal for identical lines; needed by `unique-text` only.
        bootstrap: number of resamples.
        seed: of the resamples.
        groups: [N] str, to tell the recalls of each group of tiles too; galleries stay whole.

    Returns:
        {"protocol", "gallery": {"tiles", "texts"}, "tile_to_text": {"R@1", "R@5", "R@10"}, "text_to_tile": {...}, "mR",
        "chance_mR", "ci95": {"mR": [low, high], "tile_to_text": {"R@1": [low, high], ...}, "text_to_tile": {...}}}.
        With groups, also {"by": {group: {"tiles", "tile_to_text", "text_to_tile", "mR", "ci95"}}}.
    """
    asked = _ask(tiles, texts, text_tile, protocol, text_keys, bootstrap)
    chance = [_chance(asked.texts_of_tile, asked.texts, k) for k in CUTS] + [
        _chance(asked.tiles_of_text, asked.tiles, k) for k in CUTS
    ]
    told = {"by": _by_group(asked, groups, bootstrap, seed)} if groups is not None else {}
    return {
        "protocol": protocol,
        "gallery": {"tiles": asked.tiles, "texts": asked.texts},
        "chance_mR": float(np.mean(chance)),
        **_told(asked.per_tile, bootstrap, seed),
        **told,
    }


def _by_group(asked: "_Asked", groups: np.ndarray, bootstrap: int, seed: int) -> dict[str, dict[str, Any]]:
    """The recalls of the tiles that ask, and of their texts, by the group of the tile."""
    groups = np.asarray(groups)
    if groups.shape != (asked.tiles,):
        raise ConfigError(f"groups {[*groups.shape]}: want a name for each of {asked.tiles} tiles")
    of_tile = groups[asked.rows]
    return {
        str(name): {"tiles": int(np.sum(of_tile == name)), **_told(asked.per_tile[of_tile == name], bootstrap, seed)}
        for name in np.unique(of_tile)
    }


def _told(per_tile: np.ndarray, bootstrap: int, seed: int) -> dict[str, Any]:
    """Recalls and their intervals, from what came of the tiles' queries [T, 7]."""
    resampled = _recalls(_resampled_sums(per_tile, bootstrap, seed), len(per_tile))  # [bootstrap, 6]
    point = _recalls(per_tile.sum(axis=0), len(per_tile))  # [6]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    mean_low, mean_high = np.quantile(resampled.mean(axis=1), [0.025, 0.975])
    names = [f"R@{k}" for k in CUTS]
    intervals = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    return {
        "tile_to_text": dict(zip(names, point[:3].tolist(), strict=True)),
        "text_to_tile": dict(zip(names, point[3:].tolist(), strict=True)),
        "mR": float(point.mean()),
        "ci95": {
            "mR": [float(mean_low), float(mean_high)],
            "tile_to_text": dict(zip(names, intervals[:3], strict=True)),
            "text_to_tile": dict(zip(names, intervals[3:], strict=True)),
        },
    }


def gain(
    before: Sequence[Embeddings],
    after: Sequence[Embeddings],
    text_tile: np.ndarray,
    protocol: Protocol = "field",
    text_keys: np.ndarray | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """By how much mR grows from one model to another, relative to the first, over runs that are paired by seed.

    Each resample draws runs and tiles with replacement and asks both models the same, so what the two have in common
    does not widen the interval.

    Args:
        before: of each run, tiles [N, D] and texts [M, D].
        after: likewise, by the other model.
        text_tile, protocol, text_keys, bootstrap, seed: see `evaluate_retrieval`.

    Returns:
        {"before", "after": mean mR, "gain": after / before - 1, "ci95": [low, high]}.
    """
    if not before or len(before) != len(after):
        raise ConfigError(f"{len(before)} runs before and {len(after)} after: as many of both wanted, and at least one")
    runs = [
        [_ask(v, u, text_tile, protocol, text_keys, bootstrap).per_tile for v, u in side] for side in (before, after)
    ]
    points = np.array([[_recalls(table.sum(axis=0), len(table)).mean() for table in side] for side in runs])
    resampled = np.array(
        [
            [_recalls(_resampled_sums(table, bootstrap, seed), len(table)).mean(axis=1) for table in side]
            for side in runs
        ]
    )  # [2, runs, bootstrap]; one seed, so every table is resampled alike
    chosen = np.random.default_rng([seed, 1]).integers(0, len(before), (len(before), bootstrap))
    first, last = np.take_along_axis(resampled, chosen[None], axis=1).mean(axis=1)
    low, high = np.quantile(last / np.maximum(first, 1e-12) - 1, [0.025, 0.975])
    was, now = points.mean(axis=1)
    return {
        "before": float(was),
        "after": float(now),
        "gain": float(now / max(was, 1e-12) - 1),
        "ci95": [float(low), float(high)],
    }


class _Asked(NamedTuple):
    """What came of all queries.

    Attributes:
        rows: [T] the tiles with captions.
        per_tile: [T, 7] of those: hits tile to text, hits text to tile, number of texts.
        texts_of_tile, tiles_of_text: how many are relevant.
        tiles, texts: gallery sizes.
    """

    rows: np.ndarray
    per_tile: np.ndarray
    texts_of_tile: np.ndarray
    tiles_of_text: np.ndarray
    tiles: int
    texts: int


def _ask(
    tiles: np.ndarray,
    texts: np.ndarray,
    text_tile: np.ndarray,
    protocol: Protocol,
    text_keys: np.ndarray | None,
    bootstrap: int,
) -> _Asked:
    tiles, texts, text_tile = np.asarray(tiles), np.asarray(texts), np.asarray(text_tile)
    _check_retrieval(tiles, texts, text_tile, protocol, text_keys, bootstrap)
    if protocol == "unique-text":
        _, first, text_row = np.unique(np.asarray(text_keys), return_index=True, return_inverse=True)
        texts = texts[first]
    else:
        text_row = np.arange(len(texts))
    # Relevance as a list of (tile, text): a matrix of it would be as large as the similarities.
    pair_tile, pair_text = np.unique(np.stack([text_tile, text_row]), axis=1)
    asked, pair_asked, texts_of_tile = np.unique(pair_tile, return_inverse=True, return_counts=True)
    tiles_of_text = np.bincount(pair_text, minlength=len(texts))

    cuts = np.array(CUTS)
    tile_hits = _ranks(tiles[asked], texts, pair_asked, pair_text)[:, None] <= cuts  # [T, 3], T tiles with captions
    text_hits = _ranks(texts, tiles, pair_text, pair_tile)[:, None] <= cuts  # [texts, 3]

    share = 1 / tiles_of_text[pair_text]  # [pairs]
    per_tile = np.empty((len(asked), 7))
    per_tile[:, :3] = tile_hits
    for column, values in enumerate((share[:, None] * text_hits[pair_text]).T, start=3):
        per_tile[:, column] = np.bincount(pair_asked, weights=values)
    per_tile[:, 6] = np.bincount(pair_asked, weights=share)
    return _Asked(asked, per_tile, texts_of_tile, tiles_of_text, len(tiles), len(texts))


def _check_retrieval(
    tiles: np.ndarray,
    texts: np.ndarray,
    text_tile: np.ndarray,
    protocol: str,
    text_keys: np.ndarray | None,
    bootstrap: int,
) -> None:
    if protocol not in get_args(Protocol):
        raise ConfigError(f"unknown protocol {protocol!r}; wanted one of {', '.join(get_args(Protocol))}")
    if len(tiles) == 0 or len(texts) == 0:
        raise ConfigError(f"{len(tiles)} tiles and {len(texts)} captions: nothing to evaluate")
    if tiles.ndim != 2 or texts.ndim != 2 or tiles.shape[1] != texts.shape[1]:
        raise ConfigError(f"tiles {[*tiles.shape]} and texts {[*texts.shape]} are not embeddings of one width")
    if text_tile.shape != (len(texts),) or text_tile.min() < 0 or text_tile.max() >= len(tiles):
        raise ConfigError(f"text_tile has to name, for each of {len(texts)} captions, one of {len(tiles)} tiles")
    if protocol == "unique-text" and (text_keys is None or np.shape(text_keys) != (len(texts),)):
        raise ConfigError(f"unique-text needs text_keys, one for each of {len(texts)} captions")
    if bootstrap < 1:
        raise ConfigError(f"{bootstrap} resamples make no interval; pass at least 1")


def _ranks(queries: np.ndarray, gallery: np.ndarray, pair_query: np.ndarray, pair_item: np.ndarray) -> np.ndarray:
    """Rank of the first relevant gallery item of each query, block by block; [Q]."""
    order = np.argsort(pair_query, kind="stable")
    pair_query, pair_item = pair_query[order], pair_item[order]
    gallery = gallery.astype(np.float64)
    rows = max(1, BLOCK_BYTES // (8 * len(gallery)))
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), rows):
        with np.errstate(all="ignore"):  # NaN and infinite embeddings are judged by their rank
            scores = queries[start : start + rows].astype(np.float64) @ gallery.T
        here = slice(*np.searchsorted(pair_query, [start, start + rows]))
        relevant = np.zeros(scores.shape, dtype=bool)
        relevant[pair_query[here] - start, pair_item[here]] = True
        ranks[start : start + rows] = rank_of_first_relevant(scores, relevant, TIE)
    return ranks


def _resampled_sums(per_tile: np.ndarray, bootstrap: int, seed: int) -> np.ndarray:
    """Sum the columns [T, C] over T tiles drawn with replacement, `bootstrap` times; [bootstrap, C]."""
    rng = np.random.default_rng(seed)
    tiles = len(per_tile)
    rows = max(1, BLOCK_BYTES // (8 * tiles))
    even = np.full(tiles, 1 / tiles)
    blocks = [
        rng.multinomial(tiles, even, size=min(rows, bootstrap - start)) @ per_tile
        for start in range(0, bootstrap, rows)
    ]
    return np.concatenate(blocks)


def _recalls(sums: np.ndarray, tiles: int) -> np.ndarray:
    """From sums over `tiles` queries [..., 7] to the six recalls."""
    return np.concatenate([sums[..., :3] / tiles, sums[..., 3:6] / sums[..., 6:]], axis=-1)


def _chance(relevant: np.ndarray, gallery: int, k: int) -> float:
    """Mean over queries of P(k random items of the gallery hold a relevant one), relevant items per query given.

    1 - C(gallery - relevant, k) / C(gallery, k), as a product of k shares.
    """
    drawn = np.arange(min(k, gallery))
    missed = np.clip(gallery - relevant[:, None] - drawn, 0, None) / (gallery - drawn)  # [Q, k]
    return float(np.mean(1 - missed.prod(axis=1)))

"""How good a retrieval is, and how far two domains lie apart.

N = tiles, M = caption lines, D = embedding width. Recalls are shares in [0, 1]. Two protocols, never to be mixed:

- `field`: every caption line is a query and a gallery item, and its own tile alone is relevant, as papers on RSICD
  and RSITMD count. Where tiles share a caption, text to tile cannot reach 1.
- `unique-text`: identical lines are one text, and every tile that has it is relevant.
"""

from typing import Any, Literal, get_args

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from urbancross.errors import ConfigError

Protocol = Literal["field", "unique-text"]

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

    Returns:
        {"protocol", "gallery": {"tiles", "texts"}, "tile_to_text": {"R@1", "R@5", "R@10"}, "text_to_tile": {...}, "mR",
        "chance_mR", "ci95": {"mR": [low, high], "tile_to_text": {"R@1": [low, high], ...}, "text_to_tile": {...}}}.
    """
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
    per_tile = np.empty((len(asked), 7))  # hits tile to text, hits text to tile, number of texts
    per_tile[:, :3] = tile_hits
    for column, values in enumerate((share[:, None] * text_hits[pair_text]).T, start=3):
        per_tile[:, column] = np.bincount(pair_asked, weights=values)
    per_tile[:, 6] = np.bincount(pair_asked, weights=share)
    resampled = _recalls(_resampled_sums(per_tile, bootstrap, seed), len(asked))  # [bootstrap, 6]

    point = np.concatenate([tile_hits.mean(axis=0), text_hits.mean(axis=0)])  # [6]
    chance = [_chance(texts_of_tile, len(texts), k) for k in CUTS] + [
        _chance(tiles_of_text, len(tiles), k) for k in CUTS
    ]
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    mean_low, mean_high = np.quantile(resampled.mean(axis=1), [0.025, 0.975])
    names = [f"R@{k}" for k in CUTS]
    intervals = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    return {
        "protocol": protocol,
        "gallery": {"tiles": len(tiles), "texts": len(texts)},
        "tile_to_text": dict(zip(names, point[:3].tolist(), strict=True)),
        "text_to_tile": dict(zip(names, point[3:].tolist(), strict=True)),
        "mR": float(point.mean()),
        "chance_mR": float(np.mean(chance)),
        "ci95": {
            "mR": [float(mean_low), float(mean_high)],
            "tile_to_text": dict(zip(names, intervals[:3], strict=True)),
            "text_to_tile": dict(zip(names, intervals[3:], strict=True)),
        },
    }


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


def proxy_a_distance(
    source: np.ndarray,
    target: np.ndarray,
    groups_source: np.ndarray | None = None,
    groups_target: np.ndarray | None = None,
    seed: int = 0,
) -> float:
    """How well a linear probe tells two domains apart: 2 (1 - 2 error), 0 for not at all, 2 for always.

    The error is class-balanced and measured on the half of the groups that the probe has not seen: neighbouring tiles
    look alike, so a probe tested beside its training tiles knows places rather than domains.

    Args:
        source: [n, D].
        target: [m, D].
        groups_source: [n], equal for tiles of one place; left out, every row is a place of its own.
        groups_target: [m], likewise. Labels are per domain: 3 here and 3 there are two places.
        seed: of the split.

    Returns:
        A number in [0, 2].
    """
    _check_domains(source, target)
    rng = np.random.default_rng(seed)
    held_out = np.concatenate([_half(len(source), groups_source, rng), _half(len(target), groups_target, rng)])
    rows = np.concatenate([source, target]).astype(np.float64)
    domain = np.repeat([0, 1], [len(source), len(target)])
    probe = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    probe.fit(rows[~held_out], domain[~held_out])
    wrong = probe.predict(rows[held_out]) != domain[held_out]
    error = np.mean([wrong[domain[held_out] == d].mean() for d in (0, 1)])
    return float(np.clip(2 * (1 - 2 * error), 0, 2))


def _half(n: int, groups: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Mark the rows of a random half of the groups; [n] bool."""
    names, group = np.unique(np.arange(n) if groups is None else np.asarray(groups), return_inverse=True)
    if len(group) != n or len(names) < 2:
        raise ConfigError(f"{n} rows in {len(names)} groups; a probe needs two groups a domain, one to be tested on")
    chosen = np.zeros(len(names), dtype=bool)
    chosen[rng.permutation(len(names))[: len(names) // 2]] = True
    return chosen[group]


def mmd2(
    source: np.ndarray, target: np.ndarray, permutations: int = 200, seed: int = 0, most: int = 1000
) -> tuple[float, float]:
    """Squared maximum mean discrepancy of two domains, unbiased, and its permutation p-value.

    Gretton et al., JMLR 2012, eq. 3, with the kernel exp(-|x - y|^2 / (2 s^2)), s the median distance. Unbiased means
    that it is about 0, and often just below, for two samples of one distribution.

    Args:
        source: [n, D].
        target: [m, D].
        permutations: how often the rows are dealt out to two domains anew.
        seed: of the permutations and of the choice of rows.
        most: rows used of each domain, chosen at random where there are more.

    Returns:
        The statistic, and (1 + permutations at least as large) / (1 + permutations).
    """
    _check_domains(source, target)
    rng = np.random.default_rng(seed)
    x, y = (rows[rng.choice(len(rows), most, replace=False)] if len(rows) > most else rows for rows in (source, target))
    n = len(x)
    kernel = _kernel(np.concatenate([x, y]).astype(np.float64))
    in_source = np.zeros((1 + permutations, len(kernel)))
    in_source[:, :n] = 1
    in_source[1:] = rng.permuted(in_source[1:], axis=1)
    values = _mmd2_of(kernel, in_source)  # the first is the real one
    as_large = np.count_nonzero(values[1:] >= values[0] - 1e-12)
    return float(values[0]), (1 + as_large) / (1 + permutations)


def _kernel(rows: np.ndarray) -> np.ndarray:
    """Gaussian kernel of all rows, [P, P], its diagonal zero: the unbiased statistic never pairs a row with itself."""
    squares = (rows**2).sum(axis=1)
    distance2 = squares[:, None] + squares - 2 * rows @ rows.T
    distance2[distance2 < 1e-12 * squares.max()] = 0  # equal rows, up to rounding
    off_diagonal = np.sqrt(distance2[np.triu_indices(len(rows), k=1)])
    width = np.median(off_diagonal) or off_diagonal.mean() or 1.0  # half the rows or more may be one point
    kernel = np.exp(-distance2 / (2 * width**2))
    np.fill_diagonal(kernel, 0)
    return kernel


def _mmd2_of(kernel: np.ndarray, in_source: np.ndarray) -> np.ndarray:
    """The statistic for each way [W, P] of dealing the rows out, 1 for source; [W]."""
    in_target = 1 - in_source
    n, m = in_source[0].sum(), in_target[0].sum()
    to_source = in_source @ kernel  # [W, P], similarity of each row to all of the source
    within_source = (to_source * in_source).sum(axis=1) / (n * (n - 1))
    between = (to_source * in_target).sum(axis=1) / (n * m)
    within_target = ((in_target @ kernel) * in_target).sum(axis=1) / (m * (m - 1))
    return within_source + within_target - 2 * between


def _check_domains(source: np.ndarray, target: np.ndarray) -> None:
    for name, rows in (("source", source), ("target", target)):
        if rows.ndim != 2 or len(rows) < 2:
            raise ConfigError(f"{name} is {[*rows.shape]}; a domain gap needs [rows, width] with at least two rows")
        if not np.isfinite(rows).all():
            raise ConfigError(f"{name} holds embeddings that are not finite")
    if source.shape[1] != target.shape[1]:
        raise ConfigError(f"source is {source.shape[1]} wide and target {target.shape[1]}; wanted one encoder for both")

"""How much of exact search an index finds, and how far it has to look for that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from urbancross.index.vectors import FEW, Vectors, nearest

TOP = 10
TARGET = 0.98  # of the queries that settings are chosen by; others measure, so what is measured may be less
PROBES = tuple(1 << i for i in range(2, 13))
RERANKS = (50, 100, 200, 400, 800, 1600)
CODE_COST, VECTOR_COST = 5.0, 250.0  # nanoseconds to look at a code, and at a vector; see benchmarks/index.py
TIE = 1e-6  # by which scores differ that are summed in another order
WINDOW = 0.05  # share of the rows, side by side and so near to each other on the ground, that a filter leaves


@dataclass(frozen=True)
class Queries:
    """
    Attributes:
        vectors: [Q, D].
        own: [Q] ids that are the queries themselves and are not counted; -1: none.
    """

    vectors: np.ndarray
    own: np.ndarray

    def half(self, nth: int) -> "Queries":
        return Queries(self.vectors[nth::2], self.own[nth::2])


@dataclass(frozen=True)
class Wanted:
    """Queries, and the ids `[Q, TOP]` that exact search finds for them, with their scores."""

    queries: Queries
    ids: np.ndarray
    scores: np.ndarray

    def half(self, nth: int) -> "Wanted":
        return Wanted(self.queries.half(nth), self.ids[nth::2], self.scores[nth::2])


def wanted_of(vectors: Vectors, queries: Queries) -> Wanted:
    """Every vector compared; a query's own left out."""
    scores, ids = nearest(vectors, queries.vectors, min(TOP + 1, len(vectors)))
    own = ids == queries.own[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :TOP]  # its own goes last
    ids, scores = (np.take_along_axis(found, order, axis=1) for found in (np.where(own, -1, ids), scores))
    return Wanted(queries, ids, scores)


def recall(vectors: Vectors, wanted: Wanted, probes: int, rerank: int, allowed: np.ndarray | None = None) -> float:
    """Share of what is wanted that is found when so many lists are probed and so many vectors compared in full.

    A tile as near as the last that is wanted is as good: of a thousand tiles of the same water, any ten. Where
    nothing is wanted, all is found.
    """
    hits = total = 0
    for query, own, ids, scores in zip(
        wanted.queries.vectors, wanted.queries.own, wanted.ids, wanted.scores, strict=True
    ):
        least = scores[ids >= 0].min(initial=np.inf)
        found = vectors.near(query, rerank, probes, allowed, TOP + 1)
        near = int((vectors.scores(found[found != own], query) >= least - TIE).sum())
        count = int((ids >= 0).sum())
        hits, total = hits + min(near, count), total + count
    return hits / total if total else 1.0


def chosen(vectors: Vectors, by_kind: Mapping[str, Wanted]) -> tuple[int, int]:
    """Probes and vectors to compare in full, the cheapest with which each kind of query finds `TARGET`; or the most."""
    assert vectors.codes is not None
    lists = vectors.codes.lists.nlist
    steps = [probes for probes in PROBES if probes < lists] + [lists]
    price = CODE_COST * len(vectors) / lists
    plans = sorted((probes * price + rerank * VECTOR_COST, probes, rerank) for probes in steps for rerank in RERANKS)
    for _, probes, rerank in _frontier(plans):
        if all(recall(vectors, wanted, probes, rerank) >= TARGET for wanted in by_kind.values()):
            return probes, rerank
    return steps[-1], RERANKS[-1]


def _frontier(plans: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Plans in the order of their price, without those that look less far in both ways than a cheaper one."""
    kept: list[tuple[float, int, int]] = []
    for plan in plans:
        if not any(other[1] >= plan[1] and other[2] >= plan[2] for other in kept):
            kept.append(plan)
    return kept


def measured(vectors: Vectors, by_kind: Mapping[str, Wanted], probes: int, rerank: int) -> dict[str, Any]:
    """Recall of each kind of query, and of the first kind among a window of the rows."""
    told: dict[str, Any] = {kind: round(recall(vectors, wanted, probes, rerank), 4) for kind, wanted in by_kind.items()}
    window = int(WINDOW * len(vectors))
    if vectors.codes is not None and window > FEW:
        start = (len(vectors) - window) // 2
        kind, wanted = next(iter(by_kind.items()))
        told[f"{kind} in {100 * WINDOW:g} % of the tiles"] = round(
            recall(
                vectors, _within(vectors, wanted.queries, start, window), probes, rerank, _mask(vectors, start, window)
            ),
            4,
        )
    return told


def _within(vectors: Vectors, queries: Queries, start: int, count: int) -> Wanted:
    some = Vectors([vectors.rows(np.arange(start, start + count))])
    found = wanted_of(some, Queries(queries.vectors, np.where(queries.own >= 0, queries.own - start, -2)))
    return Wanted(queries, np.where(found.ids >= 0, found.ids + start, -1), found.scores)


def _mask(vectors: Vectors, start: int, count: int) -> np.ndarray:
    allowed = np.zeros(len(vectors), bool)
    allowed[start : start + count] = True
    return allowed

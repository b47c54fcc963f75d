"""Codes and the vectors behind them, against comparing every vector."""

import numpy as np
import pytest
from clusters import clustered, coded

from urbancross.index import vectors as stored
from urbancross.index.codes import KINDS, lists_for
from urbancross.index.vectors import Vectors, nearest


def exact(vectors: Vectors, query: np.ndarray, top: int, allowed: np.ndarray | None = None) -> np.ndarray:
    scores = vectors.rows(np.arange(len(vectors))) @ query
    if allowed is not None:
        scores[~allowed] = -np.inf
    return np.argsort(-scores, kind="stable")[:top]


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "FEW", 12)


@pytest.mark.parametrize("width", [4, 20, 100, 520])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_of_every_kind_find_what_comparing_all_finds(kind: str, width: int):
    vectors = coded(clustered(3000, width), kind)
    assert vectors.codes is not None
    assert vectors.codes.lists.ntotal == len(vectors) == 3000
    hits = 0
    for query in clustered(40, width, seed=1):
        ids = vectors.near(query, 200, 16, None, 10)
        assert len(ids) <= 200  # or nothing would be chosen
        assert (np.diff(ids) > 0).all()
        best = ids[np.argsort(-vectors.scores(ids, query), kind="stable")[:10]]
        hits += len(np.intersect1d(best, exact(vectors, query, 10)))
    assert hits / 400 >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_allowed_is_found(kind: str):
    vectors = coded(clustered(3000, 20), kind)
    allowed = np.random.default_rng(2).random(3000) < 0.1
    hits = 0
    for query in clustered(20, 20, seed=1):
        ids = vectors.near(query, 100, 16, allowed, 10)
        assert allowed[ids].all()
        assert len(ids) >= 10
        hits += len(np.intersect1d(ids, exact(vectors, query, 10, allowed)))
    assert hits / 200 >= 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_where_what_is_allowed_lies_far_from_the_query_more_lists_are_looked_in(kind: str):
    whole = clustered(3000, 20)
    vectors = coded(whole, kind)
    query = whole[5]
    allowed = np.zeros(3000, bool)
    allowed[np.argsort(whole @ query)[:40]] = True  # the farthest
    assert vectors.codes is not None
    assert len(vectors.codes.search(query, 100, 1, allowed)) == 0
    ids = vectors.near(query, 100, 1, allowed, 10)
    assert 10 <= len(ids) <= 40
    assert allowed[ids].all()
    assert len(vectors.near(query, 100, 1, allowed, 40)) == 40


def test_few_that_are_allowed_are_all_compared():
    vectors = coded(clustered(3000, 20), "pq")
    allowed = np.zeros(3000, bool)
    allowed[[3, 1999, 2999]] = True
    assert vectors.near(clustered(1, 20)[0], 50, 1, allowed, 10).tolist() == [3, 1999, 2999]
    assert vectors.near(clustered(1, 20)[0], 50, 1, np.zeros(3000, bool), 10).tolist() == []


def test_without_codes_all_are_compared():
    vectors = Vectors([clustered(70, 8), clustered(30, 8, seed=1)])
    assert vectors.near(clustered(1, 8)[0], 5, 1, None, 5).tolist() == list(range(100))
    allowed = np.arange(100) % 2 == 0
    assert vectors.near(clustered(1, 8)[0], 5, 1, allowed, 5).tolist() == list(range(0, 100, 2))


def test_rows_of_several_parts_are_those_of_all_of_them_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored, "BLOCK", 7)
    whole = clustered(100, 6)
    vectors = Vectors(np.split(whole, [0, 30, 30, 99]))
    assert (len(vectors), vectors.width) == (100, 6)
    for ids in ([], [0], [99], [29, 30], [0, 5, 31, 98, 99], list(range(100))):
        rows = np.array(ids, np.int64)
        np.testing.assert_array_equal(vectors.rows(rows), whole[rows])
        np.testing.assert_allclose(vectors.scores(rows, whole[3]), whole[rows] @ whole[3], atol=1e-6)
    blocks = list(vectors.blocks())
    assert [start for start, _ in blocks] == [start for start, block in blocks if len(block)]
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), whole)
    assert (len(Vectors([])), Vectors([]).rows(np.array([], np.int64)).shape) == (0, (0, 0))


def test_the_nearest_of_all_are_found_block_by_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stored, "BLOCK", 7)
    whole, queries = clustered(100, 6), clustered(9, 6, seed=1)
    scores, ids = nearest(Vectors(np.split(whole, [4, 50])), queries, 11)
    wanted = queries @ whole.T
    np.testing.assert_array_equal(ids, np.argsort(-wanted, axis=1)[:, :11])
    np.testing.assert_allclose(scores, np.sort(wanted, axis=1)[:, ::-1][:, :11], atol=1e-6)


def test_stored_vectors_are_those_they_were_to_a_part_in_sixty_thousand():
    whole = np.concatenate([clustered(500, 20), np.eye(20, dtype=np.float32), -np.eye(20, dtype=np.float32)])
    kept = stored.stored(whole)
    assert kept.dtype == np.int16
    assert np.abs(stored.floats(kept) - whole).max() <= 0.5 / stored.STEPS + 1e-7
    np.testing.assert_array_equal(stored.floats(kept)[500:], whole[500:])
    assert np.abs(stored.floats(stored.stored(np.array([[1.00001, -1.00001]]))) - [[1, -1]]).max() == 0  # not around
    np.testing.assert_array_equal(stored.floats(whole), whole)


def test_lists_grow_with_the_root_of_the_vectors():
    assert [lists_for(count) for count in (0, 1, 300, 20_000, 1_000_000, 100_000_000)] == [16, 16, 16, 128, 1024, 8192]

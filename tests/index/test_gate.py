"""How much an index finds, against counting; and the plan that is chosen for it."""

import numpy as np
import pytest
from clusters import clustered, coded

from urbancross.index import gate
from urbancross.index import vectors as stored
from urbancross.index.gate import RERANKS, TOP, Queries, chosen, measured, recall, wanted_of
from urbancross.index.vectors import Vectors


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "FEW", 12)
    monkeypatch.setattr(gate, "FEW", 12)


def texts(count: int = 30, width: int = 20) -> Queries:
    return Queries(clustered(count, width, seed=1), np.full(count, -1))


def counted(vectors: Vectors, queries: Queries, probes: int, rerank: int, allowed: np.ndarray | None = None) -> float:
    """Recall, a query at a time, by the ids alone."""
    whole = vectors.rows(np.arange(len(vectors)))
    hits = wanted = 0
    for query, own in zip(queries.vectors, queries.own, strict=True):
        scores = whole @ query
        scores[own if own >= 0 else []] = -np.inf
        if allowed is not None:
            scores[~allowed] = -np.inf
        best = {int(i) for i in np.argsort(-scores)[:TOP] if np.isfinite(scores[i])}
        found = [int(i) for i in vectors.near(query, rerank, probes, allowed, TOP + 1) if i != own]
        hits += len(best & set(sorted(found, key=lambda i: -scores[i])[:TOP]))
        wanted += len(best)
    return hits / wanted


@pytest.mark.parametrize(("probes", "rerank"), [(1, 12), (2, 20), (4, 50), (32, 400)])
def test_recall_is_what_counting_says(probes: int, rerank: int):
    vectors = coded(clustered(3000, 20), "binary")
    own = np.arange(0, 3000, 100)
    for queries in (texts(), Queries(vectors.rows(own), own)):
        found = recall(vectors, wanted_of(vectors, queries), probes, rerank)
        assert found == pytest.approx(counted(vectors, queries, probes, rerank))
        assert found < 1 or probes == 32


def test_what_is_wanted_is_what_comparing_all_finds_without_the_query_itself():
    vectors = Vectors([clustered(300, 20)])
    own = np.array([0, 7, 299])
    wanted = wanted_of(vectors, Queries(vectors.rows(own), own))
    assert wanted.ids.shape == (3, TOP)
    scores = vectors.rows(np.arange(300)) @ vectors.rows(own).T
    for i, number in enumerate(own):
        order = [k for k in np.argsort(-scores[:, i]) if k != number][:TOP]
        assert wanted.ids[i].tolist() == order
        np.testing.assert_allclose(wanted.scores[i], scores[order, i], atol=1e-6)
    assert wanted_of(vectors, texts()).ids.shape == (30, TOP)


def test_an_index_of_less_than_ten_can_be_found_whole():
    vectors = Vectors([clustered(4, 20)])
    own = np.arange(4)
    wanted = wanted_of(vectors, Queries(vectors.rows(own), own))
    assert sorted(wanted.ids[2].tolist()) == [-1, 0, 1, 3]
    assert recall(vectors, wanted, 1, 1) == 1
    alone = Vectors([clustered(1, 20)])
    assert recall(alone, wanted_of(alone, Queries(alone.rows(np.arange(1)), np.arange(1))), 1, 1) == 1


def test_of_tiles_that_are_all_the_same_any_will_do():
    same = np.repeat(clustered(1, 20), 500, axis=0)
    whole = np.concatenate([clustered(2500, 20, seed=7), same])
    vectors = coded(whole, "pq", (1000, 2000))
    queries = Queries(vectors.rows(np.array([2999])), np.array([2999]))
    wanted = wanted_of(vectors, queries)
    assert recall(vectors, wanted, 4, 100) == 1
    wrong = Vectors(vectors.parts, vectors.codes)
    wrong.near = lambda *_: np.arange(40)  # type: ignore[method-assign]  # none of them is one of these
    assert recall(wrong, wanted, 4, 100) == 0


def test_the_plan_is_the_cheapest_of_those_that_reach_the_target():
    vectors = coded(clustered(3000, 20), "binary")
    wanted = {"texts": wanted_of(vectors, texts()), "tiles": wanted_of(vectors, Queries(*own(vectors)))}
    probes, rerank = chosen(vectors, wanted)
    price = gate.CODE_COST * 3000 / 32
    plans = {(p, r): p * price + r * gate.VECTOR_COST for p in (4, 8, 16, 32) for r in RERANKS}
    reach = {
        plan
        for plan in plans
        if all(counted(vectors, found.queries, *plan) >= gate.TARGET for found in wanted.values())
    }
    assert (probes, rerank) in reach
    assert plans[probes, rerank] == min(plans[plan] for plan in reach)
    assert plans[probes, rerank] < max(plans.values())


def own(vectors: Vectors, count: int = 30) -> tuple[np.ndarray, np.ndarray]:
    ids = np.linspace(0, len(vectors) - 1, count, dtype=int)
    return vectors.rows(ids), ids


def test_where_no_plan_reaches_the_target_the_farthest_is_taken():
    whole = clustered(3000, 20)
    right = coded(whole, "pq")
    assert right.codes is not None
    wrong = Vectors([np.random.default_rng(0).permutation(whole)], right.codes)
    assert chosen(wrong, {"texts": wanted_of(wrong, texts())}) == (32, RERANKS[-1])


def test_codes_of_other_vectors_find_too_little():
    whole = clustered(3000, 20)
    right = coded(whole, "pq")
    wrong = Vectors([np.random.default_rng(0).permutation(whole)], right.codes)
    told = [measured(each, {"texts": wanted_of(each, texts())}, 16, 200)["texts"] for each in (right, wrong)]
    assert told[0] > 0.95
    assert told[1] < 0.3


def test_recall_among_a_window_of_the_rows_is_measured_too():
    vectors = coded(clustered(3000, 20), "pq")
    queries = Queries(*own(vectors))
    allowed = np.zeros(3000, bool)
    allowed[1425:1575] = True
    told = measured(vectors, {"texts": wanted_of(vectors, queries)}, 2, 20)
    assert told["texts in 5 % of the tiles"] == pytest.approx(counted(vectors, queries, 2, 20, allowed), abs=1e-4)
    assert "texts in 5 % of the tiles" not in measured(
        Vectors(vectors.parts), {"texts": wanted_of(vectors, texts())}, 2, 20
    )


def test_halves_of_queries_have_none_in_common_and_leave_none_out():
    queries = Queries(np.arange(7.0)[:, None], np.arange(7))
    assert sorted([*queries.half(0).own, *queries.half(1).own]) == list(range(7))
    wanted = wanted_of(Vectors([clustered(50, 20)]), texts(5))
    assert [len(wanted.half(nth).ids) for nth in (0, 1)] == [3, 2]
    np.testing.assert_array_equal(wanted.half(1).scores, wanted.scores[1::2])

import itertools

import numpy as np
import pytest

from urbancross import metrics
from urbancross.errors import ConfigError
from urbancross.metrics import evaluate_retrieval, mmd2, proxy_a_distance, rank_of_first_relevant

CUTS = ("R@1", "R@5", "R@10")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def noisy_world(tiles: int = 30, lines: int = 2, noise: float = 1.0, seed: int = 0):
    """Tiles, `lines` captions each that lie near their tile, and the tile of each caption."""
    rng = np.random.default_rng(seed)
    image = unit(rng.normal(size=(tiles, 8)))
    text_tile = np.repeat(np.arange(tiles), lines)
    text = unit(image[text_tile] + noise * rng.normal(size=(tiles * lines, 8)) / np.sqrt(8))
    return image, text, text_tile


def slow_recall(queries, gallery, pairs, k):
    """Share of queries with a relevant item in the best k, item by item; asks only queries that have one."""
    hits = []
    for q, query in enumerate(queries):
        good = {item for asked, item in pairs if asked == q}
        if good:
            best = max(float(query @ gallery[g]) for g in good)
            ahead = sum(float(query @ gallery[g]) >= best for g in range(len(gallery)) if g not in good)
            hits.append(1 + ahead <= k)
    return sum(hits) / len(hits)


def test_rank_counts_what_stands_above_the_best_relevant_item():
    scores = np.array([[0.9, 0.1, 0.5, 0.7]])
    for relevant, rank in (([1, 0, 0, 0], 1), ([0, 0, 1, 0], 3), ([0, 1, 1, 0], 3), ([0, 1, 0, 0], 4)):
        assert rank_of_first_relevant(scores, np.array([relevant], dtype=bool)).tolist() == [rank]


def test_ties_count_against_the_query_but_not_between_relevant_items():
    scores = np.array([[0.5, 0.5, 0.5, 0.1]])
    assert rank_of_first_relevant(scores, np.array([[True, False, False, False]])).tolist() == [3]
    assert rank_of_first_relevant(scores, np.array([[True, True, False, False]])).tolist() == [2]


def test_nan_counts_against_the_query_wherever_it_stands():
    nan = float("nan")
    scores = np.array([[0.9, nan, 0.1], [nan, 0.5, 0.1], [nan, nan, nan], [nan, 0.9, 0.1]])
    relevant = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
    assert rank_of_first_relevant(scores, relevant).tolist() == [2, 3, 3, 1]


def test_a_query_without_relevant_items_has_no_rank():
    with pytest.raises(ConfigError, match="query 1"):
        rank_of_first_relevant(np.ones((2, 2)), np.array([[True, False], [False, False]]))


@pytest.mark.parametrize("value", [1.0, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_collapsed_encoder_earns_nothing(value, dtype):
    rng = np.random.default_rng(0)
    point = value * unit(rng.normal(size=(1, 519))).astype(dtype)
    tiles, texts = np.repeat(point, 37, axis=0), np.repeat(point, 111, axis=0)
    found = evaluate_retrieval(tiles, texts, np.arange(111) % 37, bootstrap=10)
    assert found["mR"] == 0
    assert found["ci95"]["mR"] == [0, 0]


def test_differences_of_the_size_of_rounding_are_ties():
    def mean_recall(difference: float) -> float:
        rows = np.hstack([np.ones((20, 1)), np.sqrt(difference) * np.eye(20)])  # 1 + difference to the own caption
        return evaluate_retrieval(rows, rows, np.arange(20), bootstrap=1)["mR"]

    assert mean_recall(1e-10) == 0
    assert mean_recall(1e-8) == 1


def test_a_perfect_encoder_earns_everything():
    found = evaluate_retrieval(np.eye(12), np.eye(12), np.arange(12), bootstrap=10)
    assert found["mR"] == 1
    assert found["gallery"] == {"tiles": 12, "texts": 12}


@pytest.mark.parametrize("block_bytes", [1, 5000, 2**25])
def test_field_recalls_agree_with_a_two_loop_version(block_bytes, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK_BYTES", block_bytes)
    tiles, texts, text_tile = noisy_world()
    order = np.random.default_rng(1).permutation(len(texts))
    texts, text_tile = texts[order], text_tile[order]
    found = evaluate_retrieval(tiles, texts, text_tile, bootstrap=10)
    pairs = [(int(t), line) for line, t in enumerate(text_tile)]
    for k in (1, 5, 10):
        assert found["tile_to_text"][f"R@{k}"] == slow_recall(tiles, texts, pairs, k)
        assert found["text_to_tile"][f"R@{k}"] == slow_recall(texts, tiles, [(b, a) for a, b in pairs], k)
    assert 0.1 < found["mR"] < 0.9  # else the comparison would prove little
    six = [found[way][cut] for way in ("tile_to_text", "text_to_tile") for cut in CUTS]
    assert found["mR"] == pytest.approx(np.mean(six))


def test_unique_text_recalls_agree_with_a_two_loop_version():
    tiles, texts, text_tile = noisy_world(noise=0.7)
    keys = np.arange(len(texts))[::-1].copy()  # numbered backwards: keys are names, not positions
    for a, b in ((0, 7), (0, 20), (3, 41), (4, 5)):  # lines 4 and 5 belong to one tile
        texts[b], keys[b] = texts[a], keys[a]
    found = evaluate_retrieval(tiles, texts, text_tile, "unique-text", keys, bootstrap=10)
    names = sorted(set(keys.tolist()))
    unique = np.stack([texts[keys.tolist().index(name)] for name in names])
    pairs = {(int(t), names.index(key)) for t, key in zip(text_tile, keys.tolist(), strict=True)}
    assert found["gallery"] == {"tiles": 30, "texts": 56}
    for k in (1, 5, 10):
        assert found["tile_to_text"][f"R@{k}"] == slow_recall(tiles, unique, pairs, k)
        assert found["text_to_tile"][f"R@{k}"] == slow_recall(unique, tiles, {(b, a) for a, b in pairs}, k)


def test_shared_captions_bound_field_from_text_to_tile_but_not_unique_text():
    tiles = np.repeat(np.eye(4), [3, 1, 1, 1], axis=0)[:, :4]  # three tiles that look alike and share a caption
    texts, keys = tiles.copy(), np.array([0, 0, 0, 1, 2, 3])
    field = evaluate_retrieval(tiles, texts, np.arange(6), "field", keys, bootstrap=10)
    unique = evaluate_retrieval(tiles, texts, np.arange(6), "unique-text", keys, bootstrap=10)
    assert field["text_to_tile"]["R@1"] == pytest.approx(3 / 6)
    assert field["tile_to_text"]["R@1"] == pytest.approx(3 / 6)
    assert unique["text_to_tile"]["R@1"] == unique["tile_to_text"]["R@1"] == 1

    # Even where the encoder tells the three tiles apart, their one caption can only find one of them first.
    rng = np.random.default_rng(0)
    apart = unit(tiles + 0.01 * rng.normal(size=tiles.shape))
    found = evaluate_retrieval(apart, texts, np.arange(6), bootstrap=10)
    assert found["text_to_tile"]["R@1"] == pytest.approx(4 / 6)


def test_results_do_not_depend_on_the_order_of_tiles_or_captions():
    tiles, texts, text_tile = noisy_world()
    rng = np.random.default_rng(3)
    by_tile, by_text = rng.permutation(len(tiles)), rng.permutation(len(texts))
    plain = evaluate_retrieval(tiles, texts, text_tile, bootstrap=10)
    mixed = evaluate_retrieval(tiles[by_tile], texts[by_text], np.argsort(by_tile)[text_tile][by_text], bootstrap=10)
    for name in ("tile_to_text", "text_to_tile", "gallery"):
        assert plain[name] == mixed[name]
    assert plain["chance_mR"] == pytest.approx(mixed["chance_mR"])


def test_a_tile_without_captions_is_found_but_does_not_ask():
    tiles = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])  # the last one has no caption and looks like the second
    texts = np.array([[1.0, 0.0], [0.5, 0.86]])
    found = evaluate_retrieval(tiles, texts, np.array([0, 1]), bootstrap=10)
    assert found["gallery"]["tiles"] == 3
    assert found["tile_to_text"]["R@1"] == 1
    assert found["text_to_tile"]["R@1"] == 0.5


def test_chance_agrees_with_every_possible_ranking():
    """Four tiles with 2, 1, 1 and 0 captions: go through all orders of the gallery."""
    text_tile = np.array([0, 0, 1, 2])
    rng = np.random.default_rng(0)
    chance = evaluate_retrieval(rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), text_tile, bootstrap=1)["chance_mR"]
    orders = list(itertools.permutations(range(4)))
    to_text = np.mean([[any(text_tile[j] == t for j in order[:1]) for t in (0, 1, 2)] for order in orders])
    to_tile = np.mean([[order[0] == t for t in text_tile] for order in orders])
    assert chance == pytest.approx((to_text + to_tile + 4) / 6)  # at 5 and 10 four items hold everything


@pytest.mark.parametrize("protocol", ["field", "unique-text"])
def test_chance_agrees_with_the_mean_of_random_encoders(protocol):
    rng = np.random.default_rng(0)
    text_tile, keys = np.repeat(np.arange(25), 3), rng.integers(0, 40, size=75)
    runs = []
    for _ in range(200):
        by_key = rng.normal(size=(75 if protocol == "field" else 40, 40))
        texts = by_key[np.arange(75) if protocol == "field" else keys]
        runs.append(
            evaluate_retrieval(unit(rng.normal(size=(25, 40))), unit(texts), text_tile, protocol, keys, bootstrap=1)
        )
    measured = np.array([run["mR"] for run in runs])
    assert measured.mean() == pytest.approx(runs[0]["chance_mR"], abs=4 * measured.std() / np.sqrt(200))
    assert measured.std() < 0.06


@pytest.mark.parametrize("protocol", ["field", "unique-text"])
def test_an_interval_contains_its_point_and_repeats_by_its_seed(protocol):
    tiles, texts, text_tile = noisy_world(60)
    keys = np.arange(120) % 100
    texts[100:] = texts[:20]
    first, again, other = (evaluate_retrieval(tiles, texts, text_tile, protocol, keys, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first["ci95"] != other["ci95"]
    for way in ("tile_to_text", "text_to_tile"):
        for cut in CUTS:
            low, high = first["ci95"][way][cut]
            assert 0 <= low < first[way][cut] < high <= 1
    low, high = first["ci95"]["mR"]
    assert low < first["mR"] < high


def test_an_interval_is_as_wide_as_the_spread_between_samples_of_tiles():
    """Width for the plain share of tiles: 2 * 1.96 * sqrt(p (1 - p) / n)."""
    tiles, texts, text_tile = noisy_world(200, lines=1, noise=1.2)
    found = evaluate_retrieval(tiles, texts, text_tile)
    p = found["tile_to_text"]["R@5"]
    low, high = found["ci95"]["tile_to_text"]["R@5"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(p * (1 - p) / 200), rel=0.15)


def test_repeating_every_caption_line_does_not_narrow_the_interval():
    tiles, texts, text_tile = noisy_world(50)
    once = evaluate_retrieval(tiles, texts, text_tile)
    often = evaluate_retrieval(tiles, np.repeat(texts, 4, axis=0), np.repeat(text_tile, 4))
    assert once["text_to_tile"] == often["text_to_tile"]
    for cut in CUTS:  # nothing new was learned from them
        assert often["ci95"]["text_to_tile"][cut] == pytest.approx(once["ci95"]["text_to_tile"][cut])


def test_what_cannot_be_evaluated_is_refused():
    one = np.eye(3)
    with pytest.raises(ConfigError, match="unknown protocol"):
        evaluate_retrieval(one, one, np.arange(3), "best")
    with pytest.raises(ConfigError, match="text_keys"):
        evaluate_retrieval(one, one, np.arange(3), "unique-text")
    with pytest.raises(ConfigError, match="one of 3 tiles"):
        evaluate_retrieval(one, one, np.array([0, 1, 3]))
    with pytest.raises(ConfigError, match="nothing to evaluate"):
        evaluate_retrieval(one, one[:0], np.arange(0))
    with pytest.raises(ConfigError, match="one width"):
        evaluate_retrieval(one, one[:, :2], np.arange(3))
    with pytest.raises(ConfigError, match="resamples"):
        evaluate_retrieval(one, one, np.arange(3), bootstrap=0)


def test_a_probe_tells_shifted_domains_apart_and_equal_ones_not():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    assert proxy_a_distance(x, y) < 0.4
    assert proxy_a_distance(x, y + 6) == 2
    # Means 1 apart along one axis: the best error is P(N(0, 1) > 0.5) = 0.3085.
    assert proxy_a_distance(x, y + np.eye(4)[0]) == pytest.approx(2 * (1 - 2 * 0.3085), abs=0.25)


def test_a_text_of_many_tiles_counts_once_in_the_interval_too():
    """One text finds its 40 tiles, ten texts with a tile each find another's: R@1 is 1 of 11."""
    tiles = np.eye(11)[[0] * 40 + list(range(1, 11))]
    texts = np.eye(11)[[0] * 40 + [10, *range(1, 10)]]
    keys = np.array([0] * 40 + list(range(1, 11)))
    found = evaluate_retrieval(tiles, texts, np.arange(50), "unique-text", keys)
    low, high = found["ci95"]["text_to_tile"]["R@1"]
    assert found["text_to_tile"]["R@1"] == pytest.approx(1 / 11)
    assert low < 1 / 11 < high < 0.3


def test_the_probe_and_its_error_count_both_domains_alike():
    rng = np.random.default_rng(0)
    many, few = rng.normal(size=(1900, 2)), rng.normal(size=(100, 2))
    assert proxy_a_distance(many, few) < 0.6  # calling all of it `many` is right in 95 of 100 rows
    # Means 2 apart: half-way between them the error is P(N(0, 1) > 1) = 0.1587. A probe that knew how many there are
    # would draw its line 1.47 closer to the few.
    assert proxy_a_distance(many, few + 2 * np.eye(2)[0]) == pytest.approx(2 * (1 - 2 * 0.1587), abs=0.3)
    few[::2] += 9  # the other half of the few lies among the many
    assert proxy_a_distance(many, few) < 1.4


def test_a_probe_tested_beside_its_training_tiles_would_know_places_rather_than_domains():
    """Two domains that are two draws of 40 places each; every place is a tight cluster in 60 dimensions."""
    rng = np.random.default_rng(0)
    place = np.repeat(np.arange(40), 10)
    x, y = (rng.normal(size=(40, 60))[place] + 0.05 * rng.normal(size=(400, 60)) for _ in range(2))
    assert proxy_a_distance(x, y) > 1.5
    assert proxy_a_distance(x, y, place, place) < 0.7


def test_a_probe_needs_two_places_a_domain():
    with pytest.raises(ConfigError, match="1 groups"):
        proxy_a_distance(np.eye(4), np.eye(4), np.zeros(4), np.arange(4))


def slow_mmd2(x, y):
    rows = np.concatenate([x, y])
    width = np.median([np.linalg.norm(a - b) for a, b in itertools.combinations(rows, 2)])

    def k(a, b):
        return np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * width**2))

    within = [np.mean([k(a, b) for a, b in itertools.permutations(rows, 2)]) for rows in (x, y)]
    return sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])


def test_mmd2_agrees_with_a_two_loop_version():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 0.5
    assert mmd2(x, y)[0] == pytest.approx(slow_mmd2(x, y))
    assert mmd2(y, x)[0] == pytest.approx(slow_mmd2(x, y))


def test_mmd2_finds_a_shift_and_only_a_shift():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    assert mmd2(x, y)[1] > 0.05
    value, p = mmd2(x, y + 1)
    assert value > 0.1
    assert p == pytest.approx(1 / 201)


def test_mmd2_is_unbiased_and_its_p_value_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    runs = np.array([mmd2(rng.normal(size=(12, 2)), rng.normal(size=(12, 2)), 50, seed=s) for s in range(200)])
    values, p = runs.T
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(200)
    assert np.mean(p <= 0.1) == pytest.approx(0.1, abs=0.07)
    assert np.mean(p <= 0.5) == pytest.approx(0.5, abs=0.12)


def test_mmd2_of_domains_collapsed_to_one_point_is_nothing():
    point = np.repeat(np.random.default_rng(0).normal(size=(1, 99)), 10, axis=0)
    assert mmd2(point, point) == (pytest.approx(0), 1.0)
    assert mmd2(point, point + 1e-7) == (pytest.approx(0), 1.0)  # no more than rounding leaves


def test_mmd2_uses_at_most_so_many_rows_chosen_by_seed():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 2)), rng.normal(size=(40, 2))
    assert mmd2(x, y, 20, most=50) == mmd2(x, y, 20, most=50) != mmd2(x, y, 20, seed=1, most=50)
    assert mmd2(x, y, 20, most=50)[0] != mmd2(x, y, 20, most=300)[0]


def test_embeddings_that_are_not_finite_have_no_domain_gap():
    broken = np.full((4, 2), np.nan)
    with pytest.raises(ConfigError, match="target holds"):
        mmd2(np.ones((4, 2)), broken)
    with pytest.raises(ConfigError, match="source holds"):
        proxy_a_distance(broken, np.ones((4, 2)))

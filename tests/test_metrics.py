import itertools

import numpy as np
import pytest

from urbancross import metrics
from urbancross.errors import ConfigError
from urbancross.metrics import evaluate_retrieval, gain, rank_of_first_relevant

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


@pytest.mark.parametrize("protocol", ["field", "unique-text"])
def test_recalls_agree_with_a_count_by_hand_in_200_cases_full_of_ties_and_shared_texts(protocol):
    rng = np.random.default_rng(2)
    for _ in range(200):
        tiles, lines = rng.integers(2, 14, 2)
        image, line = rng.integers(-1, 2, (tiles, 3)).astype(float), rng.integers(-1, 2, (lines, 3)).astype(float)
        text_tile, keys = rng.integers(0, tiles, lines), rng.integers(0, max(lines // 2, 1), lines)
        line = line[keys]  # equal keys, equal texts
        found = evaluate_retrieval(image, line, text_tile, protocol, keys, bootstrap=1)
        if protocol == "field":
            texts, pairs = line, {(int(t), i) for i, t in enumerate(text_tile)}
        else:
            names = np.unique(keys)
            texts = np.stack([line[keys == name][0] for name in names])
            pairs = {(int(t), int(np.searchsorted(names, key))) for t, key in zip(text_tile, keys, strict=True)}
        for k in (1, 5, 10):
            assert found["tile_to_text"][f"R@{k}"] == pytest.approx(slow_recall(image, texts, pairs, k))
            back = slow_recall(texts, image, {(b, a) for a, b in pairs}, k)
            assert found["text_to_tile"][f"R@{k}"] == pytest.approx(back)


def test_groups_of_tiles_ask_the_whole_gallery_and_add_up_to_all():
    tiles, texts, text_tile = noisy_world()
    groups = np.where(np.arange(30) % 3, "town", "sea")
    found = evaluate_retrieval(tiles, texts, text_tile, bootstrap=50, groups=groups)
    assert {name: told["tiles"] for name, told in found["by"].items()} == {"sea": 10, "town": 20}
    weighted = (10 * found["by"]["sea"]["mR"] + 20 * found["by"]["town"]["mR"]) / 30
    assert weighted == pytest.approx(found["mR"])
    pairs = [(int(t), line) for line, t in enumerate(text_tile) if groups[t] == "sea"]
    assert found["by"]["sea"]["tile_to_text"]["R@5"] == slow_recall(tiles, texts, pairs, 5)
    with pytest.raises(ConfigError, match="a name for each of 30 tiles"):
        evaluate_retrieval(tiles, texts, text_tile, bootstrap=1, groups=groups[:3])


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


def test_a_text_of_many_tiles_counts_once_in_the_interval_too():
    """One text finds its 40 tiles, ten texts with a tile each find another's: R@1 is 1 of 11."""
    tiles = np.eye(11)[[0] * 40 + list(range(1, 11))]
    texts = np.eye(11)[[0] * 40 + [10, *range(1, 10)]]
    keys = np.array([0] * 40 + list(range(1, 11)))
    found = evaluate_retrieval(tiles, texts, np.arange(50), "unique-text", keys)
    low, high = found["ci95"]["text_to_tile"]["R@1"]
    assert found["text_to_tile"]["R@1"] == pytest.approx(1 / 11)
    assert low < 1 / 11 < high < 0.3


def test_a_gain_is_the_relative_growth_of_the_mean_and_its_interval_is_paired():
    rng = np.random.default_rng(0)
    tiles = rng.normal(size=(60, 16))
    texts = np.repeat(tiles, 2, axis=0) + 1.6 * rng.normal(size=(120, 16))
    better = [(tiles, 0.8 * texts + 0.2 * np.repeat(tiles, 2, axis=0)), (tiles, texts)]
    owner = np.repeat(np.arange(60), 2)
    found = gain([(tiles, texts)] * 2, better, owner, bootstrap=400)
    mrs = [evaluate_retrieval(*side, owner)["mR"] for side in [(tiles, texts), *better]]
    assert found["before"] == pytest.approx(mrs[0])
    assert found["after"] == pytest.approx((mrs[1] + mrs[2]) / 2)
    assert found["gain"] == pytest.approx((mrs[1] + mrs[2]) / 2 / mrs[0] - 1)
    assert found["ci95"][0] <= found["gain"] <= found["ci95"][1]
    same = gain([(tiles, texts)], [(tiles, texts)], owner)
    assert same["gain"] == 0
    assert same["ci95"] == [0, 0]  # what both miss is missed by both
    with pytest.raises(ConfigError, match="2 runs before and 1 after"):
        gain([(tiles, texts)] * 2, [(tiles, texts)], owner)


def test_the_interval_of_a_gain_covers_the_truth_as_often_as_it_says():
    """Nothing differs but chance: two models of equal noise, on samples of tiles of one world."""
    covered = 0
    for world in range(60):
        rng = np.random.default_rng(world)
        tiles = rng.normal(size=(80, 8))
        one, other = (tiles + 1.2 * rng.normal(size=(80, 8)) for _ in range(2))
        low, high = gain([(tiles, one)], [(tiles, other)], np.arange(80), bootstrap=300, seed=world)["ci95"]
        covered += low <= 0 <= high
    assert covered >= 52

"""How far two domains lie apart, where the answer is known."""

import itertools

import numpy as np
import pytest

from urbancross.errors import ConfigError
from urbancross.gaps import mmd2, proxy_a_distance


def test_a_probe_tells_shifted_domains_apart_and_equal_ones_not():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    assert proxy_a_distance(x, y) < 0.4
    assert proxy_a_distance(x, y + 6) == 2
    # Means 1 apart along one axis: the best error is P(N(0, 1) > 0.5) = 0.3085.
    assert proxy_a_distance(x, y + np.eye(4)[0]) == pytest.approx(2 * (1 - 2 * 0.3085), abs=0.25)


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

"""Whether anything matches: a threshold from texts that do, and how often it is wrong of others of them."""

import numpy as np
import pytest

from urbancross.index.doubt import FALSE_ALARMS, FEWEST, TILES, Calibration


def scores(count: int = 1000, seed: int = 0) -> np.ndarray:
    """`[count, TILES]`, falling, about 0.5 in the mean of a row, with a spread of 0.1."""
    rng = np.random.default_rng(seed)
    return rng.normal(0.5, 0.1, (count, 1)) + np.linspace(0.05, -0.05, TILES)


def test_the_threshold_is_what_all_but_a_few_texts_that_match_reach():
    found = Calibration.of(scores())
    assert found is not None
    near = scores().mean(axis=1)
    assert found.threshold == pytest.approx(np.quantile(near[::2], FALSE_ALARMS), abs=1e-4)
    assert found.threshold == pytest.approx(0.5 - 1.645 * 0.1, abs=0.02)  # of a normal distribution
    assert found.texts == 500


def test_the_rate_of_false_alarms_is_of_texts_that_did_not_set_the_threshold():
    told = scores()
    found = Calibration.of(told)
    assert found is not None
    below = [row.mean() < found.threshold for row in told[1::2]]
    assert found.false_alarm == pytest.approx(np.mean(below), abs=0.005)
    assert 0.02 < found.false_alarm < 0.09
    told[1::2] -= 1  # they alone are asked: all of them are false alarms then
    moved = Calibration.of(told)
    assert moved is not None
    assert (moved.threshold, moved.false_alarm) == (found.threshold, 1.0)


def test_few_texts_calibrate_nothing():
    assert Calibration.of(scores(FEWEST - 1)) is None
    assert Calibration.of(scores(FEWEST)) is not None


def test_a_text_is_judged_by_its_ten_best_tiles():
    told = Calibration(0.4, 0.04, 100)
    high, low = np.full(10, 0.5), np.full(10, 0.3)
    assert not told.judge(high).nothing_matches
    assert told.judge(low).nothing_matches
    mixed = np.array([0.9] + [0.3] * 9)  # the best alone would do
    doubt = told.judge(mixed)
    assert (doubt.nothing_matches, doubt.nearness, doubt.threshold, doubt.false_alarm) == (True, 0.36, 0.4, 0.04)
    assert told.judge(np.concatenate([high, low])).nearness == 0.5  # no more than ten
    assert told.judge(np.array([0.5, 0.3])).nearness == 0.4  # or as many as there are
    assert not told.judge(np.array([0.4] * 10)).nothing_matches  # as near as wanted is near enough
    assert told.judge(np.array([])).nothing_matches

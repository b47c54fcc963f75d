"""Outcomes on disk, ranked, and summed up by setting."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from urbancross.sweep import outcomes
from urbancross.sweep.outcomes import Outcome, Trial, choose, front, levels


def trial(number: int, agreement: float, seconds: float = 1.0, key: str = "", **point: Any) -> Trial:
    outcome = Outcome(
        "done",
        recall=agreement / 2,
        recall_ends=(agreement / 2 - 0.05, agreement / 2 + 0.05),
        agreement=agreement,
        agreement_ends=(agreement - 0.1, agreement + 0.1),
        seconds=seconds,
    )
    return Trial(number, point, key or str(number), outcome)


FAILED = Trial(9, {"ratio": 1}, "9", Outcome("failed", "the loss is nan"))
STOPPED = Trial(8, {"ratio": 1}, "8", Outcome("stopped", agreement=9.0, recall=9.0))


def test_an_outcome_comes_back_as_it_was_written(tmp_path: Path):
    told = trial(0, 0.5).outcome
    assert told is not None
    outcomes.write(tmp_path, "k", told)
    assert outcomes.read(tmp_path, "k") == told
    assert outcomes.read(tmp_path, "other") is None


def test_the_highest_is_chosen_and_only_among_those_that_came_to_their_end():
    trials = [trial(0, 0.3), trial(1, 0.5), trial(2, 0.5), STOPPED, FAILED, Trial(10, {}, "10")]
    best = choose(trials, "agreement", None)
    assert best is not None
    assert best.number == 1
    assert choose([STOPPED, FAILED], "agreement", None) is None


def test_with_a_cost_the_cheapest_within_the_interval_of_the_best_is_chosen():
    trials = [trial(0, 0.50, 9.0), trial(1, 0.45, 3.0), trial(2, 0.42, 2.0), trial(3, 0.39, 1.0)]
    best = choose(trials, "agreement", "seconds")
    assert best is not None
    assert best.number == 2  # 0.39 lies outside 0.4 to 0.6


def test_the_front_has_what_nothing_beats_in_both():
    trials = [trial(0, 0.5, 5.0), trial(1, 0.4, 5.0), trial(2, 0.3, 1.0), trial(3, 0.2, 2.0), trial(4, 0.6, 9.0)]
    assert [t.number for t in front([*trials, FAILED, STOPPED], "agreement", "seconds")] == [2, 0, 4]
    # a slower, plainer version
    for candidate in trials:
        beaten = any(
            other.outcome.seconds <= candidate.outcome.seconds
            and other.outcome.agreement >= candidate.outcome.agreement
            and other != candidate
            for other in trials
        )
        assert beaten == (candidate.number not in (2, 0, 4))


def test_levels_have_means_and_students_interval_over_trials_and_tiles_where_there_is_one():
    trials = [
        trial(0, 0.2, ratio=10),
        trial(1, 0.4, ratio=2),
        trial(2, 0.6, ratio=2),
        trial(3, 0.5, pace="none"),
        FAILED,
    ]
    two, ten = levels(trials, "ratio", "agreement")
    assert (two.at, two.values, two.mean) == (2, (0.4, 0.6), pytest.approx(0.5))
    half = 12.706 * math.sqrt(0.02) / math.sqrt(2)  # t of one degree of freedom
    assert (two.low, two.high) == (pytest.approx(0.5 - half, abs=1e-3), pytest.approx(0.5 + half, abs=1e-3))
    assert (ten.at, ten.low, ten.high) == (10, pytest.approx(0.1), pytest.approx(0.3))


def test_points_that_mean_the_same_count_once():
    trials = [trial(0, 0.4, key="same", pace="none"), trial(5, 0.4, key="same", pace="none")]
    (level,) = levels(trials, "pace", "recall")
    assert level.values == (0.2,)


def test_one_outcome_under_two_names_of_a_setting_counts_at_both():
    trials = [trial(0, 0.4, key="same", method="transport"), trial(1, 0.4, key="same", method="source-only")]
    assert [level.at for level in levels(trials, "method", "recall")] == ["transport", "source-only"]


def test_where_an_interval_leaves_out_its_own_trial_that_trial_is_chosen():
    best = trial(0, 0.5, 1.0)
    assert best.outcome is not None
    odd = replace(best, outcome=replace(best.outcome, agreement_ends=(0.6, 0.7)))
    assert choose([odd], "agreement", "seconds") == odd


def test_a_gain_is_one_by_its_whole_interval():
    def outcome(low: float, **told: Any) -> Outcome:
        curve = [{"step": 0, "agreement": 0.5, "recall": 0.2, "source_recall": 0.4}]
        return Outcome("done", agreement=0.55, agreement_ends=(low, 0.6), **{"curve": curve} | told)

    assert outcome(0.51).is_gain is True
    assert outcome(0.49).is_gain is False
    assert outcome(0.51, curve=[]).is_gain is None

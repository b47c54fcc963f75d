"""What a forecast makes of batches that were tried: probes made up so that the answer can be worked out by hand."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from urbancross import forecast, runs, storage
from urbancross.forecast import Batch, Forecast, Knob, Price, Probe

BEGAN = 1000.0


def batches(worker: str, count: int, tile_s: float = 0.1, ready_s: float = 20.0, tiles: int = 10) -> list[Batch]:
    """The first batch of a worker ends `ready_s` after the begin; the others follow, half a second apart."""
    found, now = [], BEGAN + ready_s
    for number in range(count):
        made_s = tiles * tile_s
        began = BEGAN if number == 0 else now + 0.5
        ended = BEGAN + ready_s if number == 0 else began + made_s
        found.append(Batch(worker, tiles, 100, 1.0, made_s, 0.0, 2.0, 50 * tiles, began, ended, number == 0))
        now = ended
    return found


def probe(*workers: list[Batch], connect_s: float = 5.0) -> Probe:
    made = tuple(batch for own in workers for batch in own)
    return Probe(made, len(workers), connect_s, BEGAN, max(batch.ended_s for batch in made) + 3.0)


def told(
    tried: Probe, shards: list[int], price: Price | None = None, workers: int | None = None, **more: Any
) -> Forecast:
    known = {"table": "t", "command": "c", "maker": "m", "assumed": False, "asked": 2} | more
    return forecast.forecast(tried, shards, 0.5, price or Price(), 0, workers, **known)


def test_batches_that_are_all_alike_leave_one_answer():
    found = told(probe(batches("a", 5), batches("b", 5)), [100] * 6)
    # a shard: 100 tiles of 0.1 s + 1 s to read + 2 s to create + 0.5 s until the next; three each for two workers
    shard_s = 100 * 0.1 + 1.0 + 2.0 + 0.5
    start_s = 5.0 + (20.0 - 1.0) + 3.0  # Ray; a worker until its first batch, less that batch; the end
    assert found.seconds.p50 == pytest.approx(start_s + 3 * shard_s)
    assert found.seconds.p90 == pytest.approx(start_s + 3 * shard_s)
    assert found.start_s == pytest.approx(start_s)
    assert found.size_bytes.p50 == pytest.approx(600 * 50)
    assert found.gpu_hours.p50 == pytest.approx(found.hours.p50 * 2 * 0.5)
    assert found.tiles == 600
    assert sum(found.shares.values()) == pytest.approx(1)


def test_twice_the_workers_take_half_the_time_of_the_work_and_as_long_to_start():
    tried = probe(batches("a", 5), batches("b", 5))
    few, many = told(tried, [100] * 8), told(tried, [100] * 8, workers=4)
    assert many.seconds.p50 - many.start_s == pytest.approx((few.seconds.p50 - few.start_s) / 2)
    assert told(tried, [100] * 8, workers=99).workers == 8  # no more than there are shards


def test_machines_and_gpus_have_prices_of_their_own():
    tried = probe(batches("a", 5), batches("b", 5))
    found = told(tried, [100] * 8, Price(dollars_per_hour=3.0, dollars_per_gpu_hour=2.0))
    assert found.dollars.p50 == pytest.approx(found.hours.p50 * 3.0 + found.gpu_hours.p50 * 2.0)


def test_batches_that_differ_widen_the_range():
    even = told(probe(batches("a", 9)), [100] * 20)
    mixed = [
        replace(batch, transform_s=batch.transform_s * (0.5 if number % 2 else 1.5))
        for number, batch in enumerate(batches("a", 9))
    ]
    uneven = told(probe(mixed), [100] * 20)
    assert uneven.seconds.p90 - uneven.seconds.p50 > 10 * (even.seconds.p90 - even.seconds.p50)


def test_batches_that_a_worker_made_while_others_were_gone_do_not_count():
    slow, fast = batches("a", 4, tile_s=0.3), batches("b", 4, tile_s=0.1)
    alone = [batch for batch in forecast.steady(probe(slow, fast)) if batch.ended_s > fast[-1].ended_s]
    assert alone == []
    assert not any(batch.first for batch in forecast.steady(probe(slow, fast)))


def test_a_probe_of_first_batches_alone_still_says_something():
    found = told(probe(batches("a", 1)), [10])
    assert found.seconds.p50 > 0


def test_jobs_go_to_the_first_worker_that_is_free():
    for jobs in permutations([1.0, 2.0, 3.0, 5.0]):
        free = [0.0, 0.0]
        for seconds in jobs:
            free[free.index(min(free))] += seconds
        assert forecast.makespan(np.array(jobs), 2) == max(free)
    assert forecast.makespan(np.array([]), 4) == 0


def test_of_many_shards_the_sum_says_nearly_what_handing_them_out_does(monkeypatch: pytest.MonkeyPatch):
    tried = probe(batches("a", 5), batches("b", 5, tile_s=0.12))
    exact = told(tried, [100] * 3000 + [40], workers=32)
    monkeypatch.setattr(forecast, "MOST_SCHEDULED", 100)
    quick = told(tried, [100] * 3000 + [40], workers=32)
    assert quick.seconds.p50 == pytest.approx(exact.seconds.p50, rel=0.01)
    assert quick.seconds.p90 == pytest.approx(exact.seconds.p90, rel=0.01)


def test_a_run_is_held_to_its_forecast_and_one_of_half_the_tiles_to_half_of_it():
    made = told(probe(batches("a", 5), batches("b", 5)), [100] * 6).as_json()
    whole = forecast.score(made, 600, 1.1 * made["seconds"]["p50"])
    assert whole is not None
    assert whole["error"] == pytest.approx(0.1)
    half = forecast.score(made, 300, 60.0)
    assert half is not None
    assert half["forecast_s"] == pytest.approx(made["start_s"] + (made["seconds"]["p50"] - made["start_s"]) / 2)
    assert forecast.score(made, 0, 1.0) is None


def test_what_came_true_is_said_in_the_unit_that_fits():
    line = forecast.score_in_words({"forecast_s": 2880.0, "took_s": 3225.0, "error": 0.12})
    assert line == "forecast 48.0 min, took 53.8 min (+12 %)"
    assert [forecast.duration(seconds) for seconds in (4.6, 7100, 8640)] == ["4.6 s", "118.3 min", "2.4 h"]


def test_the_dearest_stage_is_named_with_the_knob_that_moves_it_most():
    tried = probe(batches("a", 5))
    cheap, dear = told(tried, [100]), told(tried, [100] * 9, table="segments@sam")
    assert forecast.dearest([cheap, dear]) is dear
    knobs = [Knob("--a", "4", "2", 0.9), Knob("--points-per-side", "32", "16", 0.3), Knob("--b", "1", "2", 1.4)]
    line = forecast.advice(replace(dear, knobs=knobs), cheap.seconds.p50 + dear.seconds.p50)
    assert line.startswith("segments@sam costs most: ")
    assert line.endswith("; --points-per-side 16 instead of 32 took 0.30 of it")
    assert "--workers (1 now)" in forecast.advice(dear, dear.seconds.p50)


def test_the_newest_forecast_of_the_same_maker_counts(tmp_path: Any):
    def leave(number: int, **more: Any) -> None:
        kept = {"table": "t", "maker": "m", "assumed": False, "number": number} | more
        storage.write_json(tmp_path / "runs" / f"2026010{number}T-plan" / "forecast.json", {"forecasts": [kept]})

    leave(1)
    leave(2)
    leave(3, assumed=True)
    leave(4, maker="other")
    leave(5, table="u")
    leave(6, asked=8)  # for a run of eight workers
    storage.write_json(tmp_path / "runs" / "20260107T-plan" / "balance.json", {})
    found = runs.forecast_of(tmp_path, "t", "m", 2)
    assert found is not None
    assert found["number"] == 2
    assert (runs.forecast_of(tmp_path, "t", "m", 8) or {})["number"] == 6
    assert runs.forecast_of(tmp_path, "t", "none", 2) is None

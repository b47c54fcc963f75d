"""Between a search and Ray Tune, without Ray: what is counted, kept and given up."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from urbancross import storage
from urbancross.config import TuneConfig
from urbancross.distributed import asking, trials
from urbancross.distributed.asking import Asker, Halving, Sweep, at_work
from urbancross.sweep import outcomes
from urbancross.sweep.outcomes import Outcome


def sweep_in(home: Path, **told: Any) -> Sweep:
    places = {"checkpoint": "c", "source": str(home / "a"), "target": str(home / "b"), "out": str(home / "out")}
    config = TuneConfig(**places | {"space": ["ratio=1..9"], "search": "random"} | told)
    storage.write_json(home / "out" / outcomes.SWEEP, {"settings": {}})
    return Sweep.of(config, home / "out")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have gone by; the test moves them."""
    now = [1000.0]
    monkeypatch.setattr(asking.time, "monotonic", lambda: now[0])
    return now


def test_gpu_hours_are_those_of_all_trials_whatever_became_of_them(tmp_path: Path, clock: list[float]):
    told = {"budget": "1gpu-h", "workers": 2, "gpus_per_worker": 1}
    sweep, asker = sweep_in(tmp_path, **told), Asker()
    with at_work(sweep):
        asker.suggest("a")
        clock[0] += 600
        asker.on_trial_complete("a", error=True)  # its node was lost, and nobody wrote an outcome
        assert sweep.trials()[0].outcome == Outcome(
            "failed", "its process ended; out of memory, or killed", steps=sweep.config.steps
        )
        asker.suggest("b")
        clock[0] += 900
        asker.save(str(tmp_path / "searcher"))  # and the driver dies
    assert sweep.spent_gpu_s == 2 * 1500

    back, again = sweep_in(tmp_path, **told), Asker()
    back.recall()
    with at_work(back):
        again.restore(str(tmp_path / "searcher"))
        assert (back.spent_gpu_s, back.may_ask) == (3000, True)
        clock[0] += 300
        assert (back.spent_gpu_s, back.may_ask) == (3600, False)


def test_a_node_that_does_not_see_the_folder_ends_the_sweep_and_spends_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(trials, "SEEN_WITHIN_S", 0.0)
    sweep, asker = sweep_in(tmp_path), Asker()
    trial = trials.trial_of(sweep.config)
    with at_work(sweep):
        asked = asker.suggest("a")
        shutil.rmtree(tmp_path / "out")  # as a node has it that shares no disk
        told = trial(asked)
        assert set(told or {}) == {trials.UNSEEN}
        asker.on_trial_complete("a", told)
        assert sweep.unseen
        assert sweep.open == [0]
        assert sweep.trials()[0].outcome is None
        assert asker.suggest("b") == Searcher.FINISHED


def test_with_a_cost_every_trial_that_may_still_be_chosen_keeps_its_checkpoint(tmp_path: Path):
    def done(recall: float, low: float, embeddings: int) -> Outcome:
        return Outcome("done", recall=recall, recall_ends=(low, 2 * recall - low), embeddings=embeddings)

    sweep = sweep_in(tmp_path, objective="recall", cost="embeddings", space=["ratio=1,2,3,4"], search="grid")
    found = [done(0.45, 0.40, 10), done(0.50, 0.47, 50), done(0.44, 0.40, 60), done(0.52, 0.44, 90)]
    for outcome in found:
        number = sweep.search.ask()
        assert number is not None
        outcomes.write(sweep.home, sweep.key(number), outcome)
        (sweep.home / outcomes.TRIALS / sweep.key(number)).mkdir(parents=True)
        sweep.tell(number, died=False)
    kept = [(sweep.home / outcomes.TRIALS / trial.key).is_dir() for trial in sweep.trials()]
    assert kept == [True, True, False, True]
    chosen = outcomes.choose(sweep.trials(), "recall", "embeddings")
    assert chosen is not None
    assert chosen.number == 0  # which was not, while the second was the best


def test_a_scheduler_hears_of_an_open_trials_rungs_from_before_the_driver_died(tmp_path: Path):
    told = {"scheduler": "asha", "steps": 90, "evaluate_steps": 10}
    sweep, asker = sweep_in(tmp_path, **told), Asker()
    with at_work(sweep):
        asker.suggest("a")
        asker.on_trial_result("a", {"step": 10, "source_recall": 0.5, "agreement": 0.3, "target_recall": 0.2})
        asker.save(str(tmp_path / "searcher"))
    back = sweep_in(tmp_path, **told)
    back.recall()
    assert back.curves == {0: [{"step": 10, "source_recall": 0.5, "agreement": 0.3, "recall": 0.2}]}
    halving = Halving("agreement", 90, 10)
    with at_work(back):
        halving.on_trial_add(None, type("T", (), {"trial_id": "a", "config": {"number": 0}})())
    recorded = dict(halving._brackets[0]._rungs)
    assert list(recorded[10].values()) == [0.3]

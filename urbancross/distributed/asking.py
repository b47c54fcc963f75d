"""Between a search and Ray Tune: points handed out while the budget lasts, outcomes told back and written down."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher

from urbancross import failpoints, storage
from urbancross.config import TuneConfig
from urbancross.distributed.training import UNFINISHED
from urbancross.distributed.trials import REPORTED, UNSEEN, keyed, stop_of
from urbancross.progress import say
from urbancross.sweep import outcomes
from urbancross.sweep.outcomes import Outcome, Trial, short
from urbancross.sweep.search import Search
from urbancross.sweep.space import space_of

ETA = 3  # of ASHA: one of so many trials goes on

_now: list["Sweep"] = []  # the sweep that this process drives; Ray Tune copies and pickles all that it is given


@dataclass
class Sweep:
    """A sweep as its driver knows it, kept in `asked.json`.

    Attributes:
        round: how often Ray Tune was begun anew, such as for a larger budget; each has a folder of its state.
        ended: whether that round came to its end.
        earlier_s: seconds of earlier drivers.
        gpu_s: seconds of GPUs that trials had, those at work now left out.
        since: when trials at work were handed out, or taken up by this driver, by number.
        unseen: a node that has not the folder of the sweep.
        keys: names of settings, by number.
        again: points that were told and are to be tried once more.
        curves: diagnoses of trials at work, by number.
        stopping: what trials had reported when they were told to stop, by number.
    """

    config: TuneConfig
    home: Path
    search: Search
    round: int = 0
    ended: bool = True
    earlier_s: float = 0.0
    began: float = field(default_factory=time.monotonic)
    gpu_s: float = 0.0
    since: dict[int, float] = field(default_factory=dict)
    unseen: str | None = None
    keys: dict[int, str] = field(default_factory=dict)
    again: set[int] = field(default_factory=set)
    curves: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    stopping: dict[int, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: TuneConfig, home: Path) -> "Sweep":
        objectives = 1 if config.cost == "none" else 2
        space, most = space_of(config), config.limits.trials
        return cls(config, home, Search(space, config.search, config.seed, objectives, most))

    def recall(self) -> None:
        """Take up what an earlier driver wrote down."""
        told = storage.json_or_none(self.home / outcomes.ASKED, "--out")
        if told is None:
            return
        self.round, self.ended, self.earlier_s = told["round"], told["ended"], told["seconds"]
        self.gpu_s = told.get("gpu_seconds", 0.0)
        self.curves = {int(number): curve for number, curve in told.get("curves", {}).items()}
        self.search.restore(told["history"])
        if self.config.retry_failed and not self.is_spent:
            for trial in self.trials():
                if trial.outcome is not None and trial.outcome.state == "failed":
                    storage.remove(self.home / outcomes.TRIALS / f"{trial.key}.json")
        known = {trial.number for trial in self.trials() if trial.outcome is not None}
        self.again = self.told - known
        if self.again:
            self.ended = True  # Ray Tune takes them for done; a new round asks for them first

    @property
    def told(self) -> set[int]:
        return {event["told"] for event in self.search.history if "told" in event} - self.again

    @property
    def open(self) -> list[int]:
        """Points that were handed out and of which nobody knows yet."""
        return sorted(set(range(len(self.search.asked))) - self.told)

    @property
    def spent_s(self) -> float:
        return self.earlier_s + time.monotonic() - self.began

    @property
    def spent_gpu_s(self) -> float:
        """Of all trials, whatever became of them."""
        now = time.monotonic()
        return self.gpu_s + self.gpus_of_trial * sum(now - since for since in self.since.values())

    @property
    def gpus_of_trial(self) -> float:
        return self.config.workers * self.config.gpus_per_worker

    @property
    def may_ask(self) -> bool:
        """Whether the budget and the space have another point."""
        size = self.search.size
        if size is not None and len(self.search.asked) >= size:
            return False
        return not self.search.is_exhausted and not self.is_spent

    @property
    def is_spent(self) -> bool:
        """Whether the hours are, where the budget is in hours."""
        limits = self.config.limits
        if limits.hours is not None:
            return self.spent_s >= 3600 * limits.hours
        if limits.gpu_hours is not None:
            return self.spent_gpu_s >= 3600 * limits.gpu_hours
        return False

    def begin_round(self) -> None:
        self.round, self.ended = self.round + 1, False
        self.save()

    def end_round(self) -> None:
        self.ended = True
        self.save()

    def save(self) -> None:
        told = {
            "round": self.round,
            "ended": self.ended,
            "seconds": self.spent_s,
            "gpu_seconds": self.spent_gpu_s,
            "curves": self.curves,
            "history": self.search.history,
        }
        storage.write_json(self.home / outcomes.ASKED, told)

    def begin(self, number: int) -> None:
        """A trial is at work now; its time is counted from here."""
        self.since[number] = time.monotonic()

    def end(self, number: int) -> None:
        if (since := self.since.pop(number, None)) is not None:
            self.gpu_s += self.gpus_of_trial * (time.monotonic() - since)

    def key(self, number: int) -> str:
        if number not in self.keys:
            self.keys[number] = keyed(self.config, self.search.asked[number])[0]
        return self.keys[number]

    def trials(self) -> list[Trial]:
        return [
            Trial(number, point, self.key(number), outcomes.read(self.home, self.key(number)))
            for number, point in enumerate(self.search.asked)
        ]

    def tell(self, number: int, died: bool) -> None:
        """Write down what became of a point, whose trial wrote its own outcome if it could."""
        key = self.key(number)
        outcome = outcomes.read(self.home, key)
        if outcome is None:
            outcome = self.without_record(number, died)
            outcomes.write(self.home, key, outcome)
        objective = outcome.value(self.config.objective)
        values = None if outcome.state == "failed" else [objective]
        if values and self.config.cost != "none":
            values.append(outcome.value(self.config.cost))
        self.search.tell(number, outcome.state, values, outcome.step)
        self.again.discard(number)
        self.end(number)
        self.curves.pop(number, None)
        trials = self.trials()
        self.sweep_up(trials)
        self.save()
        said = {"done": "", "stopped": f"stopped at step {outcome.step}, "}.get(outcome.state, "")
        words = outcome.reason if outcome.state == "failed" else said + self.words(trials[number])
        size = self.search.size
        say(f"tune: trial {number}{f' ({len(self.told)} of {size})' if size else ''}: {outcome.state}: {words}")
        failpoints.hit("tune.told")

    def hear(self, number: int, reported: dict[str, Any]) -> None:
        """A diagnosis of a trial at work."""
        if "source_recall" in reported and number not in self.stopping:
            self.curves.setdefault(number, []).append(
                {"step": reported["step"], "source_recall": reported["source_recall"]}
                | {name: reported[key] for name, key in REPORTED.items()}
            )

    def stop(self, number: int, reported: dict[str, Any]) -> None:
        """Have a trial stop at its next step.

        Ray Tune would kill its process; Ray Train's controller goes with it, and the CPUs of its workers are then never
        given back where Ray's state API cannot be reached.
        """
        self.hear(number, reported)
        self.stopping[number] = reported
        storage.write_json(stop_of(self.home, self.key(number)), {"step": reported["step"]})

    def without_record(self, number: int, died: bool) -> Outcome:
        """Of a trial that did not come to its end: stopped by the scheduler, or its process is gone."""
        told = self.stopping.get(number, {})
        if died or number not in self.stopping:
            return Outcome("failed", "its process ended; out of memory, or killed", steps=self.config.steps)
        return Outcome(
            "stopped",
            f"by {self.config.scheduler} at step {told['step']} of {self.config.steps}",
            recall=told[REPORTED["recall"]],
            agreement=told[REPORTED["agreement"]],
            step=told["step"],
            steps=self.config.steps,
            wall_s=told.get("time_total_s", 0.0),
            curve=self.curves.get(number, []),
        )

    def sweep_up(self, trials: list[Trial]) -> None:
        """Remove what trials leave: states, and checkpoints that cannot be chosen any more; each has both towers."""
        best = outcomes.choose(trials, self.config.objective, None)
        kept = {best.key} if best is not None else set()
        if self.config.cost != "none":  # another one of these may be chosen when the best one's interval is another
            kept |= {trial.key for trial in outcomes.front(trials, self.config.objective, self.config.cost)}
        for trial in trials:
            if trial.outcome is None:
                continue
            place = self.home / outcomes.TRIALS / trial.key
            if trial.outcome.state != "failed":  # which may go on from its state
                shutil.rmtree(f"{place}{UNFINISHED}", ignore_errors=True)
            if not self.config.keep_checkpoints and trial.key not in kept:
                shutil.rmtree(place, ignore_errors=True)

    def words(self, trial: Trial) -> str:
        outcome = trial.outcome
        if outcome is None or outcome.recall is None or outcome.agreement is None:
            return "nothing known"
        point = ", ".join(f"{name}={short(value)}" for name, value in trial.point.items())
        return f"agreement {outcome.agreement:.4f}, mR {100 * outcome.recall:.2f} %, {point}"


@contextlib.contextmanager
def at_work(sweep: Sweep) -> Iterator[None]:
    """This process drives a sweep while the block runs."""
    _now.append(sweep)
    try:
        yield
    finally:
        _now.remove(sweep)


class Asker(Searcher):
    """Ray Tune's view of a search, whose state it keeps and brings back: which of its trials is which point."""

    def __init__(self) -> None:
        super().__init__(metric=None, mode=None)
        self.numbers: dict[str, int] = {}  # of points, by Ray Tune's name of the trial

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        sweep = _now[-1]
        if sweep.unseen:
            return Searcher.FINISHED
        if len(set(self.numbers.values()) - sweep.told) >= sweep.config.concurrent:
            return None
        if sweep.is_spent and sweep.again:  # what is open was told once, and waits for a larger budget
            return Searcher.FINISHED
        if not (left := self.left):
            if not sweep.may_ask or sweep.search.ask() is None:
                return Searcher.FINISHED
            sweep.save()
            left = self.left
        running = {sweep.key(number) for number in self.numbers.values() if number not in sweep.told}
        number = next((number for number in left if sweep.key(number) not in running), None)
        if number is None:  # it means what a trial at work means, whose outcome will be its own
            return None
        self.numbers[trial_id] = number
        sweep.begin(number)
        return {"number": number, "point": sweep.search.asked[number]}

    @property
    def left(self) -> list[int]:
        """Points that were handed out and that no trial of this round is about."""
        return [number for number in _now[-1].open if number not in self.numbers.values()]

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        _now[-1].hear(self.numbers[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        sweep, number = _now[-1], self.numbers[trial_id]
        if result and UNSEEN in result:
            sweep.end(number)
            sweep.unseen = result[UNSEEN]
        elif number not in sweep.told:
            sweep.tell(number, error)

    def save(self, checkpoint_path: str) -> None:
        _now[-1].save()  # what was spent, too
        Path(checkpoint_path).write_text(json.dumps({"numbers": self.numbers, "history": _now[-1].search.history}))

    def restore(self, checkpoint_path: str) -> None:
        self.numbers = json.loads(Path(checkpoint_path).read_text())["numbers"]
        for number in set(self.numbers.values()) - _now[-1].told:
            _now[-1].begin(number)


class Halving(ASHAScheduler):
    """ASHA that knows, after a driver died, how far the trials before came; Ray Tune forgets its schedulers."""

    def __init__(self, objective: str, steps: int, first: int) -> None:
        super().__init__("step", REPORTED[objective], "max", steps, first, ETA, stop_last_trials=False)
        self.objective, self.recalled = objective, False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        if not self.recalled:
            self.recalled = True
            for before in _now[-1].trials():
                curve = before.outcome.curve if before.outcome else _now[-1].curves.get(before.number, [])
                for told in curve:
                    stand_in: Any = SimpleNamespace(trial_id=before.key)
                    self._brackets[0].on_result(stand_in, int(told["step"]), told[self.objective])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        sweep, number = _now[-1], trial.config["number"]
        if number in sweep.stopping:
            return self.CONTINUE  # it is about to
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision == self.STOP and "source_recall" in result:  # at its end it stops by itself
            sweep.stop(number, result)
            return self.CONTINUE
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if trial.config["number"] not in _now[-1].stopping:  # one that was stopped has been counted
            super().on_trial_complete(tune_controller, trial, result)

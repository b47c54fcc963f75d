"""Which point comes next: a grid, chance, or Optuna's tree-structured Parzen estimator (TPE).

A search is what it was asked and told, in that order, and nothing else: from this history, which is plain JSON, it
comes back as it was. That is how a sweep whose driver died goes on where it stood.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from urbancross.errors import ConfigError
from urbancross.sweep.space import IDLE, Dimension, Point, drawn, grid

Event = dict[str, Any]

MOST_COUNTED = 10_000  # points of a space that are counted; nobody hands out all of a larger one
STARTUP = 10  # points that TPE draws by chance, before it has enough to go by


class Search:
    """Points by number, from 0; `tell` says what became of one.

    Attributes:
        end: points that there are; None where there is no end of them.
        history: events in order: {"asked": number, "point"}, or {"told": number, "state", "values", "step"}.
        asked: points by number.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        kind: Literal["grid", "random", "tpe"],
        seed: int,
        objectives: int = 1,
        most: int | None = None,
    ) -> None:
        """
        Args:
            objectives: values per point; the first is to be large, a second one small.
            most: points to hand out; None: all of a grid, or no end.

        Raises:
            ConfigError: the space is no grid.
        """
        self.space, self.kind, self.seed, self.objectives, self.most = list(space), kind, seed, objectives, most
        self.history: list[Event] = []
        self.asked: list[Point] = []
        self.points = grid(space, seed) if kind == "grid" else None
        size = math.prod(dim.count for dim in space)
        self.end = len(grid(space, seed)) if size <= MOST_COUNTED else None
        self._study: Any = None
        self._trials: dict[int, Any] = {}  # Optuna's, by number

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_study": None, "_trials": {}}

    @property
    def size(self) -> int | None:
        """Points in all; None where nothing but the budget ends it."""
        known = [count for count in (self.most, None if self.points is None else len(self.points)) if count is not None]
        return min(known) if known else None

    @property
    def is_exhausted(self) -> bool:
        """Whether every point there is has been handed out, for chance and TPE ask again for what they know."""
        return self.end is not None and len({repr(sorted(point.items())) for point in self.asked}) >= self.end

    def ask(self) -> int | None:
        """The number of the next point; None where there is none."""
        number = len(self.asked)
        if self.size is not None and number >= self.size:
            return None
        if self.points is not None:
            point = self.points[number]
        elif self.kind == "random":
            point = drawn(self.space, self.seed, number)
        else:
            point = self._by_tpe(number)
        self.asked.append(point)
        self.history.append({"asked": number, "point": point})
        return number

    def tell(self, number: int, state: str, values: Sequence[float] | None = None, step: int | None = None) -> None:
        """
        Args:
            state: done, stopped (early, by the scheduler) or failed.
            values: the objectives of a point that is done, or stopped.
            step: at which one was stopped.
        """
        told = None if values is None else list(values)
        self.history.append({"told": number, "state": state, "values": told, "step": step})
        if self.kind == "tpe":
            self._tell_tpe(number, state, told, step)

    def restore(self, history: Sequence[Event]) -> None:
        """Come back to where a history ends.

        Raises:
            ConfigError: the same questions have other answers now.
        """
        self.history, self.asked, self._study, self._trials = [], [], None, {}
        most, self.most = self.most, None
        for event in history:
            if "asked" in event:
                number = self.ask()
                if number is None or self.asked[number] != event["point"]:
                    raise ConfigError(
                        f"point {event['asked']} of the search was {event['point']} and is another now (other version "
                        "of optuna?); install what constraints.txt says, or give another --out"
                    )
            else:
                self.tell(event["told"], event["state"], event["values"], event["step"])
        self.most = most

    def _by_tpe(self, number: int) -> Point:
        trial = self._trials[number] = self.study.ask()
        point: Point = {}
        for dim in self.space:
            if dim.name in IDLE and point.get(IDLE[dim.name][0], ...) == IDLE[dim.name][1]:
                continue
            if dim.kind == "choice":
                # Texts, for Optuna's categories are plain values.
                names = [repr(choice) for choice in dim.choices]
                point[dim.name] = dim.choices[names.index(trial.suggest_categorical(dim.name, names))]
            elif dim.kind == "int":
                point[dim.name] = trial.suggest_int(dim.name, int(dim.low), int(dim.high), log=dim.by_log)
            else:
                point[dim.name] = trial.suggest_float(dim.name, dim.low, dim.high, log=dim.by_log)
        return point

    def _tell_tpe(self, number: int, state: str, values: list[float] | None, step: int | None) -> None:
        from optuna.trial import TrialState, create_trial

        trial = self._trials[number]
        known = self.study.get_trials(deepcopy=False)[trial.number]
        if known.state.is_finished():  # it was told before, and tried again since
            if state == "done" and values is not None:
                again = create_trial(values=values, params=known.params, distributions=known.distributions)
                self.study.add_trial(again)
        elif state == "done" and values is not None:
            self.study.tell(trial, values)
        elif state == "stopped" and values is not None and self.objectives == 1:
            trial.report(values[0], step or 0)
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    @property
    def study(self) -> Any:
        if self._study is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.ERROR)
            sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, constant_liar=True, seed=self.seed)
            directions: Any = ["maximize", "minimize"][: self.objectives]
            self._study = optuna.create_study(directions=directions, sampler=sampler)
        return self._study

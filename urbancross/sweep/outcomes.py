"""What became of the trials of a sweep: kept as JSON, ranked, and summed up by setting."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from scipy.stats import t as students_t

from urbancross import storage
from urbancross.storage import Place
from urbancross.sweep.space import Point

State = Literal["done", "stopped", "failed"]
OBJECTIVES = {"agreement": "agreement", "recall": "mR"}
TRIALS, ASKED, SWEEP, SHARED, CHOSEN = "trials", "asked.json", "sweep.json", "shared.json", "chosen.json"


@dataclass(frozen=True)
class Outcome:
    """One `adapt`, measured on the kept-back tiles (split `valid`) of the target.

    Attributes:
        state: done; stopped early by the scheduler; or failed.
        reason: why it is not done.
        recall, recall_ends: mR by the `field` protocol and its 95 % interval over tiles: needs the target's pairs.
        agreement, agreement_ends: see `urbancross.verdict`: needs none. The interval is that of the gain, on top of
            what was there before.
        gallery: {"tiles", "texts"} behind the recall.
        step, steps: how far it came.
        seconds: of learning and its diagnoses, over all workers, the start of the team not counted.
        embeddings: vectors that its heads learnt from, a tile's, text's or segment's; those that only told how close a
            pair is are not counted.
        wall_s: from its start to its end.
        tables, found: features tables that it needed, and those that were there already.
        curve: diagnoses as it went: step, recall, agreement, source_recall.
    """

    state: State
    reason: str = ""
    recall: float | None = None
    recall_ends: tuple[float, float] | None = None
    agreement: float | None = None
    agreement_ends: tuple[float, float] | None = None
    gallery: dict[str, int] = field(default_factory=dict)
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    embeddings: int = 0
    wall_s: float = 0.0
    tables: int = 0
    found: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def value(self, name: str) -> float:
        """An objective or a cost by name; nan where there is none."""
        found = getattr(self, name)
        return math.nan if found is None else float(found)

    @property
    def is_gain(self) -> bool | None:
        """Whether the target agrees better than before, by the whole interval; None where nobody knows."""
        before = next((told["agreement"] for told in self.curve if told["step"] == 0), None)
        return None if before is None or self.agreement_ends is None else self.agreement_ends[0] > before

    def ends(self, objective: str) -> tuple[float, float] | None:
        found: tuple[float, float] | None = getattr(self, f"{objective}_ends")
        return found


@dataclass(frozen=True)
class Trial:
    """A point of the search and what became of it; None while nobody knows.

    Attributes:
        key: names its settings; points that mean the same share it, and the outcome.
    """

    number: int
    point: Point
    key: str
    outcome: Outcome | None = None

    @property
    def is_done(self) -> bool:
        return self.outcome is not None and self.outcome.state == "done"


def read(home: Place, key: str) -> Outcome | None:
    """The outcome of the settings with this key, if a sweep has one."""
    told = storage.json_or_none(home / TRIALS / f"{key}.json", "--out")
    if told is None:
        return None
    for name in ("recall_ends", "agreement_ends"):
        told[name] = told[name] and tuple(told[name])
    return Outcome(**told)


def write(home: Place, key: str, outcome: Outcome) -> None:
    storage.write_json(home / TRIALS / f"{key}.json", asdict(outcome))


def short(value: object) -> str:
    """A value of a setting as it is told: reals to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def front(trials: Sequence[Trial], objective: str, cost: str) -> list[Trial]:
    """Trials that no other one beats in both, the cheapest first: higher objective, lower cost."""
    kept: list[Trial] = []
    done = [(trial, trial.outcome) for trial in trials if trial.is_done and trial.outcome is not None]
    for trial, outcome in sorted(done, key=lambda d: (d[1].value(cost), -d[1].value(objective), d[0].number)):
        best = kept[-1].outcome if kept else None
        if best is None or outcome.value(objective) > best.value(objective):
            kept.append(trial)
    return kept


def choose(trials: Sequence[Trial], objective: str, cost: str | None) -> Trial | None:
    """The best trial by the objective, the first where several are; None where none is done.

    Args:
        cost: where it counts, the cheapest trial is taken whose objective lies within the best one's interval.
    """
    done = [trial for trial in trials if trial.is_done]
    if not done:
        return None
    best = max(done, key=lambda trial: (_value(trial, objective), -trial.number))
    ends = best.outcome.ends(objective) if best.outcome else None
    if cost is None or ends is None:
        return best
    return next((trial for trial in front(done, objective, cost) if _value(trial, objective) >= ends[0]), best)


def _value(trial: Trial, name: str) -> float:
    found = trial.outcome.value(name) if trial.outcome else math.nan
    return -math.inf if math.isnan(found) else found


@dataclass(frozen=True)
class Level:
    """The trials at one value of a setting.

    Attributes:
        values: of the objective, a trial each.
        mean, low, high: with a 95 % interval: Student's t over trials, or over tiles where there is one trial alone.
    """

    at: Any
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


def levels(trials: Sequence[Trial], name: str, objective: str) -> list[Level]:
    """An objective by the values of one setting, whatever the others were; points that mean the same count once."""
    unique = {(trial.key, trial.point[name]): trial for trial in trials if trial.is_done and name in trial.point}
    by_value: dict[Any, list[Trial]] = {}
    for trial in unique.values():
        by_value.setdefault(trial.point[name], []).append(trial)
    order = sorted(by_value) if all(isinstance(at, int | float) for at in by_value) else list(by_value)
    return [level(at, by_value[at], objective) for at in order]


def level(at: Any, trials: Sequence[Trial], objective: str) -> Level:
    values = [_value(trial, objective) for trial in trials]
    outcome = trials[0].outcome
    return level_of(at, values, outcome.ends(objective) if outcome else None)


def level_of(at: Any, values: Sequence[float], ends: tuple[float, float] | None = None) -> Level:
    """
    Args:
        ends: of the interval over tiles, where there is one value alone.
    """
    mean = statistics.fmean(values)
    if len(values) > 1:
        half = float(students_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
        return Level(at, tuple(values), mean, mean - half, mean + half)
    return Level(at, tuple(values), mean, *(ends or (mean, mean)))

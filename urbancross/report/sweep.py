"""The page of a sweep: what was chosen and why, recall by setting, all trials, what they shared; one HTML file.

`page_of` reads what the sweep wrote down and draws; it knows nothing of Ray.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from urbancross import storage
from urbancross.config import TuneConfig
from urbancross.report import sweep_figures as figures
from urbancross.report.figures import FIGURE_STYLE, Panel
from urbancross.report.page import environment
from urbancross.report.words import interval, percent
from urbancross.sweep import outcomes
from urbancross.sweep.outcomes import OBJECTIVES, Trial
from urbancross.sweep.space import SEGMENTS, space_of

NO_GAIN = "the chosen trial is no gain over the model that it began with, by its interval: do not adapt"
WORDS = {"agreement": "agreement of the target's tiles with its texts", "recall": "mR on the target's pairs"}


@dataclass(frozen=True)
class Use:
    """Something that trials share.

    Attributes:
        asked: how often it was needed, over all trials.
        made: how often it was worked out for them.
    """

    what: str
    asked: int
    made: int

    @property
    def share(self) -> float:
        """Of what was needed, what was found."""
        return 1 - self.made / self.asked if self.asked else math.nan


@dataclass(frozen=True)
class Sharing:
    """
    Attributes:
        factor: work of the towers for all trials, by that of one trial with the most segments.
        tables, found: features tables that trials needed, and found when they began.
    """

    uses: list[Use]
    factor: float
    seconds: float
    tables: int
    found: int


def page_of(config: TuneConfig, home: Path, trials: Sequence[Trial], chosen: Trial | None, spent_s: float) -> str:
    """The whole page."""
    space = space_of(config)
    told = [trial for trial in trials if trial.outcome is not None]
    before = first_diagnosis(told)
    with rc_context(FIGURE_STYLE):
        by_setting = {
            dimension.name: figures.any_of(
                *(
                    figures.setting_panel(dimension, objective, told, chosen, before.get(objective))
                    for objective in ("recall", "agreement")
                )
            )
            for dimension in space
        }
        done = any(trial.is_done for trial in told)
        together: list[Panel] = [figures.together_panel(space, told, config.objective, chosen)] if done else []
        worth = figures.any_of(
            *(figures.front_panel(told, "recall", cost, chosen) for cost in ("seconds", "embeddings")),
            figures.front_panel(told, "agreement", "embeddings", chosen),
            figures.both_panel(told, chosen),
        )
    shared = storage.json_or_none(home / outcomes.SHARED, "--out")
    return (
        environment()
        .get_template("sweep.html.j2")
        .render(
            title=f"{Path(config.source).name} to {Path(config.target).name}: a sweep of {len(told)} trials",
            subtitle=subtitle(config, spent_s),
            verdict=verdict(config, chosen),
            unsupervised=config.objective == "agreement",
            before=before,
            by_setting={name: panels for name, panels in by_setting.items() if panels},
            together=together,
            worth=worth,
            trials=sorted(told, key=lambda trial: -rank_of(trial, config.objective)),
            chosen=chosen,
            first={trial.key: trial.number for trial in reversed(told)},
            names=[dimension.name for dimension in space],
            point=figures.as_text,
            settings=(home / outcomes.CHOSEN).read_text() if chosen is not None else "",
            sharing=sharing_of(config, shared, told) if shared else None,
            shared=shared,
            failures=Counter(t.outcome.reason for t in told if t.outcome and t.outcome.state == "failed").most_common(),
            config=config.model_dump(mode="json"),
        )
    )


def subtitle(config: TuneConfig, spent_s: float) -> str:
    how = {"grid": "a grid", "random": "points by chance", "tpe": "points by Optuna's TPE"}[config.search]
    early = ", ASHA stops the weak ones early" if config.scheduler == "asha" else ""
    return f"{how}{early}; {config.steps} steps a trial; measured on split valid; {spent_s / 60:.1f} minutes in all"


def verdict(config: TuneConfig, chosen: Trial | None) -> str:
    if chosen is None or chosen.outcome is None:
        return "No trial came to its end."
    outcome = chosen.outcome
    gain = f" But {NO_GAIN}." if outcome.is_gain is False else ""
    best = f"the cheapest within the best one's interval, by {config.cost}" if config.cost != "none" else "the highest"
    return (
        f"Trial {chosen.number} was chosen by {WORDS[config.objective]} ({best}): "
        f"{figures.as_text(chosen.point)}. Agreement {outcome.value('agreement'):.4f}, "
        f"mR {percent(outcome.recall)} {interval(outcome.recall_ends)}, both on split valid.{gain}"
    )


def rank_of(trial: Trial, objective: str) -> float:
    value = trial.outcome.value(objective) if trial.outcome and trial.is_done else math.nan
    return -math.inf if math.isnan(value) else value


def first_diagnosis(trials: Sequence[Trial]) -> dict[str, float]:
    """Of the model before it is adapted: it is the same for all trials."""
    for trial in trials:
        for told in trial.outcome.curve if trial.outcome else []:
            if told["step"] == 0:
                return {name: told[name] for name in OBJECTIVES}
    return {}


def sharing_of(config: TuneConfig, shared: dict[str, Any], trials: Sequence[Trial]) -> Sharing:
    """How often what trials share was needed, and how often it was worked out.

    A trial that lacked a table made its own, which counts as all that it needs.
    """
    ran = list({trial.key: trial for trial in trials if trial.outcome is not None and learnt(trial.outcome)}.values())
    masks = sum(masks_of(config, shared, trial) for trial in ran)
    plain = (shared["tiles"] + shared["texts"]) * len(ran)
    new = [table for table in shared["tables"] if table["made"]]
    lacking = [trial for trial in ran if trial.outcome and trial.outcome.found < trial.outcome.tables]
    own_crops = sum(masks_of(config, shared, trial) for trial in lacking)
    own = (shared["tiles"] + shared["texts"]) * len(lacking) + own_crops
    tables, found = (sum(getattr(t.outcome, name) for t in ran if t.outcome) for name in ("tables", "found"))
    uses = [
        Use("captions", shared["texts"] * len(ran), 0),
        Use("masks", masks, 0),
        Use("crops", masks, sum(table["crops"] for table in new) + own_crops),
        Use("embeddings of frozen towers", plain + masks, sum(worked_out(table) for table in new) + own),
    ]
    alone = shared["tiles"] + shared["texts"] + shared["masks"][-1]
    factor = (sum(worked_out(table) for table in shared["tables"]) + own) / max(alone, 1)
    return Sharing(uses, factor, sum(table["seconds"] for table in new), tables, found)


def learnt(outcome: outcomes.Outcome) -> bool:
    """Whether a trial came so far as to need anything; settings that contradict each other did not."""
    return outcome.state != "failed" or outcome.tables > 0


def masks_of(config: TuneConfig, shared: dict[str, Any], trial: Trial) -> int:
    most = 0 if config.segments == "none" else trial.point.get(SEGMENTS, config.max_segments)
    return int(shared["masks"][min(most, len(shared["masks"]) - 1)])


def worked_out(table: dict[str, Any]) -> int:
    return int(table["tiles"] + table["texts"] + table["crops"])

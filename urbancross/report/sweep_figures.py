"""The figures of a sweep's report: objectives by setting, all settings together, and what is worth its cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from urbancross.report.figures import BLUE, GREEN, GREY, ORANGE, Panel, blank_figure, inline_svg
from urbancross.sweep.outcomes import Level, Trial, front, level_of, levels, short
from urbancross.sweep.space import Dimension

TITLES = {"recall": "mR, %", "agreement": "agreement"}
COLOURS = {"recall": BLUE, "agreement": GREEN}
COSTS = {"seconds": "seconds of learning, over all workers", "embeddings": "vectors that the heads compute, thousands"}
NAMES = {"max_segments": "segments per tile, K", "ratio": "source candidates per target tile", "pace": "pace"}
NAMES |= {"pace_start": "share of candidates at the start"}
SCALES = {"recall": 100.0, "agreement": 1.0, "seconds": 1.0, "embeddings": 1e-3}
BINS = 6  # of a setting with more values than can be told apart
MOST_VALUES = 14


def setting_panel(
    dimension: Dimension, objective: str, trials: Sequence[Trial], chosen: Trial | None, before: float | None
) -> Panel | None:
    """An objective by the values of one setting: a dot a trial, and the mean of each value with its interval.

    Args:
        before: the objective of the model that is adapted.
    """
    found = levels(trials, dimension.name, objective)
    if not found:
        return None
    if dimension.kind == "choice":
        found.sort(key=lambda level: dimension.choices.index(level.at))
    scale, colour = SCALES[objective], COLOURS[objective]
    figure, axes = blank_figure(height_inch=2.7)
    by_number = all(isinstance(level.at, int | float) and not isinstance(level.at, bool) for level in found)
    at = [float(level.at) if by_number else float(i) for i, level in enumerate(found)]
    for x, level in zip(at, found, strict=True):
        axes.plot([x] * len(level.values), [scale * v for v in level.values], "o", color=colour, alpha=0.35, ms=4)
    drawn, where = (found, at) if len(found) <= MOST_VALUES else binned(at, found, by_log=dimension.by_log)
    means = [scale * level.mean for level in drawn]
    reach = [
        [scale * (level.mean - level.low) for level in drawn],
        [scale * (level.high - level.mean) for level in drawn],
    ]
    axes.errorbar(where, means, yerr=reach, fmt="D-" if by_number else "D", color=colour, ms=5, lw=1.4, capsize=3)
    if dimension.by_log:
        axes.set_xscale("log")
    if not by_number:
        axes.set_xticks(at, [str(level.at) for level in found])
        axes.set_xlim(-0.5, len(found) - 0.5)
    elif len(found) <= MOST_VALUES and not dimension.by_log:
        axes.set_xticks(at, [short(level.at) for level in found])
    if before is not None:
        axes.axhline(scale * before, color=GREY, linestyle="--", linewidth=1)
        right: Any = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "bottom"}
        axes.text(1, scale * before, "before ", color=GREY, fontsize=8, **right)
    if chosen is not None and chosen.outcome is not None and dimension.name in chosen.point:
        x = at[[level.at for level in found].index(chosen.point[dimension.name])]
        _ring(axes, x, scale * chosen.outcome.value(objective))
    name = NAMES.get(dimension.name, dimension.name.replace("_", " "))
    axes.set(xlabel=name, ylabel=TITLES[objective], ylim=_room(found, scale, before))
    said = "; ".join(
        f"{short(level.at)}: {scale * level.mean:.4g} ({scale * level.low:.4g} to {scale * level.high:.4g})"
        for level in drawn
    )
    title = f"{TITLES[objective].split(',')[0]} by {name}"
    return Panel(title, "", inline_svg(figure, f"{objective}-{dimension.name}", f"{title}: {said}"))


def _room(found: Sequence[Level], scale: float, before: float | None) -> tuple[float, float]:
    """Ends of an axis that shows all trials; an interval over two of them may reach far beyond."""
    values = [scale * value for level in found for value in level.values]
    values += [scale * before] if before is not None else []
    low, high = min(values), max(values)
    singles = [level for level in found if len(level.values) == 1]
    pad = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    return (
        min([low - pad, *(scale * level.low for level in singles)]),
        max([high + pad, *(scale * level.high for level in singles)]),
    )


def _ring(axes: Axes, x: float, y: float, label: str | None = None) -> None:
    """Where the chosen trial is."""
    axes.plot([x], [y], "o", mfc="none", mec=ORANGE, mew=2, ms=11, label=label)


def binned(at: list[float], found: Sequence[Level], by_log: bool) -> tuple[list[Level], list[float]]:
    """Bins of equal width over the values of a setting, and their middles; empty ones are left out."""
    x = np.log(at) if by_log else np.asarray(at)
    edges = np.linspace(x.min(), x.max(), BINS + 1)
    place = np.clip(np.digitize(x, edges) - 1, 0, BINS - 1)
    bins, middle = list[Level](), list[float]()
    for bin_ in range(BINS):
        values = [v for i in np.flatnonzero(place == bin_) for v in found[i].values]
        if values:
            centre = (edges[bin_] + edges[bin_ + 1]) / 2
            middle.append(float(math.exp(centre) if by_log else centre))
            bins.append(level_of(middle[-1], values))
    return bins, middle


def together_panel(space: Sequence[Dimension], trials: Sequence[Trial], objective: str, chosen: Trial | None) -> Panel:
    """Parallel coordinates: a line a trial through its settings, mR and agreement; dark is good by the objective."""
    names = [dimension.name for dimension in space]
    done = [trial for trial in trials if trial.is_done]
    ranked = sorted(done, key=lambda trial: trial.outcome.value(objective) if trial.outcome else -math.inf)
    figure, axes = blank_figure(height_inch=3.6, width_inch=10.4)
    ends = ["recall", "agreement"] if objective == "agreement" else ["agreement", "recall"]
    rows = [[*(_place(dim, trial) for dim in space), *(_share(trial, done, end) for end in ends)] for trial in ranked]
    colours = colormaps["viridis_r"](np.linspace(0.05, 1, max(len(rows), 1)))
    for row, trial, colour in zip(rows, ranked, colours, strict=True):
        if chosen is not None and trial.key == chosen.key:
            axes.plot(row, color=ORANGE, lw=3, zorder=3)
        else:
            axes.plot(row, color=colour, lw=1.2, alpha=0.75, zorder=2)
    for i, dim in enumerate(space):
        _scale(axes, i, _ticks(dim))
    for i, end in enumerate(ends, start=len(space)):
        values = sorted(SCALES[end] * t.outcome.value(end) for t in done if t.outcome)
        _scale(axes, i, [(0.0, f"{values[0]:.4g}"), (1.0, f"{values[-1]:.4g}")])
    axes.set_xticks(range(len(names) + 2), [*names, *(TITLES[end] for end in ends)])
    axes.set(ylim=(-0.14, 1.1), xlim=(-0.35, len(names) + 1.55), yticks=[])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(visible=False)
    alt = f"Parallel coordinates of {len(done)} trials over {', '.join(names)}, mR and agreement"
    good = TITLES[objective].split(",")[0]
    detail = f"dark: high {good}; orange: the chosen trial; below an axis: the setting means nothing there"
    return Panel("All settings of each trial", detail, inline_svg(figure, "together", alt))


def _place(dimension: Dimension, trial: Trial) -> float:
    """Where a trial crosses the axis of a setting: 0 to 1, or below for one without it."""
    if dimension.name not in trial.point:
        return -0.1
    value = trial.point[dimension.name]
    if dimension.kind == "choice":
        return dimension.choices.index(value) / max(len(dimension.choices) - 1, 1)
    low, high = dimension.low, dimension.high
    if dimension.by_log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return float((value - low) / (high - low))


def _share(trial: Trial, done: Sequence[Trial], name: str) -> float:
    values = [t.outcome.value(name) for t in done if t.outcome]
    own = trial.outcome.value(name) if trial.outcome else math.nan
    return (own - min(values)) / ((max(values) - min(values)) or 1)


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    if dimension.kind == "choice":
        return [(i / max(len(dimension.choices) - 1, 1), short(choice)) for i, choice in enumerate(dimension.choices)]
    return [(0.0, short(dimension.low)), (1.0, short(dimension.high))]


def _scale(axes: Axes, at: int, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([at, at], [0, 1], color="#9aa3ad", lw=1, zorder=1)
    for y, text in ticks:
        box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
        axes.text(at + 0.03, y, text, fontsize=8, color=GREY, va="center", ha="left", zorder=4, bbox=box)


def front_panel(trials: Sequence[Trial], objective: str, cost: str, chosen: Trial | None) -> Panel | None:
    """Each trial's objective by its cost, and the front: trials that none beats in both."""
    done = [trial for trial in trials if trial.is_done]
    if not done:
        return None
    figure, axes = blank_figure(height_inch=2.9)
    best = front(done, objective, cost)

    def points(some: Sequence[Trial]) -> tuple[list[float], list[float]]:
        told = [trial.outcome for trial in some if trial.outcome]
        return [SCALES[cost] * o.value(cost) for o in told], [SCALES[objective] * o.value(objective) for o in told]

    axes.plot(*points(done), "o", color=COLOURS[objective], alpha=0.4, ms=5)
    axes.step(*points(best), where="post", color=COLOURS[objective], lw=1.4)
    axes.plot(*points(best), "D", color=COLOURS[objective], ms=5, label="front")
    if chosen is not None:
        _ring(axes, points([chosen])[0][0], points([chosen])[1][0], "chosen")
    axes.set(xlabel=COSTS[cost], ylabel=TITLES[objective])
    axes.set_xlim(left=0)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, frameon=False)
    title = f"{TITLES[objective].split(',')[0]} by cost"
    alt = f"{title}, {COSTS[cost]}: on the front are trials {', '.join(str(trial.number) for trial in best)}"
    return Panel(title, "", inline_svg(figure, f"front-{objective}-{cost}", alt))


def both_panel(trials: Sequence[Trial], chosen: Trial | None) -> Panel | None:
    """mR by agreement: how far the objective that sees no pair of the target goes with the one that does."""
    done = [trial.outcome for trial in trials if trial.is_done and trial.outcome]
    if len(done) < 3:
        return None
    figure, axes = blank_figure(height_inch=2.9)
    x, y = ([outcome.value(name) for outcome in done] for name in ("agreement", "recall"))
    axes.plot(x, [100 * value for value in y], "o", color=BLUE, alpha=0.5, ms=5)
    if chosen is not None and chosen.outcome is not None:
        _ring(axes, chosen.outcome.value("agreement"), 100 * chosen.outcome.value("recall"))
    axes.set(xlabel="agreement", ylabel="mR, %")
    rho = rank_correlation(x, y)
    detail = f"Spearman's rank correlation {rho:+.2f} over {len(done)} trials"
    return Panel("mR by agreement", detail, inline_svg(figure, "both", f"mR by agreement; {detail}"))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; 0 where one of both is the same throughout."""
    from scipy.stats import rankdata

    x, y = rankdata(a), rankdata(b)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def any_of(*panels: Panel | None) -> list[Panel]:
    return [panel for panel in panels if panel is not None]


def as_text(point: dict[str, Any]) -> str:
    return ", ".join(f"{name}={short(value)}" for name, value in point.items())

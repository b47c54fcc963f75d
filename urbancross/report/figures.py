"""The figures of a report: matplotlib to inline SVG, the same bytes for the same values."""

import io
import math
import re
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from urbancross.report.contents import DomainGap
from urbancross.report.words import real, with_interval

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#b4559b", "#555f6b"  # told apart by all eyes
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)
PANELS: dict[str, dict[str, str]] = {  # panel -> key of an event -> its name in the legend
    "Losses": {
        "loss": "total",
        "tile_text": "tile-text",
        "segment_text": "segment-text",
        "source": "source pairs",
        "segment": "segments",
        "target": "target pairs",
        "gap": "gap",
        "adversary": "adversary",
    },
    "Validation mR": {"valid_mR": "mR, %", "source_recall": "source mR, %", "target_recall": "target mR, %"},
    "Domains": {
        "proxy_a_distance": "proxy A-distance",
        "mmd2": "MMD²",
        "variance": "variance",
        "agreement": "agreement",
    },
    "Curriculum": {
        "pace": "pace",
        "effective_sample_size": "effective sample size",
        "coverage": "coverage of the source",
        "margin": "margin",
    },
    "Adversary": {"discriminator_accuracy": "discriminator accuracy", "reversal": "reversal"},
}
POINTS_PER_LINE = 400
POINTS_PER_DOMAIN = 2000
FIGURE_STYLE: Any = {  # matplotlib types its keys one by one
    "svg.fonttype": "none",  # text stays text: small, selectable, in the reader's own font
    "svg.hashsalt": "urbancross",  # without it ids are random
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3ad",
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.labelcolor": GREY,
}


class Panel(NamedTuple):
    title: str
    detail: str
    svg: Markup


def mr_panel(metrics: dict[str, dict[str, Any]]) -> Panel:
    """mR of every model with its interval, and chance, on one axis."""
    figure, axes = blank_figure(height_inch=0.75 + 0.35 * len(metrics))
    for row, m in enumerate(metrics.values()):
        value = 100 * real(m.get("mR"))
        if ends := m.get("ci95", {}).get("mR"):
            axes.plot([100 * end for end in ends], [row, row], color=COLOURS[row % 5], linewidth=5, alpha=0.35)
        axes.plot([value], [row], "o", color=COLOURS[row % 5])
    chances = {100 * real(m.get("chance_mR")) for m in metrics.values()}
    for chance in sorted(value for value in chances if not math.isnan(value)):
        axes.axvline(chance, color=GREY, linestyle="--", linewidth=1)
        above = axes.get_xaxis_transform()
        axes.text(chance, 1, f" chance {chance:.1f} %", transform=above, color=GREY, fontsize=8, va="bottom")
    axes.set(yticks=range(len(metrics)), yticklabels=list(metrics), xlabel="mR, %", ylim=(len(metrics) - 0.4, -0.6))
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    said = "; ".join(f"{model} {with_interval(m)}" for model, m in metrics.items() if "mR" in m)
    return Panel("mR and its 95 % interval", "", inline_svg(figure, "mr", f"mR: {said}"))


def curve_panels_of(verb: str, events: list[dict[str, Any]]) -> list[Panel]:
    """Small multiples over one run: a panel for each group of keys that any event has."""
    x, x_name = _progress(events)
    stages = [(at, e["stage"]) for at, e in zip(x, events, strict=True) if e.get("stage") and not math.isnan(at)]
    starts = stages[:1] + [now for was, now in pairwise(stages) if was[1] != now[1]]
    panels = []
    for title, names in PANELS.items():
        lines = {name: _line(x, [e.get(key) for e in events]) for key, name in names.items()}
        lines = {name: points for name, points in lines.items() if points.size}
        if not lines:
            continue
        figure, axes = blank_figure(height_inch=2.6)
        said = []
        for (name, (at, y)), colour in zip(lines.items(), COLOURS, strict=False):
            y = 100 * y if title == "Validation mR" else y
            axes.plot(at, y, color=colour, label=name, linewidth=1.6, marker="o" if len(y) < 40 else "", markersize=3)
            said.append(f"{name} from {y[0]:.3g} to {y[-1]:.3g}")
        axes.set_xlabel(x_name)
        low, high = axes.get_ylim()
        if title != "Validation mR":  # there the change matters, not the height
            low, high = min(0, low), max(high, 1)
        axes.set_ylim(low, high + 0.1 * (high - low))  # room for the names of stages
        if "discriminator accuracy" in lines:
            axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
        for at, stage in starts if len(starts) > 1 else []:
            axes.axvline(at, color="#9aa3ad", linewidth=0.8, linestyle=":")
            axes.text(at, 0.99, f" {stage}", transform=axes.get_xaxis_transform(), color=GREY, fontsize=7.5, va="top")
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1),
            ncols=5 if len(lines) < 5 else 3,
            frameon=False,
            columnspacing=1,
            handlelength=1.4,
        )
        name = re.sub(r"\W+", "-", f"curve-{verb}-{title}".lower())
        panels.append(Panel(title, "", inline_svg(figure, name, f"{verb}, {title}: {'; '.join(said)}")))
    return panels


def gap_panel(name: str, model: str, gap: DomainGap) -> Panel:
    """Both domains on the two directions in which this model's embeddings spread most."""
    drawn = [_sample(gap.source), _sample(gap.target)]
    flat, shares = _two_directions(*drawn)
    domain = np.repeat([0, 1], [len(part) for part in drawn])
    order = np.random.default_rng(0).permutation(len(flat))  # neither domain hides the other
    figure, axes = blank_figure(height_inch=3.6)
    colours = np.array([BLUE, ORANGE])[domain]
    axes.scatter(flat[order, 0], flat[order, 1], c=colours[order], s=7, alpha=0.45, linewidths=0, rasterized=True)
    for index, label in enumerate(("source", "target")):
        axes.scatter([], [], c=COLOURS[index], s=22, label=f"{label}, {len(drawn[index]):,} tiles")
        axes.plot(
            *flat[domain == index].mean(axis=0), "P", color=COLOURS[index], markeredgecolor="white", markersize=11
        )
    axes.set(xlabel=f"PC 1, {shares[0]:.0%} of variance", ylabel=f"PC 2, {shares[1]:.0%}")
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, frameon=False)
    p = "p < 0.001" if gap.mmd2_p < 0.001 else f"p = {gap.mmd2_p:.3f}"
    detail = f"PAD {gap.proxy_a_distance:.2f} · MMD² {gap.mmd2:.4f} ({p})"
    alt = f"Embeddings of both domains, {model}, in two dimensions. {detail}"
    return Panel(model, detail, inline_svg(figure, name, alt))


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an `<svg>` to stand in HTML: scaled by the page, and ids that no other figure has."""
    file = io.StringIO()
    figure.savefig(file, format="svg", dpi=200, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)  # it would style all
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg role="img" aria-label="{escape(alt)}" {box.group() if box else ""}>'
    return Markup(opening + svg[svg.index(">") + 1 :])


def blank_figure(height_inch: float, width_inch: float = 5.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_inch, height_inch), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_axisbelow(True)
    return figure, axes


def _progress(events: list[dict[str, Any]]) -> tuple[list[float], str]:
    """Where each event lies on the x axis: its step or its epoch if that never runs backwards, else its number."""
    for key in ("step", "epoch"):
        x = [real(event.get(key)) for event in events]
        known = [at for at in x if not math.isnan(at)]
        if known and all(a <= b for a, b in pairwise(known)):
            return x, key
    return [float(i) for i in range(len(events))], "event"


def _line(x: list[float], values: list[Any]) -> np.ndarray:
    """[2, n] of x and y where both are known; neighbours averaged where there are too many to see."""
    points = np.array([x, [real(value) for value in values]], dtype=float)
    points = points[:, np.isfinite(points).all(axis=0)]
    apart = max(1, math.ceil(points.shape[1] / POINTS_PER_LINE))
    starts = np.arange(0, points.shape[1], apart)
    return np.add.reduceat(points, starts, axis=1) / np.diff(starts, append=points.shape[1])


def _sample(embeddings: np.ndarray) -> np.ndarray:
    kept = np.random.default_rng(0).permutation(len(embeddings))[:POINTS_PER_DOMAIN]
    return np.asarray(embeddings, dtype=np.float64)[np.sort(kept)]


def _two_directions(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PCA of both domains together: [n + m, 2] coordinates, and the share of the variance on each axis."""
    together = np.concatenate([source, target])
    centred = together - together.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    flat = centred @ directions[:, ::-1][:, :2]
    turned = flat[: len(source)].mean(axis=0) > flat[len(source) :].mean(axis=0)  # PCA leaves the sign open:
    return np.where(turned, -flat, flat), variances[::-1][:2] / max(variances.sum(), 1e-12)  # target right, above

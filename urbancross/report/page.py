"""A report -> one HTML page that needs nothing else.

`render` is pure: values in, text out. Pictures are data URIs, figures are inline SVG, there is no script, and the same
report renders to the same bytes. Whatever a report leaves out is left out of the page.
"""

import math
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context

from urbancross.report.contents import AFTER, BEFORE, Hit, Report
from urbancross.report.figures import FIGURE_STYLE, curve_panels_of, gap_panel, mr_panel
from urbancross.report.words import data_uri, interval, number, percent, plain, real, with_interval

ENDS = ("written", "done_before", "skipped", "failed")  # what a tile can come to
RECALLS = tuple((way, k) for way in ("tile_to_text", "text_to_tile") for k in ("R@1", "R@5", "R@10"))


class Verdict(NamedTuple):
    outcome: str  # higher | lower | unclear | none
    sentence: str


def environment() -> Environment:
    """Templates that escape what comes in, and stop at a name that nobody gave."""
    page = Environment(
        loader=PackageLoader("urbancross.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page.filters.update(percent=percent, interval=interval, data_uri=data_uri, number=number, plain=plain)
    return page


def render(report: Report) -> str:
    """The whole page."""
    with rc_context(FIGURE_STYLE):
        interval_panels = [mr_panel(report.metrics)] if report.metrics else []
        curve_panels = {verb: curve_panels_of(verb, events) for verb, events in report.curves.items()}
        gap_panels = [gap_panel(f"gap-{i}", model, gap) for i, (model, gap) in enumerate(report.gaps.items())]
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            verdict=verdict(report.metrics),
            recalls=RECALLS,
            groups=sorted({group for metrics in report.metrics.values() for group in metrics.get("by", {})}),
            off_by=[unaccounted(balance) for balance in report.balances],
            totals={key: sum(b.get(key, 0) for b in report.balances) for key in ("read", *ENDS)},
            interval_panels=interval_panels,
            curve_panels={verb: panels for verb, panels in curve_panels.items() if panels},
            gap_panels=gap_panels,
            only_here={query: only_here(models) for query, models in report.queries.items()},
        )
    )


def verdict(metrics: dict[str, dict[str, Any]]) -> Verdict:
    """One sentence on what adaptation did to mR, judged by whether the two 95 % intervals overlap."""
    known = {model: m for model, m in metrics.items() if not math.isnan(real(m.get("mR")))}
    if not {BEFORE, AFTER} <= known.keys():
        said = [
            f"{model}: mR {with_interval(m)}, by chance {percent(m.get('chance_mR'))}." for model, m in known.items()
        ]
        return Verdict("none", " ".join(said))
    before, after = known[BEFORE], known[AFTER]
    values = f"{with_interval(after)} adapted, {with_interval(before)} source only"
    if differ := [key for key in ("protocol", "split", "gallery") if before.get(key) != after.get(key)]:
        return Verdict("unclear", f"Not comparable: mR is {values}, but {' and '.join(differ)} differ.")
    was, now = before.get("ci95", {}).get("mR"), after.get("ci95", {}).get("mR")
    if not was or not now:
        return Verdict("unclear", f"mR is {values}; without both 95 % intervals the difference cannot be judged.")
    if now[0] > was[1]:
        return Verdict("higher", f"mR is higher after adaptation: {values}. The 95 % intervals do not overlap.")
    if now[1] < was[0]:
        return Verdict("lower", f"mR is lower after adaptation: {values}. The 95 % intervals do not overlap.")
    return Verdict("unclear", f"No clear difference in mR: {values}. The 95 % intervals overlap.")


def unaccounted(balance: dict[str, Any]) -> int:
    """Tiles read that came to no end; below zero, more ended than were read; 0 balances."""
    return balance.get("read", 0) - sum(balance.get(end, 0) for end in ENDS)


def only_here(models: dict[str, list[Hit]]) -> dict[str, set[str]]:
    """For each model, the tiles that no other model found; empty sets where there is nothing to compare."""
    found = {model: {hit.tile_id for hit in hits} for model, hits in models.items() if hits}
    others = {model: [ids for other, ids in found.items() if other != model] for model in found}
    return {m: found[m].difference(*others[m]) if others.get(m) else set() for m in models}

"""The page of one run: how it ended, how it went, what was asked and what was said; one HTML file."""

from datetime import datetime
from typing import Any

from matplotlib import rc_context

from urbancross.report.figures import BLUE, FIGURE_STYLE, Panel, blank_figure, inline_svg
from urbancross.report.page import environment
from urbancross.runs import Balance, Journal

PAGE = "report.html"
FEWEST_POINTS = 3  # of progress that make a curve


def page_of(journal: Journal, balance: Balance | None) -> str:
    """The whole page; without a balance, of a run that was stopped."""
    events = journal.events
    began, ended = (datetime.fromisoformat(events[i]["at"]) for i in (0, -1))
    with rc_context(FIGURE_STYLE):
        panels = [
            panel_of(what, points) for what, points in progress_of(events).items() if len(points) >= FEWEST_POINTS
        ]
    return (
        environment()
        .get_template("run.html.j2")
        .render(
            title=f"{journal.verb} of {journal.home.name}",
            began=events[0]["at"],
            minutes=(ended - began).total_seconds() / 60,
            balance=balance,
            why=events[-1].get("why", ""),
            panels=panels,
            lines=[(event["at"], line) for event in events if (line := words(event))],
            config=journal.settings,
        )
    )


def progress_of(events: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """By piece of work: minutes since the first event, and how much was done."""
    began, found = datetime.fromisoformat(events[0]["at"]), dict[str, list[tuple[float, float]]]()
    for event in events:
        if "done" in event and "what" in event:
            minutes = (datetime.fromisoformat(event["at"]) - began).total_seconds() / 60
            found.setdefault(f"{event['what']}, {event['unit']}", []).append((minutes, event["done"]))
    return found


def panel_of(what: str, points: list[tuple[float, float]]) -> Panel:
    figure, axes = blank_figure(height_inch=2.2)
    axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1.6)
    axes.set(xlabel="minutes", ylim=(0, None))
    alt = f"{what}: {points[-1][1]:,} after {points[-1][0]:.1f} minutes"
    return Panel(what, "", inline_svg(figure, f"progress-{what}", alt))


def words(event: dict[str, Any]) -> str:
    if "said" in event:
        return str(event["said"])
    if "what" in event:
        return f"{event['what']}: {event['done']:,} of {event['total']:,} {event['unit']}"
    return ""

"""A run's folder and its balance: what was asked, what happened, and that every tile is accounted for.

A/runs/TIME-VERB/   config.json  balance.json  events.jsonl  report.html, and what else a verb keeps
"""

import contextlib
import json
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from urbancross import storage
from urbancross.errors import UrbanCrossError
from urbancross.storage import Place

CONFIG, BALANCE, EVENTS = "config.json", "balance.json", "events.jsonl"
SECONDS_BETWEEN_KEEPS = 60.0


@dataclass(frozen=True)
class Balance:
    """Every tile that went in is written, was done before, was skipped for a reason, or failed for one."""

    read: int = 0
    written: int = 0
    done_before: int = 0
    skipped: int = 0
    failed: int = 0
    files: dict[str, Any] = field(default_factory=dict, compare=False)  # further JSON files of the run folder, by name

    def __add__(self, other: "Balance") -> "Balance":
        return Balance(
            self.read + other.read,
            self.written + other.written,
            self.done_before + other.done_before,
            self.skipped + other.skipped,
            self.failed + other.failed,
            self.files | other.files,
        )

    def with_files(self, **files: Any) -> "Balance":
        return replace(self, files=self.files | files)

    @property
    def balances(self) -> bool:
        return self.read == self.written + self.done_before + self.skipped + self.failed

    def __str__(self) -> str:
        skipped = f" + skipped {self.skipped:,}" if self.skipped else ""
        sign = "=" if self.balances else "≠"
        return (
            f"read {self.read:,} {sign} written {self.written:,} + done before {self.done_before:,}"
            f"{skipped} + failed {self.failed:,}"
        )


def count_failures(failures: list[str | None]) -> dict[str, Any]:
    """Written, skipped and failed among the `failure` column of rows, and how often each reason of either."""
    skipped = sum(1 for failure in failures if failure is not None and failure.startswith("skipped:"))
    failed = sum(1 for failure in failures if failure is not None) - skipped
    reasons, skips = (
        Counter(reason(failure, kind) for failure in failures if failure is not None and failure.startswith(kind))
        for kind in ("failed:", "skipped:")
    )
    return {
        "written": len(failures) - skipped - failed,
        "skipped": skipped,
        "failed": failed,
        "reasons": reasons,
        "skips": skips,
    }


def reason(failure: str, kind: str = "failed:") -> str:
    """The kind of a failure, without what differs from tile to tile."""
    whole = failure.removeprefix(kind)
    while inner := re.match(r"no input \((?:skipped|failed):(.*)\)$", whole, re.DOTALL):  # of a table before
        whole = inner[1]
    text = re.split(r"[:;(]", whole)[0]
    return re.sub(r"\d[\d.,]*", "n", text).strip()[:60]


def most_common(reasons: Counter[str]) -> str:
    """`10 × no such file, 2 × corrupt image`."""
    return ", ".join(f"{count:,} × {text}" for text, count in reasons.most_common(5))


def allowed_failures(told: str | None, tiles: int) -> float | None:
    """How many tiles may fail by `--max-failed`, such as `5%` or `100`; None where all may."""
    if told is None:
        return None
    return float(told[:-1]) / 100 * tiles if told.endswith("%") else float(told)


def new_run(home: Place, verb: str) -> Place:
    """Where a run of a verb keeps its files; the name is its time."""
    return home / "runs" / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{verb}"


def counts_of(balance: Balance) -> dict[str, int]:
    return {name: value for name, value in asdict(balance).items() if name != "files"}


def record(home: Place, verb: str, settings: dict[str, Any], balance: Balance, run: Place | None = None) -> Place:
    """Write the settings, the balance and the run's other files into its folder, a new one if none is given."""
    run = run or new_run(home, verb)
    storage.write_json(run / CONFIG, {"verb": verb, **settings})
    storage.write_json(run / BALANCE, counts_of(balance))
    for name, value in balance.files.items():
        storage.write_json(run / f"{name}.json", value)
    return run


class Journal:
    """The events of one run, a JSON object a line, each with its time: kept once a minute, and at the end.

    Attributes:
        run: the folder, which is there from the first minute on.
        is_kept: whether it is.
    """

    def __init__(self, home: Place, verb: str, settings: dict[str, Any]) -> None:
        self.home, self.verb, self.settings = home, verb, settings
        self.run = new_run(home, verb)
        self.events: list[dict[str, Any]] = []
        self.kept, self.is_kept = time.monotonic(), False
        self.hear({"began": verb})

    def hear(self, event: dict[str, Any]) -> None:
        self.events.append({"at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", **event})
        if time.monotonic() - self.kept >= SECONDS_BETWEEN_KEEPS:
            self.keep()

    def keep(self) -> None:
        """Write down what was heard; a store that does not take it now may do so later, and ends no run."""
        self.kept = time.monotonic()
        with contextlib.suppress(UrbanCrossError, OSError):
            if storage.names(self.home):  # there is an archive
                storage.write_json(self.run / CONFIG, {"verb": self.verb, **self.settings})
                storage.replace(self.run / EVENTS, event_lines(self.events))
                self.is_kept = True


def balances(home: Place) -> list[dict[str, Any]]:
    """The balance of every recorded run below `home`, oldest first, each with its `stage`."""
    found = []
    for name in storage.names(home / "runs"):
        run = home / "runs" / name
        if BALANCE not in storage.names(run):
            continue
        config = storage.read_json(run / CONFIG, "run")
        with_model = config["verb"] in ("embed", "evaluate")
        stage = f"{config['verb']} {Path(config['checkpoint']).name}" if with_model else config["verb"]
        found.append({"stage": stage, "archive": home.name, **storage.read_json(run / BALANCE, "run")})
    return found


def forecast_of(home: Place, table: str, maker: str, workers: int) -> dict[str, Any] | None:
    """The newest forecast of a table that `plan` left below `home`; None where there is none for what makes it now.

    Args:
        maker: digest of the settings and sources that make the table.
        workers: that the run was told to have.
    """
    for name in reversed(storage.names(home / "runs")):
        if name.endswith("-plan"):
            for told in (storage.json_or_none(home / "runs" / name / "forecast.json", "run") or {}).get(
                "forecasts", []
            ):
                same = (told["table"], told["maker"], told.get("asked", workers)) == (table, maker, workers)
                if same and not told["assumed"]:
                    return told
    return None


def event_lines(events: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(event) + "\n" for event in events).encode()


def read_events(path: Place) -> list[dict[str, Any]]:
    """Events of a training run, a JSON object a line; empty when there is no such file."""
    found = storage.read(path)
    return [json.loads(line) for line in found[0].decode().splitlines()] if found else []

"""A run's folder and its balance: what was asked, what happened, and that every tile is accounted for."""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from urbancross import storage
from urbancross.storage import Place


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


def record(home: Place, verb: str, settings: dict[str, Any], balance: Balance) -> Place:
    """Write `config.json`, `balance.json` and the run's other files below `home/runs`; returns the run's folder."""
    run = new_run(home, verb)
    storage.write_json(run / "config.json", {"verb": verb, **settings})
    counts = {name: value for name, value in asdict(balance).items() if name != "files"}
    storage.write_json(run / "balance.json", counts)
    for name, value in balance.files.items():
        storage.write_json(run / f"{name}.json", value)
    return run


def balances(home: Place) -> list[dict[str, Any]]:
    """The balance of every recorded run below `home`, oldest first, each with its `stage`."""
    found = []
    for name in storage.names(home / "runs"):
        run = home / "runs" / name
        if "balance.json" not in storage.names(run):
            continue
        config = storage.read_json(run / "config.json", "run")
        with_model = config["verb"] in ("embed", "evaluate")
        stage = f"{config['verb']} {Path(config['checkpoint']).name}" if with_model else config["verb"]
        found.append({"stage": stage, "archive": home.name, **storage.read_json(run / "balance.json", "run")})
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
